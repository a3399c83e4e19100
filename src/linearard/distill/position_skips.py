"""Skipped positions: a short text read as if far more text stood in its middle.

The teacher reads the text as it is. The student reads it with a jump in its positions, so that what the
teacher finds a few hundred tokens back, the student must find at any distance of the stretched window:
the window's reach at the price of a short text. (LongReD, arXiv 2502.07365, calls a relative of this
short-to-long distillation.)
"""

from __future__ import annotations

import torch


def draw_skip(tokens: int, target_window: int) -> tuple[int, int]:
    """Where the positions jump, and how far.

    Drawn from PyTorch's CPU generator, whose state a checkpoint keeps: a resumed run draws the same.

    Args:
        tokens: of the text; the jump lies somewhere inside.
        target_window: the last position stays below this.
    """
    start = int(torch.randint(1, tokens, ()))
    return start, int(torch.randint(0, max(1, target_window - tokens + 1), ()))
