"""Floating-point operations that a training step needs.

Counting convention of `step_flops`, for a model-FLOP utilisation of `step_flops / seconds / peak`:

- Matrix products only, two operations a multiply-add. Elementwise work, norms, RoPE, softmax, the
  embedding, clipping and the optimizer count nothing.
- The teacher's forward and the student's forward, each as far as a term of the loss reads it: a pass that
  ends at the last counted attention ends at that layer's queries, keys and values.
- Backward through a frozen matrix: the gradient of its input, one product; through a trained one (LoRA's
  two factors, or direct training): that of the weight as well. Nothing below the first trained matrix.
- Attention: the pairs that a causal mask and a sliding window leave; two products forward, four backward.
- A relation: the same pairs; the scores of teacher and student forward, two products backward (the
  gradient of rows and of columns).
- LM head: the counted positions; teacher, student and the gradient of the student's hidden states.
- Nothing that is computed a second time: layers under gradient checkpointing, scores in the backward pass
  of attention and of relations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from linearard.counting.products import Product, step_products
from linearard.counting.shapes import ModelShape
from linearard.counting.step import Step
from linearard.distill import ObjectiveConfig
from linearard.model import AdapterConfig


def step_flops(
    config: Any,
    objective: ObjectiveConfig,
    tokens: int,
    batch: int,
    *,
    adapter: AdapterConfig | None = None,
    native_window: int | None = None,
) -> int:
    """Operations that one batch needs, forward and backward: see the convention above.

    An optimizer step of several batches (`gradient_accumulation_steps`, processes) needs their sum.

    Args:
        config: the model's `transformers` configuration.
        objective: the terms of the loss.
        tokens: of a sequence.
        batch: sequences.
        adapter: what is trained; default: the paper's LoRA of rank 1024 on q, k and v.
        native_window: tokens the teacher reads at once where logit KL is formed on longer windows;
            default: the configuration's `max_position_embeddings`.

    Raises:
        ModelError: a model whose layers are of an unknown kind.
        RecipeError: the objective names layers the model does not have.
    """
    shape = ModelShape.of(config, AdapterConfig() if adapter is None else adapter)
    native = native_window or int(config.get_text_config().max_position_embeddings)
    return counted_flops(step_products(Step(shape, objective, tokens, batch, native)))


def counted_flops(products: Iterable[Product]) -> int:
    """Operations of those products that count."""
    return sum(product.flops for product in products if product.counted)
