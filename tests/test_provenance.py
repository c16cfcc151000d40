"""Provenance says true things and can be written as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import pytest

from draftsmith import provenance


def test_collect(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"abc")
    collected = provenance.collect([tmp_path / "weights.bin"])
    assert collected.files == {"weights.bin": hashlib.sha256(b"abc").hexdigest()}
    assert platform.python_version() in collected.python
    assert collected.cpu
    assert 1 <= collected.cpus <= (os.cpu_count() or 1)
    assert collected.memory_bytes is None or collected.memory_bytes > 1 << 28
    assert abs((datetime.now(UTC) - datetime.fromisoformat(collected.date)).total_seconds()) < 60
    assert json.loads(json.dumps(collected.as_dict())) == collected.as_dict()
    assert set(collected.isa) <= set(provenance.ISA_FLAGS)


def test_commit_only_of_a_checkout(tmp_path: Path) -> None:
    assert provenance._git_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()  # not a repository that git accepts
    (tmp_path / "src").mkdir()
    assert provenance._git_commit(tmp_path / "src") is None


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        provenance.collect([tmp_path / "gone"])
