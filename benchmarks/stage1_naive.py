"""Stage 1 as one would first write it: two models, hooks that keep everything, dense KL, eager peft."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.training_step import random_model

_HEADS = 4  # whose dense matrices exist at once


def naive_step(
    model: str, rank: int, tokens: int, *, rounds: int, device: str = "cuda"
) -> tuple[list[float], tuple[float, float]]:
    """Milliseconds of each round after two more, and the first and last loss."""
    from peft import LoraConfig, get_peft_model

    teacher = random_model(model, device).requires_grad_(False)
    student = random_model(model, device)  # the same seed: the same weights
    rotary = student.model.rotary_emb
    rotary.inv_freq /= 8
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["q_proj", "k_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    student = get_peft_model(student, lora)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-5)
    kept = {name: _keep(some) for name, some in (("teacher", teacher), ("student", student))}
    ids = torch.randint(teacher.config.vocab_size, (1, tokens), device=device)

    def step() -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16):
            with torch.no_grad():
                teacher(input_ids=ids, use_cache=False)
            student(input_ids=ids, use_cache=False)
        pairs = list(zip(kept["teacher"](), kept["student"](), strict=True))
        loss = sum(_dense_kl(t, s) for t, s in pairs) / len(teacher.model.layers)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times, losses = [], []
    for turn in range(rounds + 2):
        wait()
        start = time.perf_counter()
        losses.append(float(step()))
        wait()
        if turn >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return times, (losses[0], losses[-1])


def _keep(model: Any) -> Callable[[], list[Tensor]]:
    """Keep q, k, v of every layer; gives them out, q and k rotated, and forgets them."""
    from transformers.models.llama import modeling_llama

    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    outputs: list[Tensor] = []
    rotations: list[tuple[Tensor, Tensor]] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        outputs.append(output.unflatten(-1, (-1, width)).transpose(1, 2))

    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            module.register_forward_hook(keep)
        if name.endswith("rotary_emb"):
            module.register_forward_hook(lambda module, args, output: rotations.append(output))

    def give() -> list[Tensor]:
        found = []
        for q, k, v in zip(outputs[::3], outputs[1::3], outputs[2::3], strict=True):
            found += [*modeling_llama.apply_rotary_pos_emb(q, k, *rotations[-1]), v]
        outputs.clear()
        rotations.clear()
        return found

    return give


def _dense_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean KL of the causal self-relations `[batch, heads, tokens, head_dim]`, a few heads at a time."""
    tokens, width = teacher.shape[2:]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=teacher.device).triu(1)

    def some(t: Tensor, s: Tensor) -> Tensor:
        log_p, log_q = (
            (x @ x.mT / width**0.5).float().masked_fill(hidden, -torch.inf).log_softmax(-1)
            for x in (t, s)
        )
        return torch.where(hidden, 0.0, log_p.exp() * (log_p - log_q)).sum(-1).sum()

    # Computed again in the backward pass: a layer's matrices for all heads would fill the card.
    parts = zip(teacher.split(_HEADS, dim=1), student.split(_HEADS, dim=1), strict=True)
    total = sum(checkpoint(some, t, s, use_reentrant=False) for t, s in parts)
    return total / (teacher.shape[0] * teacher.shape[1] * tokens)
