"""Tool calls in a reply, as Hermes and Qwen write: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field

from draftsmith.types import ToolCall

__all__ = ["FoundCall", "ToolReader"]

_BEGIN, _END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call with an id of its own."""

    call: ToolCall
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


class ToolReader:
    """Divides a reply, as it comes, into text and calls of the tools ``names``.

    What looks like a call and is none (no JSON, another name) stays text. White space at the end of the text is dropped
    where there was a call.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._gap = ""  # white space that is text only if more text follows
        self._found = False

    @property
    def found(self) -> bool:
        """Whether there was a call."""
        return self._found

    def push(self, text: str) -> tuple[str, list[FoundCall]]:
        """The text and the calls that have become certain."""
        self._held += text
        out, calls = "", list[FoundCall]()
        while True:
            begin = self._held.find(_BEGIN)
            if begin < 0:
                keep = _overlap(self._held, _BEGIN)
                out += self._spaced(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                return out, calls
            end = self._held.find(_END, begin)
            out += self._spaced(self._held[:begin])
            self._held = self._held[begin:]
            if end < 0:
                return out, calls
            whole = self._held[: end - begin + len(_END)]
            self._held = self._held[len(whole) :]
            call = self._read(whole[len(_BEGIN) : -len(_END)])
            if call is None:
                out += self._spaced(whole)
            else:
                calls.append(call)
                self._found = True

    def flush(self) -> str:
        """The reply is over: the text that was held back."""
        text = self._spaced(self._held)
        self._held = ""
        return text if self._found else text + self._gap

    def _spaced(self, text: str) -> str:
        """``text`` without the white space at its end, which is held back; what was held back before comes first."""
        text = self._gap + text
        kept = text.rstrip()
        self._gap = text[len(kept) :]
        return kept

    def _read(self, source: str) -> FoundCall | None:
        try:
            value = json.loads(source)
            name, arguments = value["name"], value.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return FoundCall(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))


def _overlap(text: str, mark: str) -> int:
    """How much of the end of ``text`` is the beginning of ``mark``."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
