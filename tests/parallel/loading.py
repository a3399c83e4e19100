"""A model that is divided while it is read is the one that is read whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tiny
from linearard.model import AdapterConfig, ModelConfig, RestorableModel, loading_shares
from linearard.model.shares import whole

_ADAPTERS = (AdapterConfig(kind="direct"), AdapterConfig(r=4, alpha=8.0, dropout=0.0))


def compare(folder: Path) -> int:
    """Of two processes: read it both ways, with and without a head of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for tied in (False, True):
        name = str(folder / f"tied-{tied}")
        if dist.get_rank() == 0:
            tiny.save_tiny_base(Path(name), tie_word_embeddings=tied)
        dist.barrier()
        for adapter in _ADAPTERS:
            assert loading_shares.empty_model(ModelConfig(name=name), adapter) is not None
            plain, divided = (_load(name, adapter, sharded) for sharded in (False, True))
            _compare(plain, divided)
    dist.destroy_process_group()
    return 0


def _load(name: str, adapter: AdapterConfig, sharded: bool) -> Any:
    torch.manual_seed(5)  # of LoRA's first factors
    model = ModelConfig(name=name, dtype="float32", device="cpu", sharded=sharded)
    return RestorableModel.load(model, dict(tiny.LINEAR), adapter)


def _compare(plain: Any, divided: Any) -> None:
    assert divided.sharded and not plain.sharded
    assert divided.fingerprint == plain.fingerprint
    found = {name: whole(p) for name, p in divided.model.named_parameters()}
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(found[name], parameter), name
    for view in ("original", "stretched", "restored"):
        with plain.view(view), divided.view(view), torch.no_grad():
            expected, got = (made.model(tiny.tokens(1, 20)).logits for made in (plain, divided))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
