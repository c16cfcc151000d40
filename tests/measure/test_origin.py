"""The hashes in a result name the files that took part, those of the shipped draft too."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftsmith.engine.pruned import shipped_drafts
from draftsmith.measure.origin import measurement_origin, weight_files
from draftsmith.provenance import file_sha256

TARGET = "smollm2-135m-instruct"


@pytest.mark.parametrize("draft", ["auto", "embedded", "embedded+lookup"])
def test_the_shipped_draft_is_among_the_files(draft: str) -> None:
    [path] = weight_files(draft, TARGET)
    assert path == shipped_drafts()[TARGET]
    assert path.name == "draft.gguf"


@pytest.mark.parametrize("draft", ["none", "lookup", "suffix"])
def test_other_drafters_have_no_files(draft: str) -> None:
    assert weight_files(draft, TARGET) == []
    assert weight_files("auto", "another-model") == []


def test_its_hash_stands_in_the_result(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    origin = measurement_origin({"target": str(model), "draft": "embedded+lookup"}, {}, None)
    [shipped] = shipped_drafts().values()
    assert origin["weights_sha256"]["draft"] == {"draft.gguf": file_sha256(shipped)}
