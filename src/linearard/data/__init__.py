"""Text sources, token blocks of one length, and their cache."""

from linearard.data.blocks import BlockDataset, token_blocks, token_documents
from linearard.data.config import DataConfig
from linearard.data.progress import progress_bar
from linearard.data.tokens import Documents, beginning

__all__ = [
    "BlockDataset",
    "DataConfig",
    "Documents",
    "beginning",
    "progress_bar",
    "token_blocks",
    "token_documents",
]
