"""Breaking lines between words while text streams in, as a book does and a bare terminal does not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

__all__ = ["WordWrapper"]

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrapper:
    """Holds a word back until it is complete, then writes it, on a new line if it does not fit into this one.

    ``write(text, style)`` does the output. Line breaks of the text itself are kept, and so are its spaces, except those
    where a line is broken. Words wider than a line are left to the terminal. ``width`` 0: never break.
    """

    def __init__(self, write: Callable[[str, str], None], width: int) -> None:
        self._write = write
        self._width = width
        self._column = 0
        self._spaces: list[tuple[str, str]] = []  # before the word
        self._word: list[tuple[str, str]] = []

    def push(self, text: str, style: str) -> None:
        """Add text of one style."""
        if self._width <= 0:
            self._write(text, style)
            return
        for part in _PARTS.findall(text):
            if part == "\n":
                self.flush()
                self._write("\n", "")
                self._column = 0
            elif part.isspace():
                self._finish_word()
                self._spaces.append((part, style))
            else:
                self._word.append((part, style))
                if _is_wide(part[-1]):  # scripts without spaces: break anywhere
                    self._finish_word()

    def flush(self) -> None:
        """Write what is held back."""
        self._finish_word()
        self._emit(self._spaces)

    def _finish_word(self) -> None:
        if not self._word:
            return
        needed = _columns(self._spaces) + _columns(self._word)
        if self._column and self._spaces and self._column + needed > self._width:
            self._write("\n", "")
            self._column = 0
            self._spaces.clear()
        self._emit(self._spaces)
        self._emit(self._word)

    def _emit(self, parts: list[tuple[str, str]]) -> None:
        self._column += _columns(parts)
        if self._column > self._width:  # the terminal has broken a long word itself
            self._column = (self._column - 1) % self._width + 1
        for text, style in parts:
            self._write(text, style)
        parts.clear()


def _columns(parts: list[tuple[str, str]]) -> int:
    return sum(_width(character) for text, _ in parts for character in text)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 8 if character == "\t" else 1 + _is_wide(character)
