"""The type of keys and values is chosen by name, through everything that loads a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftsmith.engine import LLM
from draftsmith.errors import UsageError
from draftsmith.model.native import NativeModel
from draftsmith.types import SamplingParams
from tests.support.tiny import tiny_folder


def test_eight_bit_keys_and_values_take_less_and_speculation_stays_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTSMITH_CACHE", str(tmp_path / "cache"))
    folder = tiny_folder(tmp_path / "model")
    sizes = {}
    for kind in ("float32", "int8"):
        llm = LLM(folder, "none", kv_dtype=kind, threads=1)
        assert isinstance(llm.target.model, NativeModel)
        sizes[kind] = llm.target.model.cache_bytes(64)
    assert sizes["int8"] < sizes["float32"] / 2
    drafted = LLM(llm.target, "lookup", kv_dtype="int8", threads=1)
    params = SamplingParams(max_new_tokens=60, temperature=0.8, seed=3)
    [plain], [fast] = llm.generate("abc abc abc", params), drafted.generate("abc abc abc", params)
    assert plain.token_ids == fast.token_ids


def test_an_unknown_type_is_a_sentence() -> None:
    with pytest.raises(UsageError, match="kv_dtype is 'int4'; it must be auto"):
        LLM("nowhere", "none", kv_dtype="int4")  # type: ignore[arg-type]
