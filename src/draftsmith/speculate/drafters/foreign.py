"""A draft model with another vocabulary, seen through the tokens that it shares with the target.

``ForeignModel`` is a ``Model`` in the target's ids: it reads the text in the draft's own tokens (``Retokenizer``) and
gives the common tokens the draft's logits, all others none. What is drawn from it is drawn from a distribution over the
target's ids, so every rule and option works as with any draft (token-level intersection, arXiv:2502.05202, section 5).

Shape legend: V entries of the target's vocabulary, D of the draft's, C common tokens, R rows of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from draftsmith.model.protocol import KVCache, Logits, Model, TokenRun
from draftsmith.speculate.retokenize import ByteEncoder, Retokenizer
from draftsmith.speculate.vocabulary import VocabularyMap

__all__ = ["DraftReading", "ForeignModel"]

_NEVER = np.float32(-1e30)  # finite, so that a bias against all common tokens is no error here


class DraftReading:
    """A text that the draft model reads in its own tokens: its cache, and what the cache holds.

    Where the text outgrows the draft's context, its older half is left out.
    """

    def __init__(self, vocabularies: VocabularyMap, encoder: ByteEncoder, cache: KVCache) -> None:
        self.text = Retokenizer(vocabularies, encoder)
        self.cache = cache
        self._held: list[int] = []  # the ids in the cache
        self._left_out = 0  # draft tokens at the beginning of the text that are not read

    def unread(self, *, room: int = 0) -> list[int]:
        """The draft's tokens that the cache lacks of the text, at least one if there are any; others leave the cache.

        ``room`` more tokens will fit afterwards. The text's last token always counts as unread: its logits are wanted.
        """
        wanted = self.text.draft_ids()
        if not self._left_out < len(wanted) <= self._left_out + self.cache.capacity - room:
            self._left_out = max(0, len(wanted) - self.cache.capacity // 2)
        wanted = wanted[self._left_out :]
        shared = min(len(self._held), len(wanted) - 1)
        if self._held[:shared] != wanted[:shared]:
            shared = next(i for i in range(shared) if self._held[i] != wanted[i])
        self.keep(shared)
        return wanted[shared:]

    def took(self, draft_ids: Sequence[int]) -> None:
        """A forward has read ``draft_ids``."""
        self._held += draft_ids

    def keep(self, length: int) -> None:
        """Forget what the cache holds from ``length`` on."""
        length = max(0, length)
        self.cache.truncate(length)
        del self._held[length:]


class _ForeignCache:
    """A ``KVCache`` that counts in the target's tokens."""

    def __init__(self, reading: DraftReading, capacity: int) -> None:
        self.reading = reading
        self.capacity = capacity

    @property
    def length(self) -> int:
        return self.reading.text.num_read

    def truncate(self, length: int) -> None:
        """The draft's cache follows with the next forward."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} tokens to {length}")
        self.reading.text.truncate(length)


class ForeignModel:
    """``model`` in the ids of ``vocabularies.target``. Gives logits of a run's last token only."""

    def __init__(self, model: Model, vocabularies: VocabularyMap, *, max_context: int) -> None:
        self._model = model
        self._vocabularies = vocabularies
        self._encoder = ByteEncoder(vocabularies.draft)
        inside = vocabularies.draft_ids < model.vocab_size
        self._target_ids, self._draft_ids = vocabularies.target_ids[inside], vocabularies.draft_ids[inside]
        self.vocab_size = vocabularies.target.vocab_size
        self.max_context = max_context

    def new_cache(self, capacity: int | None = None) -> _ForeignCache:
        """An empty cache. ``capacity``, in the target's tokens, may exceed what the draft model can hold."""
        reading = DraftReading(self._vocabularies, self._encoder, self._model.new_cache())
        return _ForeignCache(reading, self.max_context if capacity is None else capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """See ``protocol.Model``; float32 [R, V] with R = 1, or 0 where none is asked for."""
        readings: list[DraftReading] = []
        for run in runs:
            if not isinstance(run.cache, _ForeignCache) or run.num_logits > 1:
                raise ValueError("a foreign model needs caches of its own and gives at most one row of logits a run")
            run.cache.reading.text.extend(run.token_ids)
            readings.append(run.cache.reading)
        unread = [reading.unread() for reading in readings]
        known = [i for i, ids in enumerate(unread) if ids]
        rows = self._model.forward(
            [TokenRun(readings[i].cache, unread[i], num_logits=runs[i].num_logits) for i in known]
        )
        for i in known:
            readings[i].took(unread[i])
        logits = dict(zip(known, rows, strict=True))
        return [self._translate(logits.get(i), run.num_logits)[:, : run.vocab_limit] for i, run in enumerate(runs)]

    def _translate(self, row: Logits | None, num_logits: int) -> Logits:
        """float32 [1, D] (None: nothing is known) to float32 [num_logits, V]."""
        translated = np.full((num_logits, self.vocab_size), _NEVER, np.float32)
        if num_logits and row is not None:
            translated[:, self._target_ids] = row[0, self._draft_ids]
        return translated
