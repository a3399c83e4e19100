"""Three optimizer steps of one objective, by one process or by two, and what is to be the same of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

import tiny
from linearard.capture import SharedSequence
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import ChunkedCausalLM
from linearard.model.sharding import shard
from linearard.model.shares import whole

_OUTPUT = {"relations": {}, "logit_weight": 1, "logit_positions": None}
#: Objective and tokens of a window: the recommended recipe's, the paper's, and some that are peculiar.
OBJECTIVES: dict[str, tuple[dict[str, Any], int]] = {
    "paper": ({"normalisation": "paper"}, 42),
    "alignment": ({"relations": {"qk": 1}, "inputs": "teacher"}, 42),
    "short": (
        {
            "relations": {"qk": 1, "v": 1},
            "logit_weight": 1,
            "logit_positions": None,
            "hidden_weight": 1,
            "hidden_layers": [-1],
            "lm_weight": 0.3,
            "repeated_weight": 0.3,
        },
        42,
    ),
    "long": ({**_OUTPUT, "teacher_window": 32, "repeated_weight": 3}, 158),
    "read": ({**_OUTPUT, "teacher_window": 64, "lm_weight": 0.4}, 94),
    "last positions": ({"logit_weight": 1, "logit_positions": 10}, 42),
    "first layer": ({"layers": [0]}, 42),
    "skipping": ({"relations": {"qk": 1}, "skip_positions": True}, 42),
    "cpt": ({"relations": {}, "lm_weight": 1}, 158),
}
_ROWS = 4


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        objective: of `OBJECTIVES`.
        kind: of the adapter.
        engine: `ddp`, `fsdp`, `sequence`, or `fsdp+sequence`.
        recompute: whether layers are recomputed.
        key_heads: of the model, which has four query heads.
    """

    objective: str
    kind: str
    engine: str
    recompute: bool = False
    key_heads: int = 2

    @property
    def alone(self) -> Case:
        """The same for one process: an engine changes nothing."""
        return Case(self.objective, self.kind, "one", False, self.key_heads)


# Every objective meets every way of dividing weights, and every kind of adapter every engine.
CASES = [
    *(Case(o, "direct", "fsdp") for o in OBJECTIVES if o not in ("alignment", "read")),
    *(Case(objective, "lora", "fsdp", True) for objective in ("alignment", "read")),
    *(Case(objective, "lora", "fsdp+sequence", True) for objective in OBJECTIVES),
    *(Case(objective, "direct", "ddp") for objective in ("paper", "alignment", "short", "read")),
    *(Case(objective, "direct", "sequence") for objective in ("alignment", "short", "long", "cpt")),
    # Two processes and one key head: it is repeated.
    *(Case(objective, "lora", "sequence", True, 1) for objective in ("paper", "short")),
]


def steps(case: Case, rank: int) -> dict[str, Any]:
    """What came of the three steps: whole tensors.

    `terms` of each step, `[steps, terms]` in the order of the objective; `gradients` of the first step (None:
    there is none), `weights` after the last, and the original's hidden states, `[1, tokens, hidden]`.
    """
    objective, tokens = OBJECTIVES[case.objective]
    made = tiny.tiny_restorable(kind=case.kind, changes={"num_key_value_heads": case.key_heads})
    tiny.perturb_adapter(made, size=0.05)
    if "fsdp" in case.engine:
        shard(made)
    shared = SharedSequence.among(2, made.device) if "sequence" in case.engine else None
    module: Any = RestorationModule(made, ObjectiveConfig(**objective), shared=shared)
    if case.recompute:
        module.gradient_checkpointing_enable()
    if case.engine in ("ddp", "sequence"):
        unused = {"find_unused_parameters": module.leaves_parameters_unused}
        module = torch.nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, **unused
        )
    module.train()
    ids = tiny.tokens(_ROWS, tokens)
    # As many in every row, so that a mean over rows is that over positions.
    repeated = (torch.arange(tokens) % 5 == 3).expand(_ROWS, -1)
    torch.manual_seed(3)  # of skipped positions
    mine = slice(0, _ROWS) if shared or case.engine == "one" else slice(2 * rank, 2 * rank + 2)
    trained = made.adapter.parameters()
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    terms, gradients = [], []
    for step in range(3):
        with made.tap.step():
            found = module(ids[mine], repeated=repeated[mine])
            found["loss"].backward()
        terms.append(torch.stack([term.detach() for term in found.values()]))
        if step == 0:
            gradients = [None if p.grad is None else whole(p.grad) for p in trained]
        optimizer.step()
        optimizer.zero_grad()
    terms = torch.stack(terms)
    if case.engine != "one":
        dist.all_reduce(terms)
        terms /= 2
    result = {"terms": terms, "gradients": gradients, "weights": [whole(p) for p in trained]}
    return result | {"teacher": _teacher(made, ids[:1], shared)}


@torch.no_grad()
def _teacher(made: Any, ids: torch.Tensor, shared: SharedSequence | None) -> torch.Tensor:
    made.model.eval()
    with made.view("original"), made.tap.sharing(shared):
        hidden = ChunkedCausalLM(made.model).hidden(ids, None, shared)
    if shared is None:
        return hidden
    parts = [torch.empty_like(hidden) for _ in range(shared.size)]
    dist.all_gather(parts, hidden.contiguous(), group=shared.group)
    return torch.cat(parts, dim=1)
