"""A checkpoint: config, tensors under their canonical names, tokenizer, identity; whatever the file format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from draftsmith.checkpoint.config import ModelConfig
from draftsmith.checkpoint.tensor import Tensor

if TYPE_CHECKING:
    from draftsmith.text import Tokenizer

__all__ = ["Checkpoint"]


class Checkpoint(Protocol):
    """An opened checkpoint (signatures; the class follows)."""

    path: Path
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    fingerprint: str

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's own tokenizer."""
        ...

    def sha256(self) -> str:
        """Hash of all weights files, in full."""
        ...

    def close(self) -> None:
        """Unmap the files."""
        ...
