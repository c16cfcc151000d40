"""The same text in the draft's tokens, kept up to date as the target's tokens come.

Only the end of the text is encoded anew: what lies before the last *cut*, a place where a word begins, is settled.
Tokens that no merge can reach across such a place make the result equal to an encoding of the whole text; and if a
vocabulary should behave otherwise there, the draft model reads an unusual spelling of the same bytes, nothing worse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from draftsmith.speculate.vocabulary import VocabularyMap
from draftsmith.text import Tokenizer

__all__ = ["ByteEncoder", "Retokenizer"]

_LONG = 64  # tokens of the target after the last cut that make a new one due
_SETTLED = 12  # a cut leaves at least so many after it
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")  # what surrogateescape makes of bytes that are no UTF-8


class ByteEncoder:
    """Encodes any bytes so that the tokens spell exactly these, as far as the vocabulary can.

    Bytes that are no whole character become byte tokens, if there are any. So does what the tokenizer would replace: a
    character that its normaliser changes, or SentencePiece's own sign for a space.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._contents = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self._byte_ids: dict[int, int] = {}
        for token_id, data in enumerate(self._contents):
            if len(data) == 1 and not tokenizer.is_special(token_id):
                self._byte_ids.setdefault(data[0], token_id)

    def encode(self, data: bytes, *, as_start: bool = False) -> list[int]:
        """Ids of ``data``. ``as_start``: it begins a text, where some vocabularies put a space of their own."""
        ids: list[int] = []
        for run in _NOT_UTF8.split(data.decode("utf-8", "surrogateescape")):
            if not run:
                continue
            if "\udc80" <= run[0] <= "\udcff":
                ids += self._as_bytes(run.encode("utf-8", "surrogateescape"))
            else:
                ids += self._encode_text(run, as_start=as_start and not ids)
        return ids

    def _encode_text(self, text: str, *, as_start: bool) -> list[int]:
        """As the tokenizer does it; where that would not spell ``text``, half by half, down to the culprit."""
        ids = self._tokenizer.encode_piece(text, after="start" if as_start else "text")
        spelt, wanted = b"".join([self._contents[i] for i in ids]), text.encode()
        if spelt == wanted or (as_start and spelt == b" " + wanted):
            return ids
        if len(text) == 1:
            return self._as_bytes(wanted) or ids
        half = len(text) // 2
        return self._encode_text(text[:half], as_start=as_start) + self._encode_text(text[half:], as_start=False)

    def _as_bytes(self, data: bytes) -> list[int]:
        return [self._byte_ids[byte] for byte in data if byte in self._byte_ids]


class Retokenizer:
    """Keeps one text in both vocabularies. The target's ids come in by ``extend``, ``truncate`` and ``sync``."""

    def __init__(self, vocabularies: VocabularyMap, encoder: ByteEncoder) -> None:
        self._target, self._draft = vocabularies.target, vocabularies.draft
        self._special = {
            target_id: draft_id
            for target_id, draft_id in zip(
                vocabularies.target_ids.tolist(), vocabularies.draft_ids.tolist(), strict=True
            )
            if self._target.is_special(target_id) and self._draft.is_special(draft_id)
        }
        self._encoder = encoder
        self._read: list[int] = []
        self._settled: list[int] = []  # the draft's ids of the text before the last cut
        self._cuts: list[tuple[int, int]] = [(0, 0)]  # target tokens before the cut, draft tokens before it

    @property
    def num_read(self) -> int:
        """Tokens of the target taken in."""
        return len(self._read)

    @property
    def num_settled(self) -> int:
        """Tokens of the draft that no further text changes."""
        return len(self._settled)

    def sync(self, target_ids: Sequence[int]) -> None:
        """Make ``target_ids`` the text, keeping what it has in common with the text before."""
        shared = len(self._read)
        if list(target_ids[:shared]) != self._read:
            shared = next(i for i in range(shared) if i >= len(target_ids) or target_ids[i] != self._read[i])
            self.truncate(shared)
        self._read += target_ids[shared:]

    def extend(self, target_ids: Sequence[int]) -> None:
        """The text goes on."""
        self._read += target_ids

    def truncate(self, length: int) -> None:
        """The text has only the target's first ``length`` tokens after all."""
        del self._read[length:]
        while self._cuts[-1][0] > length:
            self._cuts.pop()
        del self._settled[self._cuts[-1][1] :]

    def draft_ids(self) -> list[int]:
        """The text in the draft's tokens."""
        start = self._cuts[-1][0]
        if len(self._read) - start > _LONG:
            cut = self._find_cut(start)
            self._settled += self._encode(self._read[start:cut], at_start=start == 0)
            self._cuts.append((cut, len(self._settled)))
            start = cut
        return self._settled + self._encode(self._read[start:], at_start=start == 0)

    def _find_cut(self, start: int) -> int:
        """The last place but ``_SETTLED`` tokens where a word begins; where there is none, any end of a character."""
        last = len(self._read) - _SETTLED
        fallback = last
        for i in range(last, start, -1):
            before = self._target.token_bytes(self._read[i - 1])
            after = b"".join(map(self._target.token_bytes, self._read[i : i + 2]))
            if self._target.is_special(self._read[i]):
                return i
            if after[:1] == b" " and after[1:2].isalnum() and not before[-1:].isspace():
                return i
            if fallback == last and after[:1].isascii():
                fallback = i
        return fallback

    def _encode(self, target_ids: Sequence[int], *, at_start: bool) -> list[int]:
        """The draft's ids of a piece of the text. Control tokens that the draft lacks become their text."""
        ids: list[int] = []
        if at_start and self._draft.add_bos and self._draft.bos_id is not None:
            ids.append(self._draft.bos_id)
        data, begins = bytearray(), at_start
        for target_id in target_ids:
            special = self._special.get(target_id)
            if special is None:
                data += self._target.token_bytes(target_id)
                continue
            ids += self._encode_text(data, begins)
            data.clear()
            begins = begins and target_id == self._target.bos_id
            if not (begins and ids):  # the draft's own BOS is there already
                ids.append(special)
        return ids + self._encode_text(data, begins)

    def _encode_text(self, data: bytearray, begins: bool) -> list[int]:
        """``begins``: nothing but BOS stands before; there a vocabulary's own space comes and goes."""
        if begins and self._target.strips_leading_space:
            data = data.removeprefix(b" ")
        return self._encoder.encode(bytes(data), as_start=begins)
