"""A step's batches, taken apart in any way, give loss and gradients of one batch of all its windows."""

import pytest
import torch

import tiny
from linearard.distill import ObjectiveConfig, RestorationModule, needs_shares, step_shares

BATCH, TOKENS = 5, 23
RELATIONS = {"q": 1.0, "k": 0.7, "v": 0.5, "qk": 2.0}
#: Each term alone; then all that go together.
OBJECTIVES = {
    "relations": {"relations": RELATIONS},
    "paper's normalisation": {"relations": RELATIONS, "normalisation": "paper"},
    "teacher's inputs": {"relations": RELATIONS, "inputs": "teacher"},
    "logit KL": {"relations": {}, "logit_weight": 1.0, "logit_positions": None},
    "logit KL of the last positions": {
        "relations": {},
        "logit_weight": 1.0,
        "logit_positions": 9,
    },
    "hidden states": {"relations": {}, "hidden_weight": 1.0},
    "next token": {"relations": {}, "lm_weight": 1.0},
    "recall": {"relations": {}, "repeated_weight": 1.0},
    "all": {
        "relations": RELATIONS,
        "logit_weight": 1.0,
        "logit_positions": 15,
        "hidden_weight": 0.5,
        "lm_weight": 0.3,
        "repeated_weight": 0.8,
    },
}


def batch_of_windows():
    """Windows of different lengths that repeat different numbers of tokens, one of them none."""
    lengths, repeats = torch.tensor([23, 9, 17, 23, 4]), torch.tensor([5, 0, 7, 1, 2])
    places = torch.arange(TOKENS)
    return {
        "input_ids": tiny.tokens(BATCH, TOKENS, seed=3),
        "attention_mask": (places < lengths[:, None]).long(),
        "repeated": (places >= 2) & (places < 2 + repeats[:, None]),
    }


def gradients(restorable):
    found = [p.grad.clone() for p in restorable.adapter.parameters() if p.grad is not None]
    restorable.model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("sizes", [[1] * 5, [2, 3], [4, 1]], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_add_up_to_it(name, sizes):
    config = ObjectiveConfig(**OBJECTIVES[name])
    restorable = tiny.tiny_restorable()
    tiny.perturb_adapter(restorable)
    module, whole = RestorationModule(restorable, config), batch_of_windows()
    if not config.repeated_weight:
        del whole["repeated"]
    expected = module(**whole)
    expected["loss"].backward()
    wanted = gradients(restorable)
    batches = [
        dict(zip(whole, values, strict=True))
        for values in zip(*(x.split(sizes) for x in whole.values()), strict=True)
    ]
    assert needs_shares(batches, 1)
    sums = dict.fromkeys(expected, 0.0)
    for batch, shares in zip(batches, step_shares({"": config}, batches), strict=True):
        outputs = module(**batch, shares=shares)
        (outputs["loss"] / len(batches)).backward()
        for term, value in outputs.items():
            sums[term] += value.detach() / len(batches)
    for term, value in expected.items():
        torch.testing.assert_close(sums[term], value.detach(), rtol=1e-5, atol=1e-6)
    for got, right in zip(gradients(restorable), wanted, strict=True):
        # float32 sums in another order: the error goes with the largest addends, not with each entry
        assert (got - right).norm() <= 1e-5 * right.norm()


def test_processes_are_added_up():
    """Each of two processes knows its own batches alone, and the sum over both."""
    config, whole = ObjectiveConfig(**OBJECTIVES["all"]), batch_of_windows()
    rows = [{name: x[row : row + 1] for name, x in whole.items()} for row in range(4)]
    expected = step_shares({"": config}, rows)
    mine, theirs = rows[:2], rows[2:]
    others = []
    step_shares({"": config}, theirs, lambda counts: others.append(counts) or counts)
    got = step_shares({"": config}, mine, lambda counts: counts + others[0])
    torch.testing.assert_close(torch.stack(got), torch.stack(expected[:2]))


def test_each_part_has_a_mean_of_its_own():
    lm, recall = (ObjectiveConfig(**OBJECTIVES[name]) for name in ("next token", "recall"))
    whole = batch_of_windows()
    rows = [{name: x[row : row + 1] for name, x in whole.items()} for row in range(4)]
    batches = [row | {"part": "a" if index < 2 else "b"} for index, row in enumerate(rows)]
    shares = torch.cat(step_shares({"a": lm, "b": recall}, batches))
    # next tokens: 22 and 8; repeated ones: 7 and 1
    torch.testing.assert_close(shares, torch.tensor([22 / 15, 8 / 15, 7 / 4, 1 / 4]))


def test_a_step_without_any_repeated_token_has_a_loss_of_zero():
    config, whole = ObjectiveConfig(**OBJECTIVES["recall"]), batch_of_windows()
    whole["repeated"] = torch.zeros_like(whole["repeated"])
    batches = [{name: x[row : row + 1] for name, x in whole.items()} for row in range(2)]
    assert all(share.tolist() == [0.0] for share in step_shares({"": config}, batches))


def test_what_counts_alike_is_left_alone():
    plain = [{"input_ids": tiny.tokens(2, 11)}] * 3
    assert not needs_shares(plain, 1) and not needs_shares(plain[:1], 1)
    assert needs_shares([*plain, {"input_ids": tiny.tokens(1, 11)}], 1)
    for share in step_shares({"": ObjectiveConfig(lm_weight=1.0)}, plain):
        assert (share == 1).all()  # to the last bit
