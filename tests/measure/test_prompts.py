"""Prompts: our own set is what it is said to be, files are read or refused in one sentence."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.errors import UsageError
from draftsmith.measure.prompts import PromptItem, built_in_prompts, read_prompts, select_prompts

CATEGORIES = ("writing", "code", "maths", "summarising", "translation", "retrieval", "multi-turn")


def test_our_own_set_has_eight_of_each_category() -> None:
    items = built_in_prompts()
    assert Counter(item.category for item in items) == dict.fromkeys(CATEGORIES, 8)
    assert len({item.id for item in items}) == len({item.turns for item in items}) == 56
    assert all((len(item.turns) > 1) == (item.category == "multi-turn") for item in items)


def test_spec_bench_lines_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    first = {"question_id": 81, "category": "writing", "turns": ["Hello.", "Again."], "reference": ["x", "y"]}
    path.write_text(json.dumps(first) + "\n\n" + json.dumps({"turns": ["Hi"]}) + "\n")
    assert read_prompts(path) == (
        PromptItem("81", "writing", ("Hello.", "Again."), "x\ny"),
        PromptItem("3", "all", ("Hi",)),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no prompts"),
        (b"{", "line 1, is not JSON"),
        (b"[1]", "line 1, is not a JSON object"),
        (b'{"turns": ["a"]}\n{"id": 1}', "line 2, has no turns"),
        (b'{"turns": [" "]}', "has no turns"),
        (b'{"turns": ["a"], "category": 3}', "has the category 3"),
        (b'{"id": 1, "turns": ["a"]}\n{"id": "1", "turns": ["b"]}', "the id '1' a second time"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


@given(st.binary(max_size=60))
def test_any_bytes_give_prompts_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        assert read_prompts(path)


def test_limits_take_from_all_categories() -> None:
    items = built_in_prompts()
    assert Counter(item.category for item in select_prompts(items, per_category=2)) == dict.fromkeys(CATEGORIES, 2)
    assert Counter(item.category for item in select_prompts(items, limit=7)) == dict.fromkeys(CATEGORIES, 1)
    assert [item.id for item in select_prompts(items, limit=2, per_category=1)] == ["writing/1", "code/1"]
    assert select_prompts(items) == items
    with pytest.raises(UsageError, match="limit is 0"):
        select_prompts(items, limit=0)
