"""The packed form of a checkpoint on disk: what the engine maps into memory, made once for each checkpoint and storage.

    8 bytes   "DSPACK" and the version of the layout, two digits
    8 bytes   length of the header, little-endian
    header    JSON: {"source": path, "fingerprint": hex, "tensors": {name: [ggml type, rows, cols, offset]}}
    tensors   each at its offset from the start of the file, a multiple of 64; tiles as in native/formats.hpp

It is a cache: it can be deleted at any time, a damaged one is made again, and the pages of the mapped file are shared
by all processes that run the model. Where none can be kept, the packed weights live in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint import Checkpoint
from draftsmith.checkpoint.cache_dir import cache_dir
from draftsmith.errors import DiskFull, OutOfMemory
from draftsmith.model._native import ThreadTeam, pack, packed_size
from draftsmith.model.storage import Dtype, Quantize, storage_type, stored_blocks
from draftsmith.quant import BlockType

__all__ = ["PackedModel", "load_packed"]

VERSION = 2
MAGIC = b"DSPACK%02d" % VERSION
MAX_HEADER = 1 << 26  # bytes; a longer one is damaged
LINE = 64  # alignment that the kernels want
TEMPORARY = ".packing-"
ABANDONED = 24 * 3600.0  # seconds: no model takes a day to pack

Entry = tuple[int, int, int, int]  # ggml type, rows, cols, offset
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class PackedModel:
    """``tensors``: where each one lies in ``data``, the bytes of the whole file, mapped (or in plain memory)."""

    tensors: Mapping[str, Entry]
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Layout:
    header: bytes  # everything before the tensors
    tensors: dict[str, Entry]
    size: int  # of the file


def load_packed(
    checkpoint: Checkpoint, quantize: Quantize | None, dtype: Dtype, team: ThreadTeam, progress: Progress | None = None
) -> PackedModel:
    """The packed form from the cache, or made and put there. ``progress(done, total)`` counts bytes while packing.

    Raises UsageError for a storage that would round the weights twice, DiskFull when the cache's disk has no room,
    OutOfMemory when there can be no cache and memory does not suffice.
    """
    types = {name: storage_type(tensor, quantize, dtype) for name, tensor in checkpoint.tensors.items()}
    fingerprint = checkpoint.fingerprint
    choice = json.dumps({name: block_type.name for name, block_type in types.items()}, sort_keys=True)
    key = hashlib.sha256(MAGIC + fingerprint.encode() + choice.encode()).hexdigest()[:32]
    path = cache_dir() / "packed" / f"{key}.dspack"
    if (found := _open(path, checkpoint, types)) is not None:
        return found
    layout = _plan(checkpoint, types, fingerprint)
    if _writable(path.parent):
        _remove_outdated(path.parent, checkpoint, fingerprint)
        _write(path, checkpoint, types, layout, team, progress)
        if (made := _open(path, checkpoint, types)) is not None:
            return made
    return _in_memory(checkpoint, types, layout, team, progress)


def _writable(folder: Path) -> bool:
    """Whether files can be made in the folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:  # no permission, a read-only disk, a file where a folder should be
        return False


def _in_memory(
    checkpoint: Checkpoint, types: Mapping[str, BlockType], layout: _Layout, team: ThreadTeam, progress: Progress | None
) -> PackedModel:
    try:
        data = np.empty(layout.size + LINE, np.uint8)
    except MemoryError as error:
        raise OutOfMemory(
            f"there is not enough memory for the packed weights of {checkpoint.path.name} "
            f"({layout.size / 1e6:.0f} MB); set DRAFTSMITH_CACHE to a folder that can be written"
        ) from error
    data = data[-data.ctypes.data % LINE :][: layout.size]
    _fill(data, checkpoint, types, layout, team, progress)
    return PackedModel(layout.tensors, data)


def _plan(checkpoint: Checkpoint, types: Mapping[str, BlockType], fingerprint: str) -> _Layout:
    shapes = {name: (tensor.num_rows, tensor.shape[-1]) for name, tensor in checkpoint.tensors.items()}
    sizes = {name: _stored_size(types[name], checkpoint.tensors[name].shape) for name in shapes}

    def entries(start: int) -> tuple[dict[str, Entry], int]:
        tensors: dict[str, Entry] = {}
        for name, (rows, cols) in shapes.items():
            tensors[name] = (types[name].ggml_id, rows, cols, start)
            start += (sizes[name] + LINE - 1) // LINE * LINE
        return tensors, start

    def header(tensors: dict[str, Entry]) -> bytes:
        described = {"source": str(checkpoint.path.resolve()), "fingerprint": fingerprint, "tensors": tensors}
        text = json.dumps(described).encode()
        return MAGIC + len(text).to_bytes(8, "little") + text

    # The offsets are in the header whose length they depend on: leave room for their longest form.
    room = len(header(entries(1 << 50)[0]))
    first = (room + 4095) // 4096 * 4096
    tensors, size = entries(first)
    return _Layout(header(tensors), tensors, size)


def _stored_size(block_type: BlockType, shape: tuple[int, ...]) -> int:
    return shape[0] * 4 if len(shape) == 1 else packed_size(block_type.ggml_id, shape[0], shape[1])


def _fill(
    data: npt.NDArray[np.uint8],
    checkpoint: Checkpoint,
    types: Mapping[str, BlockType],
    layout: _Layout,
    team: ThreadTeam,
    progress: Progress | None,
) -> None:
    data[: len(layout.header)] = np.frombuffer(layout.header, np.uint8)
    for name, tensor in checkpoint.tensors.items():
        ggml_type, rows, cols, offset = layout.tensors[name]
        target = data[offset : offset + _stored_size(types[name], tensor.shape)]
        blocks = stored_blocks(tensor, types[name])
        if len(tensor.shape) == 1:
            target[:] = blocks
        else:
            pack(ggml_type, rows, cols, blocks, target, team)
        if progress is not None:
            progress(offset + target.size, layout.size)


def _write(
    path: Path,
    checkpoint: Checkpoint,
    types: Mapping[str, BlockType],
    layout: _Layout,
    team: ThreadTeam,
    progress: Progress | None,
) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "r+b") as file:
            _take_room(file.fileno(), layout.size, path, checkpoint)
            _fill_mapped(file.fileno(), checkpoint, types, layout, team, progress)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _fill_mapped(
    handle: int,
    checkpoint: Checkpoint,
    types: Mapping[str, BlockType],
    layout: _Layout,
    team: ThreadTeam,
    progress: Progress | None,
) -> None:
    # Not closed here: that would fail while an error on its way out holds on to views of it, and hide the error.
    mapped = mmap.mmap(handle, layout.size)
    _fill(np.frombuffer(mapped, np.uint8), checkpoint, types, layout, team, progress)
    mapped.flush()


def _take_room(handle: int, size: int, path: Path, checkpoint: Checkpoint) -> None:
    """Ask for the disk space first: writing to a mapped file on a full disk would kill the process."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        raise DiskFull(
            f"{path.parent} has no room for the packed weights of {checkpoint.path.name} ({size / 1e6:.0f} MB); free "
            "some or set DRAFTSMITH_CACHE to another disk"
        ) from error


def _read_header(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + 8)
            length = int.from_bytes(start[len(MAGIC) :], "little")
            if len(start) != len(MAGIC) + 8 or not start.startswith(MAGIC) or length > MAX_HEADER:
                return None
            header = json.loads(file.read(length))
            return header if isinstance(header, dict) else None
    except (OSError, ValueError):
        return None


def _open(path: Path, checkpoint: Checkpoint, types: Mapping[str, BlockType]) -> PackedModel | None:
    """Map a packed file; None when there is none, or it is damaged or too short: then it has to be made again.

    Reading beyond the end of a mapped file would kill the process.
    """
    header = _read_header(path)
    if header is None:
        return None
    try:
        tensors = {str(name): _entry(value) for name, value in header["tensors"].items()}
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (KeyError, AttributeError, TypeError, ValueError, OSError):
        return None
    if tensors.keys() != types.keys():
        return None
    for name, (ggml_type, rows, cols, offset) in tensors.items():
        tensor, block_type = checkpoint.tensors[name], types[name]
        if (ggml_type, rows, cols) != (block_type.ggml_id, tensor.num_rows, tensor.shape[-1]):
            return None
        if offset < 0 or offset % LINE or _stored_size(block_type, tensor.shape) > len(mapped) - offset:
            return None
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)  # from a disk the first step would wait for page after page
    return PackedModel(tensors, np.frombuffer(mapped, np.uint8))


def _entry(value: Any) -> Entry:
    ggml_type, rows, cols, offset = (int(number) for number in value)
    return ggml_type, rows, cols, offset


def _remove_outdated(folder: Path, checkpoint: Checkpoint, fingerprint: str) -> None:
    """Delete what no checkpoint needs any more: its source is gone, or this very file has changed since.

    Also what a process that was killed while it packed has left. Another process may be at it, too: no matter.
    """
    source = str(checkpoint.path.resolve())
    with contextlib.suppress(OSError):
        for path in folder.glob("*.dspack"):
            header = _read_header(path) or {}
            changed = header.get("source") == source and header.get("fingerprint") != fingerprint
            if changed or not Path(str(header.get("source"))).exists():
                path.unlink(missing_ok=True)
        for path in folder.glob(f"{TEMPORARY}*"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)
