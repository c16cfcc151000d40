"""Reads safetensors files: eight bytes with the header's length, a JSON header, the tensors' data.

The tensors stay in the mapped file, bf16 included, for which numpy has no type. Every offset is checked first.
https://github.com/huggingface/safetensors#format
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

from draftsmith.checkpoint.json_file import parse_json_object, read_json_object
from draftsmith.checkpoint.mapped import map_file
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.errors import CheckpointError, UnsupportedModel
from draftsmith.quant import BlockType

__all__ = ["SafetensorsFiles", "read_safetensors", "read_weights_of_folder"]

MAX_HEADER: Final = 100_000_000  # the limit of the format's reference implementation
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
DTYPES: Final[Mapping[str, BlockType]] = MappingProxyType(
    {"F32": BlockType.F32, "F16": BlockType.F16, "BF16": BlockType.BF16}
)


@dataclass(frozen=True, slots=True, eq=False)
class SafetensorsFiles:
    """The tensors of one or several files, under the files' own names, and a hash of all headers."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    header_sha256: str


def read_weights_of_folder(folder: Path) -> SafetensorsFiles:
    """The weights of a Hugging Face folder: model.safetensors, or the shards that its index lists.

    Raises CheckpointError when a file is missing or damaged, or when the index points outside the folder.
    """
    if (folder / SINGLE).exists():
        return read_safetensors(folder / SINGLE)
    if not (folder / INDEX).exists():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        reason = f"{pickles[0]} is a pickle, which is never read; save" if pickles else "save"
        raise CheckpointError(f"there is no {SINGLE} and no {INDEX} in {folder}; {reason} the model as safetensors")
    index = read_json_object(folder / INDEX)
    weight_map = index.object("weight_map").values
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(f"{index.path} places {name[:80]!r} in {shard!r:.80}; it must name a file beside it")
    shards = {shard: read_safetensors(folder / shard) for shard in sorted(set(weight_map.values()))}
    if not shards:
        raise CheckpointError(f"{index.path} lists no shards; fetch it again")
    tensors = {}
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise CheckpointError(f"{folder / shard} lacks the tensor {name[:120]!r} that {INDEX} places in it")
        tensors[name] = shards[shard].tensors[name]
    hashes = "".join(file.header_sha256 for file in shards.values())
    return SafetensorsFiles(
        files=tuple(folder / shard for shard in shards),
        tensors=MappingProxyType(tensors),
        header_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
    )


def read_safetensors(path: Path) -> SafetensorsFiles:
    """Map one file and read its header. Raises CheckpointError when it is missing, truncated or damaged."""
    content = map_file(path)
    length = struct.unpack("<Q", content[:8].tobytes())[0] if content.size >= 8 else -1
    if not 2 <= length <= min(content.size - 8, MAX_HEADER):
        raise CheckpointError(f"{path} is truncated or not a safetensors file: its header does not fit; fetch it again")
    raw = content[8 : 8 + length].tobytes()
    data = content[8 + length :]
    tensors = {}
    end_of_data = 0
    for name, entry in parse_json_object(raw, f"the header of {path}").items():
        if name != "__metadata__":
            tensors[name] = _locate(name, entry, path, data)
            end_of_data = max(end_of_data, entry["data_offsets"][1])
    if end_of_data != data.size:
        raise CheckpointError(
            f"{path} has {data.size} bytes of data, but its header describes {end_of_data}; fetch it again"
        )
    return SafetensorsFiles((path,), MappingProxyType(tensors), hashlib.sha256(raw).hexdigest())


def _locate(name: str, entry: Any, path: Path, data: npt.NDArray[np.uint8]) -> Tensor:
    """The tensor that one entry of the header describes: {"dtype", "shape", "data_offsets": [start, end]}."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(dtype, str) and _sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise CheckpointError(f"the header of {path} is damaged at the tensor {name[:80]!r}; fetch it again")
    if dtype not in DTYPES:
        raise UnsupportedModel(
            f"the tensor {name[:80]!r} in {path} has the type {dtype[:20]}; {', '.join(DTYPES)} can be read"
        )
    size = math.prod(shape) * DTYPES[dtype].block_bytes
    start, end = offsets
    if end > data.size or end - start != size:
        raise CheckpointError(
            f"{path} is truncated or damaged: the tensor {name[:80]!r} needs {size} bytes at {start} to {end}, and the "
            f"file has {data.size}; fetch it again"
        )
    return Tensor(name, DTYPES[dtype], tuple(shape), data[start:end])


def _sizes(values: Any) -> bool:
    """Whether it is a list of whole numbers from 0 on."""
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values
    )
