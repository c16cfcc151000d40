"""YAML for people to read and programs to load: mappings, lists, texts, numbers, booleans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["yaml_text"]


def yaml_text(value: Mapping[str, Any], heading: str = "") -> str:
    """The document. Texts are written in double quotes with JSON's escapes, which are YAML's too: no text can be taken
    for anything else. ``heading``: lines of a comment."""
    comment = [f"# {line}" if line else "#" for line in heading.splitlines()]
    return "\n".join([*comment, *_block(value, 0)]) + "\n"


def _block(value: Any, depth: int) -> list[str]:
    pad = "  " * depth
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _entry(f"{pad}{key}:", item, depth + 1)]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [line for item in value for line in _item(item, depth)]
    return [f"{pad}{_scalar(value)}"]


def _entry(head: str, item: Any, depth: int) -> list[str]:
    if isinstance(item, Mapping | list | tuple) and item:
        return [head, *_block(item, depth)]
    return [f"{head} {_scalar(item)}"]


def _item(item: Any, depth: int) -> list[str]:
    lines = _block(item, depth + 1)
    return [f"{'  ' * depth}- {lines[0].lstrip()}", *lines[1:]]


def _scalar(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
