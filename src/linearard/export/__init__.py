"""Export: merged weights or adapter, a configuration every reader understands, read back and compared."""

from linearard.export.configuration import exported_rope, write_configuration
from linearard.export.folder import FORMATS, check_output
from linearard.export.merging import MERGE_DTYPES
from linearard.export.reading import ReaderProcess
from linearard.export.save import export_model

__all__ = [
    "FORMATS",
    "MERGE_DTYPES",
    "ReaderProcess",
    "check_output",
    "export_model",
    "exported_rope",
    "write_configuration",
]
