"""A checkpoint: config, tensors under their canonical names, tokenizer, identity; whatever the file format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from draftsmith.checkpoint.config import ModelConfig
from draftsmith.checkpoint.folder_config import folder_config
from draftsmith.checkpoint.folder_model import settle_embeddings
from draftsmith.checkpoint.gguf_model import gguf_config, gguf_tensors
from draftsmith.checkpoint.gguf_reader import read_gguf
from draftsmith.checkpoint.json_file import read_json_object
from draftsmith.checkpoint.layout import check_tensors
from draftsmith.checkpoint.safetensors_reader import read_weights_of_folder
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.errors import CheckpointError
from draftsmith.provenance import file_sha256

if TYPE_CHECKING:
    from draftsmith.text import Tokenizer

__all__ = ["Checkpoint", "open_checkpoint"]


@dataclass(slots=True, eq=False)
class Checkpoint:
    """An opened checkpoint. Its tensors are views into memory-mapped files.

    ``tensors`` are in the order in which a forward pass uses them, under the names of ``layout.expected_tensors``:
    exactly those, all with the shapes that the config asks for. ``metadata`` is a GGUF file's, empty for folders.
    ``files`` are those that hold the weights. ``fingerprint`` is a cheap identity (hex) of what was opened: of the
    files' real paths, sizes and times, and of all that the config was read from. It changes when a file does.
    """

    path: Path
    kind: Literal["gguf", "folder"]
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    fingerprint: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_bytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    def sha256(self) -> str:
        """Hash (hex) of the weights file in full; of the list of all names and hashes when there are several.

        Reads the files again. Raises CheckpointError when one is gone.
        """
        try:
            hashes = [file_sha256(file) for file in self.files]
        except OSError as error:
            raise CheckpointError(f"{error.filename} cannot be read any more: {error.strerror}") from None
        if len(hashes) == 1:
            return hashes[0]
        lines = "".join(f"{sha}  {file.name}\n" for sha, file in zip(hashes, self.files, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's own tokenizer. Raises TokenizerError when it is missing or damaged."""
        from draftsmith.text import Tokenizer  # slow to import, and not needed to look at weights

        return Tokenizer.from_gguf(self.metadata) if self.kind == "gguf" else Tokenizer.from_folder(self.path)

    def close(self) -> None:
        """Let go of the tensors. The files are unmapped once nobody holds a view of them."""
        self.tensors = MappingProxyType({})

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file or a Hugging Face folder. Weights are not read yet, only mapped.

    Raises CheckpointError when a file is missing, damaged or contradictory, UnsupportedModel when it is well-formed but
    not one of the architectures or block types that we know.
    """
    if not path.exists():
        raise CheckpointError(f"there is no {path}; give a Hugging Face folder or a .gguf file")
    return _open_folder(path) if path.is_dir() else _open_gguf(path)


def _open_folder(path: Path) -> Checkpoint:
    gguf_files = sorted(file.name for file in path.glob("*.gguf"))
    if gguf_files and not (path / "config.json").exists():
        raise CheckpointError(f"{path} is not a Hugging Face folder; give the file in it: {path / gguf_files[0]}")
    described = read_json_object(path / "config.json")
    weights = read_weights_of_folder(path)
    config, tensors = settle_embeddings(folder_config(described), weights.tensors)
    header = json.dumps(described.values, sort_keys=True) + weights.header_sha256
    return Checkpoint(
        path=path,
        kind="folder",
        config=config,
        tensors=MappingProxyType(check_tensors(config, tensors, path)),
        files=weights.files,
        fingerprint=_fingerprint(weights.files, header),
    )


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    config = gguf_config(file)
    return Checkpoint(
        path=path,
        kind="gguf",
        config=config,
        tensors=MappingProxyType(check_tensors(config, gguf_tensors(file, config), path)),
        files=(path,),
        fingerprint=_fingerprint((path,), file.header_sha256),
        metadata=file.metadata,
    )


def _fingerprint(files: tuple[Path, ...], header: str) -> str:
    digest = hashlib.sha256(header.encode())
    for file in files:
        real = file.resolve()
        stat = real.stat()
        digest.update(f"\n{real}\t{stat.st_size}\t{stat.st_mtime_ns}".encode())
    return digest.hexdigest()
