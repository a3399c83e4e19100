"""Which process of a run this is, as a distributed launcher says."""

from __future__ import annotations

import os


def process_index() -> int:
    """Of all processes of the run; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_process_index() -> int:
    """Of those on this machine; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main_process() -> bool:
    """Whether this process speaks for the run."""
    return process_index() == 0
