"""Which learning rate restores a model best, by its width: small Llamas, trained here on bytes of books.

    python -m benchmarks width --text BOOKS/ --out FILE.json

Each width is trained once with next-token loss, stretched linearly by 8 and restored at every rate: values,
attention and output distributions of the original, the objective of `smollm2-135m-64k` on short text. All
but the width is the same: depth, head_dim, batches, steps, schedule. The figure is KL to the original on
text that neither training saw.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.record import add_arguments, circumstances, write
from linearard.distill import ObjectiveConfig, RestorationModule
from linearard.model import AdapterConfig, RestorableModel

WINDOW, HEAD_DIM, LAYERS, FACTOR = 256, 32, 4, 8
ROPE = {"rope_type": "linear", "factor": FACTOR}
OBJECTIVE = {"relations": {"qk": 1, "v": 1}, "logit_weight": 1, "logit_positions": None}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks width", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt files")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    rates = [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    parser.add_argument("--rates", type=float, nargs="+", default=rates)
    parser.add_argument("--steps", type=int, nargs=2, default=[1000, 100], help="of both trainings")
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    windows = _windows(options.text).to(device)
    held_out, windows = windows[:64], windows[64:]
    pretrain, restore = options.steps
    result: dict[str, Any] = circumstances(options.commit, device) | {"rope": ROPE, "widths": {}}
    result |= {"steps": pretrain, "restoration_steps": restore, "batch": options.batch}
    for width in options.widths:
        start = time.monotonic()
        base, loss = _pretrained(width, windows[: pretrain * options.batch], options.batch)
        rest = windows[pretrain * options.batch :][: restore * options.batch]
        found: dict[str, Any] = {"loss": loss, "untrained_kl": None, "kl": {}}
        for rate in options.rates:
            before, after = _restored(base, rest, held_out, rate, options.batch)
            found["untrained_kl"], found["kl"][f"{rate:g}"] = before, after
            print(f"width {width}, rate {rate:g}: KL {before:.4f} to {after:.4f}", flush=True)
        result["widths"][str(width)] = found | {"seconds": round(time.monotonic() - start, 1)}
        write(options.out, result)


def _windows(folder: Path) -> Tensor:
    """Windows of bytes from all files, in an order drawn once: int64 `[windows, WINDOW]`."""
    paths = sorted(folder.glob("*.txt"))
    read = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    cut = torch.cat([text[: len(text) // WINDOW * WINDOW].view(-1, WINDOW) for text in read])
    return cut[torch.randperm(len(cut), generator=torch.Generator().manual_seed(0))].long()


def _pretrained(width: int, windows: Tensor, batch: int) -> tuple[LlamaForCausalLM, float]:
    """A model trained to predict these windows once, and its loss on the last tenth."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD_DIM,
        num_key_value_heads=width // HEAD_DIM,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(windows.device)
    losses: list[float] = []

    def loss(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        value = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(value.item())
        return value

    # As usual for models of this size; the wider, the smaller the steps.
    _train(list(model.parameters()), 3e-3 * (64 / width) ** 0.5, windows, batch, loss)
    last = losses[-len(losses) // 10 :]
    return model.eval(), sum(last) / len(last)


def _restored(
    base: LlamaForCausalLM, windows: Tensor, held_out: Tensor, rate: float, batch: int
) -> tuple[float, float]:
    """KL to the original before and after restoring a copy at this rate."""
    restorable = RestorableModel(copy.deepcopy(base), None, ROPE, AdapterConfig(kind="direct"))
    module = RestorationModule(restorable, ObjectiveConfig(**OBJECTIVE))
    before = _kl(restorable, held_out)
    _train(restorable.adapter.parameters(), rate, windows, batch, lambda ids: module(ids)["loss"])
    return before, _kl(restorable, held_out)


def _train(parameters: list, rate: float, windows: Tensor, batch: int, loss: Any) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    steps = len(windows) // batch
    for step, ids in enumerate(windows.split(batch)[:steps]):
        falling = 0.55 + 0.45 * math.cos(math.pi * step / steps)  # to a tenth
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / 8, falling)
        optimizer.zero_grad()
        loss(ids).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()


@torch.no_grad()
def _kl(restorable: RestorableModel, windows: Tensor) -> float:
    found = []
    for name in ("original", "restored"):
        with restorable.view(name) as model:
            logits = model(input_ids=windows, use_cache=False).logits.float()
            found.append(logits.log_softmax(-1))
    teacher, student = found
    return (teacher.exp() * (teacher - student)).sum(-1).mean().item()
