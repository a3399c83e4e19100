"""Single primitives against plain PyTorch: ``check_NAME(launch, device)`` raises where one is off.

``launch(NAME, blocks, arguments)`` runs a kernel of ``probes.cu``; tensors that it reads through a
tensor map come first.
"""

from __future__ import annotations

import torch


def _tokens(device, seed, heads=1, tokens=128):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, tokens, 128, generator=generator).bfloat16().to(device)


def _agree(what, got, want, tolerance=0.0):
    error = (got - want).abs().max().item()
    if not error <= tolerance:  # NaN is not
        raise AssertionError(f"{what}: off by {error}, allowed {tolerance}")


def _rows(fragment):
    """[64, columns] of what ``show`` wrote, [columns / 8][128 threads][4]."""
    x = fragment.view(-1, 4, 8, 4, 2, 2)  # group of columns, warp, lane / 4, lane % 4, half, pair
    return x.permute(1, 4, 2, 0, 3, 5).reshape(64, -1)


def check_copy(launch, device):
    """A box arrives where the 128-byte swizzle says, zeros beyond the last token."""
    x = _tokens(device, 1, heads=2, tokens=200)
    out = torch.full((2, 128, 8, 8), torch.nan, dtype=torch.bfloat16, device=device)
    launch("copy", 1, (x, out))
    tokens = torch.zeros(128, 128, dtype=torch.bfloat16, device=device)
    tokens[:72] = x[0, 1, 128:]
    row, piece = torch.arange(128)[:, None], torch.arange(8)
    panels = tokens.view(128, 2, 8, 8).transpose(0, 1)  # [panel, row, piece, 8]
    swizzled = panels[:, row, piece ^ row % 8]
    _agree("copy", out.float(), swizzled.float())


def check_products(launch, device, steps=0):
    """Operands: both k-major; left in registers; both with rows along k. D = 128 and 64."""
    x, y = _tokens(device, 2), _tokens(device, 3)
    out = torch.full((4 * 8192 + 3 * 4096,), torch.nan, device=device)
    launch("products", 1, (x, y, out, steps))
    x, y = x[0, 0].double().cpu(), y[0, 0].double().cpu()
    out = out.cpu()
    scores = _rows(out[:8192])
    _agree("scores", scores.double(), x[:64] @ y.T, 1e-3)
    w = scores.bfloat16().double()
    if steps != 1:
        row_part = w @ y
        _agree("left operand in registers", _rows(out[8192:16384]).double(), row_part, 1e-2)
        narrow = _rows(out[32768:36864]).double()
        _agree("left operand in registers, D = 64", narrow, row_part[:, :64], 1e-2)
    if steps == 0:
        column_part = w.T @ x[:64]
        for part in range(2):
            want = column_part[64 * part :][:64]
            got = _rows(out[16384 + 8192 * part :][:8192]).double()
            _agree(f"both with rows along k, {part}", got, want, 1e-2)
            got = _rows(out[36864 + 4096 * part :][:4096]).double()
            _agree(f"both with rows along k, {part}, D = 64", got, want[:, :64], 1e-2)


def check_adds(launch, device):
    """Adds of four numbers, and blocks that wait for each other."""
    blocks = 40 if device == "cuda" else 5
    out = torch.zeros(1024, device=device)
    turn = torch.zeros(1, dtype=torch.int32, device=device)
    launch("adds", blocks, (out, turn))
    _agree("adds", out[:512], torch.full_like(out[:512], blocks))
    want = 0.0
    for block in range(blocks):
        want = float(torch.tensor(2 * want + block, dtype=torch.float32))
    _agree("adds in turns", out[512:], torch.full_like(out[512:], want))
