"""What the tap shows of each architecture, and that it changes nothing."""

import pytest
import torch

import tiny
from linearard.capture import AttentionTap, LayerAttention, StopForward
from linearard.errors import ModelError


@torch.no_grad()
def logits(model, ids, **kwargs):
    return model(input_ids=ids, **kwargs).logits


def captured(model, ids, **kwargs):
    """Operands by layer, and the logits of the same pass."""
    tap, seen = AttentionTap(model), {}
    with tap.observing(lambda attention: seen.__setitem__(attention.layer, attention)):
        result = logits(model, ids, **kwargs)
    return seen, result


def rotate(x, inv_freq):
    """Turn pair (i, i + rotary_dim / 2) of position p by p * inv_freq[i]; in float64."""
    half = len(inv_freq)
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * inv_freq.double()
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat(
        [
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
            rest,
        ],
        -1,
    )


def projections(model, ids):
    """Outputs of q, k, v projections, or of the norms behind them, by (layer, letter)."""
    outputs, hooks = {}, []
    config = model.config

    def keep(layer, letter, heads):
        def hook(module, inputs, output):
            batch, tokens = ids.shape
            if output.dim() == 4 and output.shape[1] == heads:  # a norm after the transpose
                outputs[layer, letter] = output.double()
            else:
                outputs[layer, letter] = (
                    output.view(batch, tokens, heads, -1).transpose(1, 2).double()
                )

        return hook

    def keep_fused(layer):
        def hook(module, inputs, output):
            many, few = config.num_attention_heads, config.num_key_value_heads
            width = config.hidden_size // many
            parts = output.double().split([many * width, few * width, few * width], -1)
            for letter, part, heads in zip("qkv", parts, (many, few, few), strict=True):
                outputs[layer, letter] = part.unflatten(-1, (heads, width)).transpose(1, 2)

        return hook

    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        if hasattr(attention, "qkv_proj"):
            hooks.append(attention.qkv_proj.register_forward_hook(keep_fused(index)))
            continue
        for letter in "qkv":
            heads = config.num_attention_heads if letter == "q" else config.num_key_value_heads
            last = getattr(attention, f"{letter}_norm", None) or getattr(
                attention, f"{letter}_proj"
            )
            hooks.append(last.register_forward_hook(keep(index, letter, heads)))
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return outputs


def inverse_frequencies(model, layer):
    """theta^(-2i/d), written out here."""
    config = model.config
    parameters = config.rope_parameters
    if "full_attention" in parameters:
        parameters = parameters[config.layer_types[layer]]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return parameters["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_operands_are_projections_after_norm_and_rope(architecture):
    model, ids = tiny.tiny_model(architecture), tiny.tokens(2, 41)
    by_hand = projections(model, ids)
    seen, _ = captured(model, ids)
    assert sorted(seen) == [0, 1, 2]
    for index, attention in seen.items():
        inv_freq = inverse_frequencies(model, index)
        expected = {
            "query": rotate(by_hand[index, "q"], inv_freq),
            "key": rotate(by_hand[index, "k"], inv_freq),
            "value": by_hand[index, "v"],
        }
        for name, operand in expected.items():
            got = getattr(attention, name)
            assert got.shape == operand.shape  # key-value heads are not repeated
            torch.testing.assert_close(got.double(), operand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("chosen", [{}, {"attn_implementation": "eager"}], ids=["default", "eager"])
def test_capture_does_not_change_logits(architecture, chosen):
    ids = tiny.tokens(2, 41)
    mask = torch.ones_like(ids)
    mask[1, 29:] = 0
    model = tiny.tiny_model(architecture, **chosen)
    plain, masked = logits(model, ids), logits(model, ids, attention_mask=mask)
    seen, observed = captured(model, ids)
    assert len(seen) == model.config.num_hidden_layers == 3
    assert torch.equal(logits(model, ids), observed)  # and nobody observing
    padded = captured(model, ids, attention_mask=mask)[1]
    if chosen and architecture != "gemma2":
        assert torch.equal(observed, plain) and torch.equal(padded, masked)
        return
    # Other kernels round in another way; what stands on padding means nothing.
    torch.testing.assert_close(observed, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded[mask.bool()], masked[mask.bool()], rtol=1e-5, atol=1e-5)


def test_soft_capping_is_never_dropped():
    """PyTorch's scaled-dot-product attention cannot cap scores, so such a model's are computed in blocks."""
    model, ids = tiny.tiny_model("gemma2", attn_logit_softcapping=0.5), tiny.tokens()
    expected = logits(model, ids)
    model.config._attn_implementation_internal = "sdpa"  # as some versions of transformers leave it
    torch.testing.assert_close(captured(model, ids)[1], expected, rtol=1e-5, atol=1e-5)
    uncapped = logits(tiny.tiny_model("gemma2", attn_logit_softcapping=None), ids)
    assert not torch.allclose(expected, uncapped, atol=1e-3)


def test_scaling_is_the_models_own():
    for architecture, scaling in (("llama", 8**-0.5), ("gemma3", 10**-0.5), ("qwen3", 12**-0.5)):
        seen, _ = captured(tiny.tiny_model(architecture), tiny.tokens())
        assert [seen[layer].scaling for layer in range(3)] == pytest.approx([scaling] * 3)


def test_attention_probabilities_come_out_of_the_operands():
    """Softmax of scaling * Q K^T and the causal mask is what eager attention computed."""
    model, ids = tiny.tiny_model(attn_implementation="eager"), tiny.tokens(1, 23)
    model.config.output_attentions = True
    tap, seen = AttentionTap(model), []
    with torch.no_grad(), tap.observing(seen.append):
        weights = model(input_ids=ids).attentions
    for attention, expected in zip(seen, weights, strict=True):
        key = attention.key.repeat_interleave(2, dim=1).double()
        scores = attention.query.double() @ key.mT * attention.scaling
        scores = scores.masked_fill(torch.ones(23, 23).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1).float(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "windows"),
    [
        ("llama", [None] * 3),
        ("mistral", [24] * 3),
        ("gemma2", [24, None, 24]),
        ("gemma3", [24, None, 24]),
        ("qwen2", [None] * 3),
        ("phi3", [None] * 3),
    ],
)
def test_sliding_windows_are_reported(architecture, windows):
    seen, _ = captured(tiny.tiny_model(architecture), tiny.tokens())
    assert [seen[layer].sliding_window for layer in range(3)] == windows


def test_layers_arrive_in_order_and_the_tap_can_be_taken_over(llama):
    first, second, order = AttentionTap(llama), AttentionTap(llama), []
    with (
        first.observing(lambda a: pytest.fail("the first tap was replaced")),
        second.observing(lambda a: order.append(a.layer)),
    ):
        logits(llama, tiny.tokens())
    assert order == [0, 1, 2] and second.num_layers == 3


def test_stop_forward_ends_the_pass_quietly(llama):
    tap, order, reached = AttentionTap(llama), [], []

    def stop_at_one(attention):
        order.append(attention.layer)
        if attention.layer == 1:
            raise StopForward

    with tap.observing(stop_at_one):
        logits(llama, tiny.tokens())
        reached.append("end")
    assert order == [0, 1] and not reached
    with tap.observing(None):
        logits(llama, tiny.tokens())
        reached.append("end")
    assert order == [0, 1] and reached == ["end"]


def test_other_errors_of_an_observer_are_not_swallowed(llama):
    def fail(attention):
        raise RuntimeError("of the observer")

    with (
        pytest.raises(RuntimeError, match="of the observer"),
        AttentionTap(llama).observing(fail),
    ):
        logits(llama, tiny.tokens())


def test_observers_nest_and_those_of_a_step_end_with_it(llama):
    tap, outer, inner = AttentionTap(llama), [], []

    def see(into):
        return lambda attention: into.append(attention.layer)

    with tap.observing(see(outer)):
        with pytest.raises(KeyError), tap.observing(see(inner)):
            raise KeyError
        logits(llama, tiny.tokens())
    assert outer == [0, 1, 2] and not inner
    with tap.step():
        with tap.observing(see(inner), recomputed=True):
            pass
        logits(llama, tiny.tokens())  # as the backward pass of a step does
        with pytest.raises(KeyError), tap.observing(see(outer), recomputed=True):
            raise KeyError
        logits(llama, tiny.tokens())
    logits(llama, tiny.tokens())
    assert inner == [0, 1, 2] * 2 and outer == [0, 1, 2]


def test_what_is_computed_again_is_not_observed_without_a_step(llama):
    tap = AttentionTap(llama)
    with tap.step(), tap.observing(print, recomputed=True):
        pass
    with pytest.raises(RuntimeError, match=r"into one `with tap.step\(\):`"):
        tap.observing(print, recomputed=True)


def test_operands_are_frozen(llama):
    seen, _ = captured(llama, tiny.tokens())
    assert isinstance(seen[0], LayerAttention)
    with pytest.raises(AttributeError):
        seen[0].query = None


def test_the_wrapper_is_not_written_into_configurations(llama, tmp_path):
    AttentionTap(llama)
    llama.save_pretrained(tmp_path)
    assert "linearard" not in (tmp_path / "config.json").read_text()


def test_attention_outside_the_interface_is_refused():
    from transformers import FalconConfig, FalconForCausalLM

    falcon = FalconForCausalLM(
        FalconConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, alibi=False
        )
    )
    with pytest.raises(ModelError, match="got FalconForCausalLM"):
        AttentionTap(falcon)


def hybrid(layer_types):
    from transformers import Lfm2Config, Lfm2ForCausalLM

    return Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            layer_types=layer_types,
        )
    )


def test_layers_without_attention_are_left_alone():
    model = hybrid(["conv", "full_attention", "conv"])
    tap, seen = AttentionTap(model), []
    with tap.observing(lambda attention: seen.append(attention.layer)):
        model(input_ids=torch.arange(7)[None], use_cache=False)
    assert seen == [1] == list(tap.modules) and tap.num_layers == 3


def test_a_layer_that_should_have_attention_and_has_none_is_refused(llama):
    del llama.model.layers[1].self_attn.layer_idx
    with pytest.raises(ModelError, match="without it in 1 of 3 of them, first in layer 1"):
        AttentionTap(llama)


def test_a_model_without_any_attention_is_refused():
    with pytest.raises(ModelError, match="attention modules"):
        AttentionTap(hybrid(["conv"] * 3))
