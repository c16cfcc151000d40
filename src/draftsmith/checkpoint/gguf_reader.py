"""Reads GGUF files, versions 2 and 3, little-endian, as the format's specification lays them out:

magic, version, number of tensors, number of metadata entries; the entries (key, type, value); the tensors' names,
shapes, types and offsets; padding; the tensors' data. Every length, count and offset comes from a file that may be
damaged or hostile, so each is checked against what the file can hold before it is used.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint.mapped import map_file
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.errors import CheckpointError, UnsupportedModel
from draftsmith.quant import BlockType

__all__ = ["GGUF_MAGIC", "GGUFFile", "read_gguf"]

GGUF_MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
MAX_ENTRIES: Final = 1 << 16  # metadata entries or tensors; real files have hundreds
MAX_ARRAY: Final = 1 << 22  # items of a metadata array; the largest real ones are vocabularies of some 300,000
MAX_NAME: Final = 1 << 16  # bytes of a key

# Type id in the file -> struct code of a scalar. 7 is a boolean, 8 a string, 9 an array.
SCALARS: Final[Mapping[int, str]] = MappingProxyType(
    {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
)
STRING: Final = 8
ARRAY: Final = 9


@dataclass(frozen=True, slots=True, eq=False)
class GGUFFile:
    """A file's content. ``metadata`` values are int, float, bool, str, or tuples of one of these.

    ``tensors`` have the file's own names and row order. ``header_sha256`` is the hash of all bytes before the data.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    header_sha256: str


def read_gguf(path: Path) -> GGUFFile:
    """Map the file and read its header; the tensors' data stays on disk until it is used.

    Raises CheckpointError when the file is missing, truncated or damaged, UnsupportedModel when it is a GGUF file of a
    version, layout or block type that we do not read.
    """
    content = map_file(path)
    cursor = _Cursor(path, content)
    if cursor.take(4) != GGUF_MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        kind = "big-endian or damaged" if version & 0xFFFF == 0 else f"of version {version}"
        raise UnsupportedModel(f"{path} is a GGUF file {kind}; versions 2 and 3, little-endian, can be read")
    num_tensors = cursor.count("tensors", smallest_item=24, at_most=MAX_ENTRIES)
    num_entries = cursor.count("metadata entries", smallest_item=13, at_most=MAX_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.string(MAX_NAME)
        if key in metadata:
            raise CheckpointError(f"{path} is damaged: the metadata key {key[:80]!r} occurs twice")
        metadata[key] = cursor.value(cursor.scalar("<I"))
    infos = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{path} states an alignment of {alignment!r}; it must be a power of two")
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for info in infos:
        if info.name in tensors:
            raise CheckpointError(f"{path} is damaged: the tensor {info.name} occurs twice")
        tensors[info.name] = _locate(info, path, content, data_start, alignment)
    return GGUFFile(
        path=path,
        version=version,
        metadata=MappingProxyType(metadata),
        tensors=MappingProxyType(tensors),
        header_sha256=hashlib.sha256(content[: cursor.position].data).hexdigest(),
    )


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]  # outermost dimension first, unlike in the file
    type_id: int
    offset: int  # from the start of the data


def _read_tensor_info(cursor: _Cursor) -> _TensorInfo:
    name = cursor.string(MAX_NAME)
    num_dims = cursor.scalar("<I")
    if not 1 <= num_dims <= 4:
        raise CheckpointError(f"{cursor.path} is damaged: the tensor {name[:80]!r} has {num_dims} dimensions")
    dims = [cursor.scalar("<Q") for _ in range(num_dims)]
    while len(dims) > 2 and dims[-1] == 1:
        dims.pop()
    return _TensorInfo(name, tuple(reversed(dims)), cursor.scalar("<I"), cursor.scalar("<Q"))


def _locate(info: _TensorInfo, path: Path, content: npt.NDArray[np.uint8], data_start: int, alignment: int) -> Tensor:
    """The tensor whose bytes the header points to. Sizes are Python integers, which cannot overflow."""
    try:
        block_type = BlockType.from_ggml_id(info.type_id)
        row_bytes = block_type.row_bytes(info.shape[-1])
    except CheckpointError as error:
        raise type(error)(f"{path}, tensor {info.name[:80]!r}: {error}") from None
    if len(info.shape) > 3 or min(info.shape) < 1:
        raise UnsupportedModel(
            f"the tensor {info.name[:80]!r} in {path} has the shape {info.shape}; only vectors, matrices and the "
            "matrices of several experts can be read"
        )
    size = math.prod(info.shape[:-1]) * row_bytes
    start = data_start + info.offset
    if info.offset % alignment:
        raise CheckpointError(f"{path} is damaged: the tensor {info.name[:80]!r} is not aligned to {alignment} bytes")
    if start + size > content.size:
        raise CheckpointError(
            f"{path} is truncated: the tensor {info.name[:80]!r} ends at byte {start + size}, but the file has "
            f"{content.size} bytes; fetch it again"
        )
    return Tensor(info.name, block_type, info.shape, content[start : start + size])


class _Cursor:
    """Reads forward through a file's header; refuses to pass the end of the file."""

    def __init__(self, path: Path, content: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.position = 0
        self._buffer = content.data
        self._size = content.size

    def _need(self, num_bytes: int) -> None:
        if num_bytes > self._size - self.position:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: its header needs {num_bytes} bytes at byte {self.position}, "
                f"but the file has {self._size} bytes; fetch it again"
            )

    def take(self, num_bytes: int) -> bytes:
        self._need(num_bytes)
        start, self.position = self.position, self.position + num_bytes
        return bytes(self._buffer[start : self.position])

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, what: str, smallest_item: int, at_most: int) -> int:
        """A number of items of at least ``smallest_item`` bytes each, which the rest of the file can hold."""
        number: int = self.scalar("<Q")
        if number > at_most or number * smallest_item > self._size - self.position:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: it states {number} {what}, more than it can hold"
            )
        return number

    def string(self, at_most: int = 1 << 26) -> str:
        return self._decode(self.take(self.count("bytes of text", 1, at_most)))

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path} is damaged: a text near byte {self.position} is not UTF-8") from None

    def value(self, type_id: int) -> Any:
        """A metadata value of the given type."""
        if type_id == STRING:
            return self.string()
        if type_id == ARRAY:
            return self._array()
        code = SCALARS.get(type_id)
        if code is None:
            raise CheckpointError(f"{self.path} is damaged: a metadata value has the unknown type {type_id}")
        return self.scalar(code)

    def _array(self) -> tuple[Any, ...]:
        item_type = self.scalar("<I")
        if item_type == STRING:
            return self._strings(self.count("texts in an array", 8, MAX_ARRAY))
        code = SCALARS.get(item_type)
        if code is None:
            kind = "an array of arrays" if item_type == ARRAY else f"an array of the unknown type {item_type}"
            raise CheckpointError(f"{self.path} holds {kind} in its metadata, which cannot be read")
        dtype = np.dtype(code)
        number = self.count("numbers in an array", dtype.itemsize, MAX_ARRAY)
        return tuple(np.frombuffer(self.take(number * dtype.itemsize), dtype).tolist())

    def _strings(self, number: int) -> tuple[str, ...]:
        """``number`` strings in a row. Vocabularies have hundreds of thousands, so the loop is written out."""
        unpack, buffer, size, position = struct.Struct("<Q").unpack_from, self._buffer, self._size, self.position
        strings = []
        try:
            for _ in range(number):
                start = position + 8
                if start > size:
                    raise IndexError
                (length,) = unpack(buffer, position)
                position = start + length
                if position > size:
                    raise IndexError
                strings.append(str(buffer[start:position], "utf-8"))
        except IndexError:
            raise CheckpointError(f"{self.path} is truncated or damaged: a text in an array passes its end") from None
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path} is damaged: a text near byte {position} is not UTF-8") from None
        self.position = position
        return tuple(strings)
