"""One GGUF file with weights, tokenizer and chat template, as llama.cpp and what is built on it read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.checkpoint.tensor import LazyTensor
from draftsmith.errors import TokenizerError
from draftsmith.export.source import Source
from draftsmith.export.weights import Weight, encoded
from draftsmith.quant import ENCODABLE, BlockType
from draftsmith.text import Tokenizer
from draftsmith.text.probe import differing_line

__all__ = ["GGUF_TYPES", "gguf_type", "write_gguf_export"]

GGUF_TYPES: Final[Mapping[str, BlockType]] = MappingProxyType({kind.name.lower(): kind for kind in ENCODABLE})

# What llama.cpp calls a file most of whose weights have the type (``general.file_type``, llama.h's llama_ftype).
_FILE_TYPES: Final[Mapping[BlockType, int]] = MappingProxyType(
    {
        BlockType.F32: 0,
        BlockType.F16: 1,
        BlockType.Q4_0: 2,
        BlockType.Q4_1: 3,
        BlockType.Q8_0: 7,
        BlockType.Q4_K: 14,
        BlockType.BF16: 32,
    }
)
_OWN_KEYS: Final = ("architecture", "file_type", "quantization_version", "alignment")


def gguf_type(weight: Weight, wanted: BlockType | None) -> BlockType:
    """How a weight is stored in a file of the type ``wanted``, or as it is for None.

    Vectors are F32. The embedding and the output layer meet every token; at 4 bits they cost more quality than all
    other matrices, so they get 8. Rows that the blocks do not divide get the next type that can hold them.
    """
    if len(weight.shape) == 1:
        return BlockType.F32
    if wanted is None:
        wanted = weight.stored.block_type if weight.stored is not None else BlockType.Q8_0
    elif wanted.is_quantized and wanted.bits_per_weight < 8 and weight.name in (EMBEDDING, OUTPUT):
        wanted = BlockType.Q8_0
    for block_type in (wanted, BlockType.Q4_1 if wanted is BlockType.Q4_K else BlockType.Q8_0):
        if weight.shape[1] % block_type.block_size == 0:
            return block_type
    return BlockType.F16


def write_gguf_export(
    source: Source, out: Path, wanted: BlockType | None = None, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the file, atomically; what became of the weights, for people: types, sizes, notes.

    Raises TokenizerError when GGUF cannot state the tokenizer, UnsupportedModel when it cannot state the model,
    CheckpointError for weights that the type cannot hold, DiskFull, ResourceError.
    """
    config, weights = source.weights.config, source.weights.weights
    tensors: dict[str, LazyTensor] = {}
    counts: Counter[str] = Counter()
    notes = list(source.notes)
    rounded = set()
    for name, weight in weights.items():
        block_type = gguf_type(weight, wanted)
        tensors[name] = encoded(weight, block_type)
        size = 1
        for length in weight.shape:
            size *= length
        counts[block_type.name] += size
        stored = weight.stored.block_type if weight.stored is not None else block_type
        if stored is not block_type and stored.is_quantized and block_type.is_quantized:
            rounded.add(stored.name)
    if rounded:
        notes.append(
            f"the weights had been quantised before ({', '.join(sorted(rounded))}) and were rounded a second time; "
            "they would lose less from the original"
        )
    if config.sliding_window is not None:
        notes.append(
            f"llama.cpp reads the sliding window of {config.sliding_window} tokens for few architectures; texts longer "
            "than that may come out differently there"
        )
    metadata = {**_general(source, max(counts, key=counts.__getitem__)), **_tokenizer_keys(source)}
    write_gguf_model(out, config, tensors, metadata, progress)
    return {
        "path": str(out),
        "num_bytes": out.stat().st_size,
        "parameters": counts.total(),
        "block_types": dict(counts.most_common()),
        "notes": notes,
    }


def _general(source: Source, most: str) -> dict[str, Any]:
    """``general.*`` keys: those of a GGUF source, and what we know ourselves."""
    own = {f"general.{name}" for name in _OWN_KEYS}
    kept = {
        key: value
        for key, value in source.checkpoint.metadata.items()
        if key.startswith("general.") and key not in own and isinstance(value, str)
    }
    file_type = _FILE_TYPES.get(BlockType[most])
    stated = {} if file_type is None else {"general.file_type": file_type}
    return {"general.type": "model", "general.name": source.name, **kept, **stated}


def _tokenizer_keys(source: Source) -> dict[str, Any]:
    """``tokenizer.*`` keys that give the same ids: a GGUF source's own, or new ones, which are compared first."""
    if source.checkpoint.kind == "gguf":
        return {key: value for key, value in source.checkpoint.metadata.items() if key.startswith("tokenizer.")}
    from draftsmith.text.read_folder import read_folder
    from draftsmith.text.write_gguf import gguf_tokenizer

    keys = gguf_tokenizer(read_folder(source.checkpoint.path), source.weights.config.vocab_size)
    written = Tokenizer.from_gguf(keys)
    if written.fingerprint() != source.tokenizer.fingerprint():
        raise TokenizerError(f"the vocabulary of {source.reference} cannot be stored in GGUF; export a folder instead")
    line = differing_line(written, source.tokenizer, inside=True)
    if line is not None:
        raise TokenizerError(
            f"the tokenizer of {source.reference} cannot be stored in GGUF: {line[:40]!r} would be cut otherwise; "
            "export a folder instead"
        )
    return keys
