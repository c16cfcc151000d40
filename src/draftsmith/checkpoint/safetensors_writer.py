"""Writes safetensors files tensor by tensor: eight bytes with the header's length, a JSON header, the data.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from draftsmith.checkpoint.atomic import atomic_file, require_space
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.checkpoint.safetensors_reader import DTYPES
from draftsmith.checkpoint.tensor import WritableTensor

__all__ = ["write_safetensors"]

NAMES: Final = {block_type: name for name, block_type in DTYPES.items()}


def write_safetensors(path: Path, tensors: Iterable[WritableTensor], progress: Progress = no_progress) -> None:
    """Write a file with these tensors, in this order, atomically. Their types must be plain float ones.

    ``progress`` is told the bytes written and their sum. Raises DiskFull and ResourceError as atomic_file does.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.num_bytes
        dtype = NAMES[tensor.block_type]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    require_space(path.parent, len(raw) + end, path.name)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        done = 0
        for tensor in tensors:
            file.write(tensor.data.data)
            done += tensor.num_bytes
            progress(done, end)
