"""A Hugging Face folder: safetensors, config, tokenizer with chat template; for transformers from 4.34 on."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.checkpoint.safetensors_writer import write_safetensors
from draftsmith.checkpoint.tokenizer_files import write_tokenizer
from draftsmith.export.hf_config import generation_config, hf_config
from draftsmith.export.source import Source
from draftsmith.export.weights import WeightSet, encoded
from draftsmith.quant import BlockType

__all__ = ["HF_DTYPES", "hf_dtype", "write_hf_export"]

HF_DTYPES: Final[Mapping[str, BlockType]] = MappingProxyType(
    {"float32": BlockType.F32, "float16": BlockType.F16, "bfloat16": BlockType.BF16}
)
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def hf_dtype(weights: WeightSet) -> str:
    """The type to store weights in if none is asked for: the one that most matrices have.

    bfloat16 for quantised blocks: it has the range of float32, and what it rounds away is small beside what they did.
    """
    counts: Counter[BlockType] = Counter()
    for weight in weights.weights.values():
        if len(weight.shape) == 2 and weight.stored is not None:
            counts[weight.stored.block_type] += weight.shape[0] * weight.shape[1]
    most = counts.most_common(1)[0][0] if counts else BlockType.BF16
    return next((name for name, kind in HF_DTYPES.items() if kind is most), "bfloat16")


def write_hf_export(
    source: Source,
    folder: Path,
    *,
    dtype: str | None = None,
    weights: WeightSet | None = None,
    template: str | None = None,
    tokenizer_of: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write the model's files into ``folder``, which exists; what became of the model, for people.

    ``dtype``: float32, float16 or bfloat16; None as in ``hf_dtype``. ``weights``: instead of the source's, with another
    vocabulary size. ``template``: a chat template instead of the tokenizer's own. ``tokenizer_of``: a folder whose
    tokenizer files to take instead, known to be the same vocabulary.
    Raises TokenizerError, CheckpointError, DiskFull, ResourceError.
    """
    chosen = weights or source.weights
    dtype = dtype or hf_dtype(chosen)
    tensors = [encoded(weight, HF_DTYPES[dtype]) for weight in chosen.weights.values()]
    write_safetensors(folder / "model.safetensors", tensors, progress)
    _write(folder / "config.json", hf_config(chosen.config, source.tokenizer, dtype))
    _write(folder / "generation_config.json", generation_config(source.tokenizer))
    if tokenizer_of is None:
        write_tokenizer(source.checkpoint, source.tokenizer, template or source.tokenizer.chat_template, folder)
    else:
        for name in _TOKENIZER_FILES:
            if (tokenizer_of / name).is_file():
                shutil.copyfile(tokenizer_of / name, folder / name)
    return {
        "path": str(folder),
        "num_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "parameters": sum(tensor.num_bytes for tensor in tensors) // HF_DTYPES[dtype].block_bytes,
        "dtype": dtype,
        "notes": list(source.notes),
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
