"""Export: merged weights or adapter, a configuration every reader understands, read back and compared."""

from linearard.export.card import Story, write_card
from linearard.export.configuration import write_configuration
from linearard.export.folder import FORMATS, check_output
from linearard.export.merging import MERGE_DTYPES
from linearard.export.reading import ReaderProcess
from linearard.export.representation import exported_rope
from linearard.export.save import export_model
from linearard.export.uploading import Push, plan_push, push_export

__all__ = [
    "FORMATS",
    "MERGE_DTYPES",
    "Push",
    "ReaderProcess",
    "Story",
    "check_output",
    "export_model",
    "exported_rope",
    "plan_push",
    "push_export",
    "write_card",
    "write_configuration",
]
