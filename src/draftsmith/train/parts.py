"""Replies that a target wrote, with its likeliest tokens at each place: safetensors files of some hundred replies each.

Arrays of a part, n tokens in d documents of which m are learnt: ``ids`` uint32 [n], ``mask`` uint8 [n], ``lengths``
int64 [d], ``top_ids`` uint16 or uint32 [m, k], ``top_logprobs`` float16 [m, k]. The header's metadata names, as JSON,
the vocabulary (``fingerprint``), the target, and the prompts that the part answers (``prompts``, hashes, for resuming).
Two bytes for an id and two for a log-probability: k = 32 takes 128 bytes a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.errors import CheckpointError, TokenizerError
from draftsmith.train.encode import Document

__all__ = ["HELDOUT", "PART_PATTERN", "pack_part", "part_metadata", "read_parts", "write_part"]

PART_PATTERN = "part-*.safetensors"
HELDOUT = "heldout"  # the folder, below the others, of the parts that are not to be trained on
_METADATA = "draftsmith"  # one entry: the format writes several in no certain order


def write_part(path: Path, part: bytes) -> None:
    """Write what ``pack_part`` made, atomically. Raises DiskFull, ResourceError."""
    with atomic_file(path) as file:
        file.write(part)


def pack_part(documents: Sequence[Document], metadata: Mapping[str, Any]) -> bytes:
    """The bytes of one part. All documents have the same k, perhaps none."""
    from safetensors.numpy import save

    arrays: dict[str, Any] = {
        "ids": np.concatenate([document.ids for document in documents]),
        "mask": np.concatenate([document.mask for document in documents]).astype(np.uint8),
        "lengths": np.array([document.ids.size for document in documents], np.int64),
    }
    tops = [document.top_ids for document in documents if document.top_ids is not None]
    logprobs = [document.top_logprobs for document in documents if document.top_logprobs is not None]
    if tops:
        top_ids = np.concatenate(tops)
        arrays["top_ids"] = top_ids.astype(np.uint16) if top_ids.max(initial=0) < 1 << 16 else top_ids
        arrays["top_logprobs"] = np.concatenate(logprobs)
    return save(arrays, metadata={_METADATA: json.dumps(metadata)})


def part_metadata(path: Path) -> dict[str, Any]:
    """The header's metadata. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, Any] = json.loads(file.metadata()[_METADATA])
        if not isinstance(metadata["prompts"], list):
            raise ValueError("prompts is no list")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it and run the generate stage again") from None
    return metadata


def read_parts(path: Path, fingerprint: str) -> Iterator[Document]:
    """The documents of one part. Raises TokenizerError for another vocabulary, CheckpointError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if part_metadata(path).get("fingerprint") != fingerprint:
        raise TokenizerError(f"{path} was written by a target with another vocabulary; generate the replies again")
    try:
        arrays = load_file(path)
        ids, mask, lengths = arrays["ids"], arrays["mask"].astype(np.bool_), arrays["lengths"]
        learnt = np.add.reduceat(mask, np.cumsum(lengths) - lengths, dtype=np.int64)
        top_ids, top_logprobs = arrays.get("top_ids"), arrays.get("top_logprobs")
        whole = lengths.min() > 0 and lengths.sum() == ids.size == mask.size
        if not whole or (top_ids is not None and top_ids.shape[0] != learnt.sum()):
            raise ValueError("the arrays do not fit together")
    except (SafetensorError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it and run the generate stage again") from None
    start = row = 0
    for length, count in zip(lengths.tolist(), learnt.tolist(), strict=True):
        span, rows = slice(start, start + length), slice(row, row + count)
        start, row = start + length, row + count
        if top_ids is None or top_logprobs is None:
            yield Document(ids[span], mask[span])
        else:
            yield Document(ids[span], mask[span], top_ids[rows].astype(np.uint32), top_logprobs[rows])
