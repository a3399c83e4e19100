"""Bytes that a step reads and writes outside its matrix products, by phase (docs/concepts/planner.md)."""

from __future__ import annotations

from linearard.counting.shapes import LayerShape, ModelShape
from linearard.counting.step import NOTHING, WHOLE, Step
from linearard.model.packed import BLOCK

#: Bytes an element, of layers of `transformers` in mixed precision, and of fused ones.
#: Norm and rotation: each pass over the float32 copy counts; activation: silu and product.
_PLAIN = {"norm": 36, "rotation": 20, "activation": 10, "adapter": 10}
_FUSED = {"norm": 4, "rotation": 4, "activation": 6, "adapter": 0}
_PLAIN_BACK = {"norm": 74, "rotation": 20, "activation": 26, "adapter": 14}
_FUSED_BACK = {"norm": 6, "rotation": 4, "activation": 10, "adapter": 4}
_OF = {"norm": "norm", "rotation": "attention", "activation": "mlp", "adapter": "attention"}
_RESIDUAL = 6  # read two, write one, twice a layer
#: AdamW reads and writes weight and two moments and reads the gradient; its norm and its clipping read it
#: twice and write it once.
_OPTIMIZER = 40
_CAST = 6
#: Bytes of a weight in 4 bits: half a byte, and a float32 scale for a block of them.
PACKED = 1 / 2 + 4 / BLOCK
_UNPACKED = 2


def step_traffic(step: Step) -> dict[str, float]:
    """Bytes of one batch by phase: `teacher`, `student`, `backward`, `recompute`."""
    shape, rows, own = step.shape, step.rows, step.own_inputs
    windows, window = step.teacher_reads
    ahead, back = (
        {name: (better if _OF[name] in step.fused_parts else plain)[name] for name in _OF}
        for plain, better in ((_PLAIN, _FUSED), (_PLAIN_BACK, _FUSED_BACK))
    )
    found = dict.fromkeys(("teacher", "student", "backward", "recompute"), 0.0)
    for index, layer in enumerate(shape.layers):
        if windows:
            share = _share(step.teacher.runs[index])
            found["teacher"] += step.batch * windows * window * share * _layer(shape, layer, ahead)
        if own:
            runs, needed = _share(step.student.runs[index]), _share(step.student.needed[index])
            forward = rows * (_layer(shape, layer, ahead) + _adapters(shape, layer, ahead))
            found["student"] += runs * forward
            if index in step.recomputed and step.student.runs[index] == WHOLE:
                found["recompute"] += needed * forward
            a_row = _layer(shape, layer, back) + _adapters(shape, layer, back)
            found["backward"] += rows * needed * a_row
        elif index in step.related:
            found["student"] += rows * (_rotation(layer, ahead) + _adapters(shape, layer, ahead))
            found["backward"] += rows * (_rotation(layer, back) + _adapters(shape, layer, back))
    found["student"] += _CAST * shape.trained_parameters
    found["backward"] += _CAST * shape.trained_parameters
    if step.packed:
        layers = len(shape.layers)
        a_layer = (PACKED + _UNPACKED) * shape.packable / layers
        counts = {
            "teacher": layers * (windows > 0),
            "student": layers * own,
            "backward": layers * own,
            "recompute": len(step.recomputed),
        }
        for phase, count in counts.items():
            found[phase] += count * a_layer
    for term in step.objective.output_terms:
        counted = term.positions(step.objective, step.tokens) * step.batch
        found["student"] += term.logit_bytes[step.fused] * counted * shape.vocab
    return found


def optimizer_traffic(shape: ModelShape) -> float:
    """Bytes of clipping, checking and updating all trained weights."""
    return float(_OPTIMIZER * shape.trained_parameters)


def _share(extent: str) -> float:
    """Up to its attention a layer has one of its two norms, and no MLP."""
    return {WHOLE: 1.0, NOTHING: 0.0}.get(extent, 0.3)


def _layer(shape: ModelShape, layer: LayerShape, bytes_of: dict[str, int]) -> float:
    hidden = shape.hidden * 2 * (bytes_of["norm"] + _RESIDUAL)
    attended = 4 * layer.heads * layer.head_dim
    gated = bytes_of["activation"] * shape.intermediate
    return hidden + attended + gated + _rotation(layer, bytes_of)


def _rotation(layer: LayerShape, bytes_of: dict[str, int]) -> float:
    return bytes_of["rotation"] * (layer.heads + layer.kv_heads) * layer.head_dim


def _adapters(shape: ModelShape, layer: LayerShape, bytes_of: dict[str, int]) -> float:
    if not shape.rank:
        return 0.0
    outputs = sum(p.outputs for p in layer.projections if p.trained)
    return float(bytes_of["adapter"] * outputs)
