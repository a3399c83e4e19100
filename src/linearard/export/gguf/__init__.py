"""Export to GGUF: one file that llama.cpp and Ollama run with the trained RoPE and without flags."""

from linearard.export.gguf.check import check_gguf
from linearard.export.gguf.export import export_gguf
from linearard.export.gguf.formats import GGUF_TYPES
from linearard.export.gguf.llamacpp import llama_cpp_logits, llama_cpp_version
from linearard.export.gguf.options import GgufOptions
from linearard.export.gguf.read_back import GgufRotation, gguf_rotation
from linearard.export.gguf.write import write_gguf

__all__ = [
    "GGUF_TYPES",
    "GgufOptions",
    "GgufRotation",
    "check_gguf",
    "export_gguf",
    "gguf_rotation",
    "llama_cpp_logits",
    "llama_cpp_version",
    "write_gguf",
]
