"""Memory is asked for before it is taken."""

from __future__ import annotations

import pytest

from draftsmith.errors import OutOfMemory
from draftsmith.model import memory


def test_the_machine_has_some() -> None:
    available = memory.available_memory()
    assert available is None or available > 1_000_000


def test_too_much_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2_000_000_000)
    memory.check_memory(1_900_000_000, "loading x")
    with pytest.raises(OutOfMemory, match=r"^loading x needs about 3.0 GB of memory and 2.0 GB are free; "):
        memory.check_memory(3_000_000_000, "loading x")


def test_unknown_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    memory.check_memory(10**18, "loading x")
