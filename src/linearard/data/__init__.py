"""Text sources, token blocks of one length, and their cache."""

from linearard.data.blocks import BlockDataset, token_blocks, token_documents
from linearard.data.config import DataConfig

__all__ = ["BlockDataset", "DataConfig", "token_blocks", "token_documents"]
