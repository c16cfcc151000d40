"""Which tokens a text holds, and how often: what the penalties need to know, kept up to date token by token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["TokenHistory"]


class TokenHistory:
    """Counts of the tokens in the prompt and in the reply so far. ``push`` and ``pop`` cost O(1), whatever the length.

    The distinct ids are held in order of first appearance. Tokens leave in the reverse of the order in which they came,
    so an id that drops out is always the last of them, and two arrays are all the state there is.
    """

    __slots__ = ("_distinct", "_ids", "_in_reply", "_in_text", "_slots", "_tail")

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        self._slots: dict[int, int] = {}
        for token_id in prompt_ids:
            self._slots.setdefault(token_id, len(self._slots))
        self._distinct = len(self._slots)
        self._ids = np.zeros(self._distinct + 64, np.int64)
        self._ids[: self._distinct] = list(self._slots)
        self._in_text = np.zeros(self._ids.size, np.int64)  # prompt ids count once: only zero or not matters there
        self._in_text[: self._distinct] = 1
        self._in_reply = np.zeros(self._ids.size, np.int64)
        self._tail: list[int] = []  # the reply

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """The distinct ids of prompt and reply, in order of first appearance. A view: valid until the next change."""
        return self._ids[: self._distinct]

    @property
    def reply_counts(self) -> npt.NDArray[np.int64]:
        """How often each of ``token_ids`` occurs in the reply. A view: valid until the next change."""
        return self._in_reply[: self._distinct]

    @property
    def reply_length(self) -> int:
        """Tokens pushed and not popped."""
        return len(self._tail)

    def push(self, token_id: int) -> None:
        """Append one token to the reply."""
        slot = self._slots.setdefault(token_id, self._distinct)
        if slot == self._distinct:
            if slot == self._ids.size:
                self._grow()
            self._ids[slot] = token_id
            self._distinct += 1
        self._in_text[slot] += 1
        self._in_reply[slot] += 1
        self._tail.append(token_id)

    def pop(self) -> int:
        """Take the last token of the reply away again and return it. Raises IndexError when there is none."""
        token_id = self._tail.pop()
        slot = self._slots[token_id]
        self._in_text[slot] -= 1
        self._in_reply[slot] -= 1
        if self._in_text[slot] == 0:
            del self._slots[token_id]
            self._distinct -= 1
        return token_id

    def _grow(self) -> None:
        extra = np.zeros(self._ids.size, np.int64)
        self._ids = np.concatenate((self._ids, extra))
        self._in_text = np.concatenate((self._in_text, extra))
        self._in_reply = np.concatenate((self._in_reply, extra))
