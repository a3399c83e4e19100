"""Export: merged weights or adapter, a configuration every reader understands, reload and compare."""

from linearard.export.configuration import exported_rope, write_configuration
from linearard.export.save import FORMATS, check_output, export_model

__all__ = ["FORMATS", "check_output", "export_model", "exported_rope", "write_configuration"]
