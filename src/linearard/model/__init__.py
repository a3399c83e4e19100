"""Loading a model, its three views, and restored models on disk."""

from linearard.model.adapters import Adapter, AdapterConfig
from linearard.model.causal_lm import LOGIT_ELEMENTS, ChunkedCausalLM, Views
from linearard.model.checkpoint import (
    METADATA_FILE,
    UNFINISHED,
    check_undamaged,
    load_restored,
    load_weights,
    read_metadata,
    save_checkpoint,
    write_checkpoint,
)
from linearard.model.disk_space import check_can_be_made, check_room, room_for_checkpoint
from linearard.model.fused import sharing_projections
from linearard.model.generating import has_whole_cache, plain_generation
from linearard.model.load import (
    ModelConfig,
    check_tokenizer,
    gguf_path,
    load_config,
    load_model,
    load_tokenizer,
    names_gguf,
    resolve_device,
    resolve_dtype,
)
from linearard.model.magnitudes import check_weights, out_of_range
from linearard.model.naming import display_name
from linearard.model.packed import check_packing, is_packed
from linearard.model.pinned_transfer import Moving, pinned_like, to_device, to_host
from linearard.model.restorable import RestorableModel, check_trainable
from linearard.model.supported import check_supported, empty_model

__all__ = [
    "LOGIT_ELEMENTS",
    "METADATA_FILE",
    "UNFINISHED",
    "Adapter",
    "AdapterConfig",
    "ChunkedCausalLM",
    "ModelConfig",
    "Moving",
    "RestorableModel",
    "Views",
    "check_can_be_made",
    "check_packing",
    "check_room",
    "check_supported",
    "check_tokenizer",
    "check_trainable",
    "check_undamaged",
    "check_weights",
    "display_name",
    "empty_model",
    "gguf_path",
    "has_whole_cache",
    "is_packed",
    "load_config",
    "load_model",
    "load_restored",
    "load_tokenizer",
    "load_weights",
    "names_gguf",
    "out_of_range",
    "pinned_like",
    "plain_generation",
    "read_metadata",
    "resolve_device",
    "resolve_dtype",
    "room_for_checkpoint",
    "save_checkpoint",
    "sharing_projections",
    "to_device",
    "to_host",
    "write_checkpoint",
]
