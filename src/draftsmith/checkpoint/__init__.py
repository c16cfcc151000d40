"""Model files: references, config, tensor names, and reading and writing GGUF and safetensors.

resolve(reference) -> path -> open_checkpoint(path) -> Checkpoint(config, tensors, tokenizer())
"""

from draftsmith.checkpoint.checkpoint import Checkpoint, open_checkpoint
from draftsmith.checkpoint.config import ModelConfig, RopeConfig
from draftsmith.checkpoint.progress import Progress
from draftsmith.checkpoint.reference import ResolvedModel, resolve
from draftsmith.checkpoint.rope import rope_frequencies
from draftsmith.checkpoint.tensor import Tensor

__all__ = [
    "Checkpoint",
    "ModelConfig",
    "Progress",
    "ResolvedModel",
    "RopeConfig",
    "Tensor",
    "open_checkpoint",
    "resolve",
    "rope_frequencies",
]
