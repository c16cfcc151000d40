"""Writing for people: colours where the terminal has them, and never a control code that a model or file put there."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import TextIO

from draftsmith.errors import UsageError

__all__ = ["ACCEPTED", "BOLD", "DIM", "Terminal", "is_terminal", "tolerate_encodings"]

COLOR_CHOICES = ("auto", "always", "never")
# Styles (SGR parameters). Cyan reads well on dark and on light backgrounds.
ACCEPTED = "36"
BOLD = "1"
DIM = "2"
_RESET = "\x1b[0m"
# Everything that a terminal might obey, except newline and tab: C0, delete and C1.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person watches this stream on something that can do more than a typewriter."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


@dataclass(frozen=True, slots=True)
class Terminal:
    """One output stream and whether it gets colours.

    ``safe`` (a terminal): control characters in text are replaced, because a model may write anything and a terminal
    would obey it. Files and pipes get the text as it is.
    """

    stream: TextIO
    color: bool
    safe: bool

    @classmethod
    def of(cls, stream: TextIO, color: str = "auto") -> Terminal:
        """Raises UsageError for an unknown ``color``. NO_COLOR (no-color.org) turns ``auto`` off."""
        if color not in COLOR_CHOICES:
            raise UsageError(f"--color is {color!r}; it must be one of {', '.join(COLOR_CHOICES)}")
        wanted = is_terminal(stream) and not os.environ.get("NO_COLOR") if color == "auto" else color == "always"
        return cls(stream=stream, color=wanted, safe=stream.isatty())

    def write(self, text: str, style: str = "") -> None:
        """Write and show at once. ``style``: SGR parameters such as ``36`` (cyan) or ``2`` (dim)."""
        if self.safe:
            text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
        if text and style and self.color:
            text = f"\x1b[{style}m{text}{_RESET}"
        self.stream.write(text)
        self.stream.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write one whole line."""
        self.write(text, style)
        self.write("\n")


def tolerate_encodings() -> None:
    """Characters that the terminal's encoding lacks are shown as ``?`` instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
