"""The relations of a layer together: to the bit what each gives alone, which the oracle checks."""

from __future__ import annotations

from dataclasses import replace

import torch
from relation_oracle import Case, draw, draw_weights, poisoned_buffers

from linearard.ops.relation_kl import attention_kl, layer_relation_kl, relation_kl

#: Heads of queries, keys and values: grouped, one each, more relations than a launch takes.
HEADS = (
    {"q": 4, "k": 2, "v": 2},
    {"v": 1, "q": 3},
    {"q": 2, "k": 2, "v": 1, "gate": 3, "qk": (4, 2)},
)


def check_layer(
    case: Case,
    heads: dict[str, int | tuple[int, int]],
    implementation: str,
    dtype=torch.float32,
    device="cpu",
    frozen=(),
    unused=(),
):
    """Values and gradients of one call and of a call each agree to the bit.

    ``heads`` by relation, (H, Hkv) for attention; students of ``frozen`` want no gradient, and
    nothing is made of the rows of ``unused``.
    """
    drawn = {}
    for i, (name, count) in enumerate(heads.items()):
        h, kv = count if isinstance(count, tuple) else (count, None)
        *drawn[name], valid = draw(
            replace(case, heads=h, kv_heads=kv, seed=case.seed + 7 * i), dtype, device
        )
    generator = torch.Generator().manual_seed(case.seed + 2)
    padding = valid  # of the last one drawn: "holes" differ from seed to seed
    options = {
        **case.options(padding),
        "reduction": "none",
        "implementation": implementation,
        "row_weights": None
        if case.weights is None
        else draw_weights(replace(case, weights=(*case.weights[:1], False, True)), device),
    }
    upstream = {
        name: torch.randn(x[0].shape[:3], generator=generator).to(device)
        for name, x in drawn.items()
    }

    def leaves(name):
        q_t, k_t, q_s, k_s = drawn[name]
        wanted = name not in frozen
        q = q_s.detach().clone().requires_grad_(wanted)
        if k_s is q_s:
            return (q_t, q), [q] * wanted
        k = k_s.detach().clone().requires_grad_(wanted)
        return (q_t, k_t, q, k), [q, k] * wanted

    def gradients(rows, wanted):
        made = [name for name in rows if name not in unused and wanted[name]]
        return torch.autograd.grad(
            [rows[name] for name in made],
            [x for name in wanted for x in wanted[name]],
            [upstream[name] for name in made],
            allow_unused=True,
        )

    results = []
    for together in (True, False):
        given = {name: leaves(name) for name in drawn}
        operands = {name: x[0] for name, x in given.items()}
        with poisoned_buffers():
            if together:
                rows = layer_relation_kl(operands, **options)
            else:
                rows = {
                    name: (relation_kl if len(x) == 2 else attention_kl)(*x, **options)
                    for name, x in operands.items()
                }
            results.append((rows, gradients(rows, {name: x[1] for name, x in given.items()})))
    (rows, grads), (rows_alone, grads_alone) = results
    assert list(rows) == list(heads)
    for name, own in rows.items():
        assert torch.equal(own, rows_alone[name]), f"rows of {name}"
    for i, (own, alone) in enumerate(zip(grads, grads_alone, strict=True)):
        assert (own is None) == (alone is None)
        assert own is None or torch.equal(own, alone), f"gradient {i}"
