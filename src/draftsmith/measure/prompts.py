"""What is measured on: prompts of one or more user turns, in categories. Our own set, or any JSON lines file.

A line is ``{"id", "category", "turns": [...], "reference"?}``; Spec-Bench's ``question_id`` is taken for ``id``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from draftsmith.errors import UsageError

__all__ = ["PromptItem", "built_in_prompts", "read_prompts", "select_prompts"]

MAX_FILE_BYTES = 256_000_000
NO_CATEGORY = "all"


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One conversation to have: the user's ``turns`` in order. ``reference``: what is expected, if the file says so."""

    id: str
    category: str
    turns: tuple[str, ...]
    reference: str | None = None


def built_in_prompts() -> tuple[PromptItem, ...]:
    """Our own set: writing, code, maths, summarising, translation, retrieval, multi-turn; 8 of each."""
    text = files("draftsmith.measure").joinpath("data/prompts.jsonl").read_text(encoding="utf-8")
    return _parse(text.splitlines(), "the built-in prompts")


def read_prompts(path: Path | None = None) -> tuple[PromptItem, ...]:
    """The prompts of a file, or our own set. Raises UsageError that names the line when the file cannot be used."""
    if path is None:
        return built_in_prompts()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} has more than {MAX_FILE_BYTES // 1_000_000} MB; give a smaller file of prompts")
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a file of JSON lines") from None
    items = _parse(lines, str(path))
    if not items:
        raise UsageError(f"{path} has no prompts; give one JSON object with id, category and turns a line")
    return items


def select_prompts(
    items: Sequence[PromptItem], limit: int | None = None, per_category: int | None = None
) -> tuple[PromptItem, ...]:
    """The first ``per_category`` of each category, then ``limit`` in all, taken from the categories in turn.

    Raises UsageError when a number is below 1.
    """
    for name, number in (("limit", limit), ("per-category", per_category)):
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}; it must be at least 1")
    groups: dict[str, list[PromptItem]] = {}
    for item in items:
        groups.setdefault(item.category, []).append(item)
    kept = {category: group[:per_category] for category, group in groups.items()}
    if limit is not None:
        spread = [(place, item.id) for group in kept.values() for place, item in enumerate(group)]
        chosen = {name for _, name in sorted(spread, key=lambda entry: entry[0])[:limit]}
        kept = {category: [item for item in group if item.id in chosen] for category, group in kept.items()}
    return tuple(item for group in kept.values() for item in group)


def _parse(lines: Iterable[str], name: str) -> tuple[PromptItem, ...]:
    items: list[PromptItem] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        item = _parse_line(line, f"{name}, line {number},", number)
        if item.id in seen:
            raise UsageError(f"{name}, line {number}, has the id {item.id!r} a second time; ids must differ")
        seen.add(item.id)
        items.append(item)
    return tuple(items)


def _parse_line(line: str, where: str, number: int) -> PromptItem:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not JSON; write one object with id, category and turns a line") from None
    if not isinstance(value, dict):
        raise UsageError(f"{where} is not a JSON object; write one with id, category and turns a line")
    turns = value.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UsageError(f"{where} has no turns; give a list of the user's messages, none of them empty")
    category = value.get("category") or NO_CATEGORY
    if not isinstance(category, str):
        raise UsageError(f"{where} has the category {category!r:.50}; it must be a string")
    reference = value.get("reference")
    if isinstance(reference, list):  # Spec-Bench: one for each turn
        reference = "\n".join(str(part) for part in reference)
    name = value.get("id", value.get("question_id", number))
    return PromptItem(str(name), category, tuple(turns), None if reference is None else str(reference))
