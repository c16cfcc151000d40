"""Finding added tokens (special ones, and those matched whole in any text) inside a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["AddedToken", "After", "PrefixRule", "Splitter"]

After = Literal["start", "special", "text"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found as a whole, before any merging. ``lstrip``/``rstrip``: it swallows the space around it."""

    token_id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """When a vocabulary puts a space before a text, as SentencePiece does so that first words look like others.

    ``where``: never, only at the start of the text, or also after each added token that was parsed. ``whole``: it is
    the text between two special tokens that gets the space (SentencePiece); otherwise the text between any two added
    tokens. ``unless_space``: not before a text that begins with a space.
    """

    where: Literal["never", "start", "every"] = "never"
    whole: bool = False
    unless_space: bool = False
    prefix: str = " "

    def apply(self, text: str, after: After) -> str:
        """``text`` with the space, where it is due; an empty text stays empty."""
        if not text or after == "text" or self.where == "never" or (after == "special" and self.where == "start"):
            return text
        if self.unless_space and text[0] in (" ", self.prefix[0]):
            return text
        return self.prefix + text


class Splitter:
    """Cuts a text at added tokens: leftmost first, and of those that begin at the same place the longest."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.text: token for token in tokens if token.text}
        longest_first = sorted(self._tokens.values(), key=lambda token: -len(token.text))
        alternatives = [
            rf"(?<!\w){re.escape(token.text)}(?!\w)" if token.single_word else re.escape(token.text)
            for token in longest_first
        ]
        self._pattern = re.compile("|".join(alternatives)) if alternatives else None

    @property
    def texts(self) -> tuple[str, ...]:
        """The strings that are found."""
        return tuple(self._tokens)

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The runs of text (never empty) and the tokens between them, in order."""
        position = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            if match.start() < position:  # inside the space that the token before swallowed
                continue
            token = self._tokens[match.group()]
            run = text[position : match.start()]
            run = run.rstrip() if token.lstrip else run
            if run:
                yield run
            yield token
            position = match.end()
            if token.rstrip:
                position = len(text) - len(text[position:].lstrip())
        if position < len(text):
            yield text[position:]
