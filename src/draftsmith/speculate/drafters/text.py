"""A draft model with another vocabulary, asked for text (string-level exact match, arXiv:2502.05202, section 4).

The model continues the text in its own tokens, always with the likeliest; the new text is encoded in the target's
tokens, and these are the draft. It is a function of the text so far, so under the rejection rule it counts as certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from draftsmith.model.protocol import Model, TokenRun
from draftsmith.speculate.drafters.foreign import DraftReading
from draftsmith.speculate.drafters.model import drive, softmax_at
from draftsmith.speculate.drafters.protocol import DraftSteps, Until, WantsMore
from draftsmith.speculate.retokenize import ByteEncoder
from draftsmith.speculate.vocabulary import VocabularyMap
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["TextDraftSession", "TextDrafter"]

_ROOM = 64  # tokens of a draft at most
_LOOK_BACK = 8  # tokens of the text that may stand in one word with the draft's first


class TextDrafter:
    """Drafts for the target of ``vocabularies`` with ``model``, which uses the other vocabulary."""

    def __init__(self, model: Model, vocabularies: VocabularyMap, *, name: str = "model") -> None:
        self._model = model
        self._vocabularies = vocabularies
        self._name = name
        self._encoders = ByteEncoder(vocabularies.target), ByteEncoder(vocabularies.draft)

    @property
    def name(self) -> str:
        """As it appears in statistics."""
        return self._name

    def start(self, request: Request, rule: VerificationRule) -> TextDraftSession:
        """A session with an empty cache of its own. Neither the rule nor the noise matters to it."""
        del request, rule
        reading = DraftReading(self._vocabularies, self._encoders[1], self._model.new_cache())
        return TextDraftSession(self._model, self._vocabularies, self._encoders[0], reading)


class TextDraftSession:
    """One text as the draft model reads it."""

    def __init__(self, model: Model, vocabularies: VocabularyMap, encoder: ByteEncoder, reading: DraftReading) -> None:
        self._model = model
        self._target, self._draft = vocabularies.target, vocabularies.draft
        self._controls = {
            d: t
            for t, d in zip(vocabularies.target_ids.tolist(), vocabularies.draft_ids.tolist(), strict=True)
            if self._draft.is_special(d)
        }
        self._encoder = encoder
        self._reading = reading

    @property
    def model(self) -> Model:
        """What the runs of ``steps`` are for."""
        return self._model

    def restart(self, request: Request) -> None:
        """Nothing to do: the next reading finds out what the texts have in common."""

    def commit(self, verdict: Verdict) -> None:
        """Nothing to do: the next reading finds out what is left of the draft."""

    def read(self, token_ids: Sequence[int]) -> None:
        """See ``protocol.DraftSession``."""
        self._reading.text.sync(token_ids)
        unread = self._reading.unread()[:-1]
        if unread:
            self._model.forward([TokenRun(self._reading.cache, unread, num_logits=0)])
            self._reading.took(unread)

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``protocol.DraftSession``."""
        return drive(self._model, self.steps(token_ids, max_tokens, wants_more))

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        """See ``protocol.SteppedDraftSession``. ``wants_more`` hears of the draft model's tokens, one by one; ``until``
        is not asked, since what the tokens are in the target's vocabulary is known at the end."""
        del until
        if max_tokens < 1 or not wants_more([], None):
            return Draft(())
        self._reading.text.sync(token_ids)
        room = min(max_tokens, _ROOM, self._reading.cache.capacity // 4)
        run_ids = self._reading.unread(room=room)
        drawn: list[int] = []
        confidences: list[float] = []
        while run_ids and len(drawn) < room and (not drawn or wants_more(confidences, None)):
            row = (yield TokenRun(self._reading.cache, run_ids))[0]
            self._reading.took(run_ids)
            best = int(row[: self._draft.vocab_size].argmax())
            if self._draft.is_special(best) and best not in self._controls:
                break
            drawn.append(best)
            confidences.append(softmax_at(row, best))
            if best in self._controls:
                break
            run_ids = [best]
        return self._translate(token_ids, drawn, confidences, max_tokens)

    def _translate(
        self, token_ids: Sequence[int], drawn: Sequence[int], confidences: Sequence[float], max_tokens: int
    ) -> Draft:
        """The draft in the target's tokens: text as far as its characters are whole, then perhaps a control token."""
        controls = [self._controls[i] for i in drawn[-1:] if i in self._controls]
        contents = [self._draft.token_bytes(i) for i in drawn[: len(drawn) - len(controls)]]
        data = _whole_characters(b"".join(contents))
        ids = [*self._continue(token_ids, data), *(controls if len(data) == sum(map(len, contents)) else ())]
        lengths = [len(self._target.token_bytes(i)) for i in ids]
        shared = _share_out(confidences, [*map(len, contents), *([1] * len(controls))], lengths)
        return Draft(tuple(ids[:max_tokens]), None, tuple(shared[:max_tokens]))

    def _continue(self, token_ids: Sequence[int], data: bytes) -> list[int]:
        """The target's tokens for ``data`` after the text, as encoding both at once would give them if it can be."""
        if not data:
            return []
        tail: list[int] = []
        for token_id in reversed(token_ids[-_LOOK_BACK:]):
            if self._target.is_special(token_id):
                break
            tail.insert(0, token_id)
            if self._target.token_bytes(token_id)[:1].isspace():
                break
        together = self._encoder.encode(b"".join(map(self._target.token_bytes, tail)) + data)
        return together[len(tail) :] if together[: len(tail)] == tail else self._encoder.encode(data)


def _whole_characters(data: bytes) -> bytes:
    """``data`` without an unfinished character at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if size > back else data
        if byte < 0x80:
            return data
    return data


def _share_out(confidences: Sequence[float], lengths: Sequence[int], new_lengths: Sequence[int]) -> list[float]:
    """Confidences of tokens with ``new_lengths`` (bytes) that spell the same as tokens with ``lengths``.

    A token takes those of all tokens that begin inside it; the products over the whole draft are then the same.
    """
    begins = [sum(lengths[:i]) for i in range(len(lengths))]
    shared: list[float] = []
    place = 0
    for length in new_lengths:
        inside = (c for c, begin in zip(confidences, begins, strict=True) if place <= begin < place + length)
        shared.append(math.prod(inside))
        place += length
    return shared
