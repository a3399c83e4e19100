"""Choice of attention kernel, and the layout in which gradients reach it."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend

import tiny
from linearard.capture import AttentionTap, needs_no_mask, sdpa, unpadded
from linearard.capture.attention import _attention
from linearard.capture.blocks import Scores, attention_in_blocks
from linearard.capture.masks import Documents
from linearard.capture.sdpa import (
    causal_attention,
    preferred_backends,
    with_contiguous_gradient,
)


def laid_out(values, layout):
    """The same numbers, `[batch, tokens, heads, head_dim]`, in another layout."""
    if layout == "heads first":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "features first":
        return values.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    if layout == "every second":
        wide = torch.zeros(*values.shape[:-1], 2 * values.shape[-1]).to(values)
        wide[..., ::2] = values
        return wide[..., ::2]
    if layout == "odd strides of size 1":
        strides = [
            7 if size == 1 else stride
            for size, stride in zip(values.shape, values.stride(), strict=True)
        ]
        return values.as_strided(values.shape, strides)
    return values


LAYOUTS = ["plain", "heads first", "features first", "every second", "odd strides of size 1"]


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 5, 3, 4), (1, 5, 1, 4), (2, 1, 3, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_arrives_in_one_layout(shape, layout):
    gradient = laid_out(torch.randn(shape), layout)
    x = torch.randn(shape, requires_grad=True)
    between, arrived = x * 1.0, []
    between.register_hook(arrived.append)
    output = with_contiguous_gradient(between)
    assert torch.equal(output, x) and output.data_ptr() == between.data_ptr()
    (got,) = torch.autograd.grad(output, x, gradient)
    assert torch.equal(got, gradient)
    (seen,) = arrived
    _, tokens, heads, width = shape
    assert seen.stride() == (tokens * heads * width, heads * width, width, 1)
    copied = layout != "plain" and not gradient.is_contiguous()
    assert (seen.data_ptr() == gradient.data_ptr()) is not copied


def test_a_gradient_that_is_one_number_everywhere():
    """`output.sum().backward()` gives strides of 0."""
    x = torch.randn(1, 5, 3, 4, requires_grad=True)
    between, arrived = x * 2.0, []
    between.register_hook(arrived.append)
    with_contiguous_gradient(between).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert arrived[0].stride() == (60, 12, 4, 1)


def test_cudnn_is_for_gpus():
    query = torch.zeros(1, 2, 1024, 64, dtype=torch.bfloat16)
    assert SDPBackend.CUDNN_ATTENTION not in preferred_backends(query, None)


def dense(q, k, v, gradient, window=None, documents=None):
    """Causal attention `[batch, tokens, heads, head_dim]` and its gradients in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in (k, v))
    tokens = q.shape[2]
    hidden = torch.ones(tokens, tokens, device=q.device).triu(1).bool()
    if window is not None:
        hidden |= torch.ones_like(hidden).tril(-window)
    if documents is not None:
        names = [torch.arange(len(x)).repeat_interleave(torch.tensor(x)) for x in documents.lengths]
        names = torch.stack(names).to(q.device)
        hidden = hidden | (names[:, None, :, None] != names[:, None, None, :])
    scores = (q @ keys.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    output = (scores.softmax(-1) @ values).transpose(1, 2)
    return output, torch.autograd.grad(output, (q, k, v), gradient.double())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_whole_windows_need_no_mask(architecture, monkeypatch):
    """The same output without masks, for sliding windows (24 tokens) too; padding is never dropped."""
    model, ids = tiny.tiny_model(architecture).requires_grad_(False), tiny.tokens(2, 61)
    padding = torch.ones_like(ids)
    padding[1, 50:] = 0
    expected = model(input_ids=ids, use_cache=False).logits
    assert not needs_no_mask(model)
    AttentionTap(model)
    assert needs_no_mask(model)
    padded = model(input_ids=ids, attention_mask=padding, use_cache=False).logits
    masks, plain = [], torch.nn.functional.scaled_dot_product_attention

    def seeing(*args, **kwargs):
        masks.append(kwargs.get("attn_mask"))
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seeing)
    with unpadded(model):
        got = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    after = model(input_ids=ids, attention_mask=padding, use_cache=False).logits
    assert torch.equal(after, padded)
    if architecture in ("llama", "qwen2", "qwen3"):
        assert masks[:3] == [None] * 3


DOCUMENTS = Documents(((5, 1, 14, 21), (41,)))


def close_to_dense(q, k, v, slope, output, window=None, documents=None, tolerance=1e-5):
    """Output and gradients beside those of float64."""
    expected, gradients = dense(q, k, v, slope, window, documents)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    for got, want in zip(torch.autograd.grad(output, (q, k, v), slope), gradients, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def operands(kv_heads, width=8, dtype=torch.float32, tokens=41):
    make = torch.Generator().manual_seed(0)
    shapes = [(2, heads, tokens, width) for heads in (4, kv_heads, kv_heads)]
    qkv = [torch.randn(shape, generator=make, dtype=dtype).requires_grad_() for shape in shapes]
    return *qkv, torch.randn(2, tokens, 4, width, generator=make, dtype=dtype)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("window", [None, 1, 7, 40, 41, 90])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_causal_attention(window, kv_heads, documents):
    q, k, v, slope = operands(kv_heads)
    output = causal_attention(q, k, v, 8**-0.5, window=window, documents=documents)
    close_to_dense(q, k, v, slope, output, window, documents)


def flash_in_words(query, key, value, edges, *sizes_and_flags, scale, **window):
    """What PyTorch's flash attention is documented to compute, in float64."""
    dropout, causal, _ = sizes_and_flags[-3:]
    back, ahead = window["window_size_left"], window["window_size_right"]
    assert not dropout and (causal or ahead == 0)
    batched = query.dim() == 4
    if edges is None:
        edges = torch.arange(len(query) + 1) * query.shape[1]
    assert max(edges.diff()) == sizes_and_flags[1] and edges.dtype in (torch.int32, torch.int64)
    rows = [x.flatten(0, 1).double() if batched else x.double() for x in (query, key, value)]
    parts = []
    for start, stop in itertools.pairwise(edges):
        q, k, v = (x[start:stop].transpose(0, 1) for x in rows)
        k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        seen = (distance >= 0) & (distance <= (q.shape[1] if back is None else back))
        scores = (scale * q @ k.mT).masked_fill(~seen, -torch.inf)
        parts.append((scores.softmax(-1) @ v).transpose(0, 1))
    return (torch.cat(parts).view(query.shape).to(query.dtype),)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole", "documents"])
@pytest.mark.parametrize("window", [None, 1, 7])
def test_what_flash_attention_is_told(window, documents, monkeypatch):
    """Where a GPU has it: heads stay grouped, and documents are laid end to end."""
    monkeypatch.setattr(sdpa, "_flash_takes", lambda *operands: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_in_words)
    q, k, v, slope = operands(2)
    output = causal_attention(q, k, v, 8**-0.5, window=window, documents=documents)
    close_to_dense(q, k, v, slope, output, window, documents)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_kernels_that_know_no_groups(kv_heads, monkeypatch):
    """One head of every group at a time, with keys and values as they are."""
    monkeypatch.setattr(sdpa, "_knows_no_groups", lambda *operands: True)
    seen, plain = [], torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        seen.append(key.data_ptr())
        assert query.shape == key.shape == value.shape and not options.get("enable_gqa")
        return plain(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    q, k, v, slope = operands(kv_heads)
    output = causal_attention(q, k, v, 8**-0.5)
    close_to_dense(q, k, v, slope, output)
    assert seen == [k.data_ptr()] * (4 // kv_heads)


@pytest.mark.parametrize("window", [100, 130])
@pytest.mark.parametrize(("width", "dtype"), [(256, torch.float32), (12, torch.float64)])
def test_windows_over_several_blocks_of_rows(width, dtype, window):
    q, k, v, slope = operands(2, width, dtype, tokens=307)
    output = causal_attention(q, k, v, width**-0.5, window=window)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    close_to_dense(q, k, v, slope, output, window, tolerance=tolerance)


@pytest.mark.parametrize("window", [None, 70])
def test_capped_scores_and_sinks(window):
    """Against the same in float64, all at once."""
    q, k, v, slope = operands(2, tokens=157)
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], requires_grad=True)
    output = attention_in_blocks(q, k, v, Scores(0.4, 1.5), window=window, sinks=sinks)
    got = torch.autograd.grad(output, (q, k, v, sinks), slope)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v, sinks)]
    keys, values = (x.repeat_interleave(2, dim=1) for x in exact[1:3])
    scores = 1.5 * torch.tanh(exact[0] @ keys.mT * 0.4 / 1.5)
    distance = torch.arange(157)[:, None] - torch.arange(157)
    scores = scores.masked_fill((distance < 0) | (distance >= (window or 157)), -torch.inf)
    beside = exact[3].view(1, 4, 1, 1).expand(2, 4, 157, 1)
    weights = torch.cat([scores, beside], dim=-1).softmax(-1)[..., :-1]
    expected = (weights @ values).transpose(1, 2)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected, exact, slope.double())
    for one, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("tokens", "window", "width"),
    [(1024, 300, 128), (777, 64, 256), (640, 1, 128), (777, None, 256)],
)
def test_causal_attention_on_a_gpu(tokens, window, width, dtype, documents):
    make = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, tokens, n, width, device="cuda", generator=make).to(dtype).transpose(1, 2)
        for n in (8, 2, 2)
    )
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    slope = torch.randn(2, tokens, 8, width, device="cuda", generator=make).to(dtype)
    documents = Documents(((100, tokens - 100), (1, 299, tokens - 300))) if documents else None
    expected, gradients = dense(q, k, v, slope, window, documents)
    output = causal_attention(q, k, v, width**-0.5, window=window, documents=documents)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    assert (output.double() - expected).norm() < tolerance * expected.norm()
    for got, want in zip(torch.autograd.grad(output, (q, k, v), slope), gradients, strict=True):
        # with a window of one token, queries and keys get no gradient at all
        assert (got.double() - want).norm() < 2 * tolerance * want.norm() + 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("order", [LAYOUTS, LAYOUTS[::-1]], ids=["plain first", "plain last"])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "width"),
    [(2, 4, 4, 128), (1, 4, 4, 128), (1, 9, 3, 64), (2, 4, 1, 64), (1, 1, 1, 128)],
)
def test_gradients_do_not_depend_on_the_layouts_before(batch, heads, kv_heads, width, order):
    """One shape, one gradient after another: a plan built for the first must not serve the others."""
    model = tiny.tiny_model(
        hidden_size=heads * width, num_attention_heads=heads, num_key_value_heads=kv_heads
    ).to("cuda", torch.bfloat16)
    module = AttentionTap(model).modules[0]
    # a length of its own for each order, so that each begins with a plan not yet built
    tokens = 576 if order is LAYOUTS else 640
    make = torch.Generator("cuda").manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, device="cuda", generator=make).bfloat16()

    q, k, v = (draw(batch, tokens, n, width).transpose(1, 2) for n in (heads, kv_heads, kv_heads))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    if torch.cuda.get_device_capability() >= (9, 0):
        assert preferred_backends(q, None)[0] == SDPBackend.CUDNN_ATTENTION
    for layout in order * 2:
        gradient = laid_out(draw(batch, tokens, heads, width), layout)
        output, _ = _attention(module, q, k, v, None, scaling=width**-0.5)
        got = torch.autograd.grad(output, (q, k, v), gradient)
        expected_output, expected = dense(q, k, v, gradient)
        assert (output.double() - expected_output).norm() < 1e-2 * expected_output.norm()
        for name, a, b in zip("qkv", got, expected, strict=True):
            error = float((a.double() - b).norm() / b.norm())
            assert error < 2e-2, (layout, name, error)
