"""A draft model that knows a part of the target's vocabulary, as a model in the target's ids.

Shape legend: V entries of the target's vocabulary, M rows of the draft's embedding and output layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint.draft_vocabulary import DraftVocabulary
from draftsmith.model.protocol import DraftRun, KVCache, Logits, Model, TokenRun

__all__ = ["PrunedModel"]

_NEVER = np.float32(-1e30)  # finite, so that a grammar or a bias that forbids all M ids is no error here


class _Counted(Model, Protocol):
    """A model that knows what its caches take, as those of the native backend do."""

    @property
    def cache_bytes_in_use(self) -> int: ...

    def cache_bytes(self, positions: int) -> int: ...

    def step_bytes(self, context: int, vocab_limit: int | None = None) -> int: ...

    def profile(self, on: bool) -> dict[str, float]: ...

    def draft(self, runs: Sequence[DraftRun], names: npt.NDArray[np.int32] | None = None) -> list[list[int]]: ...


class PrunedModel:
    """``model``, of M ids, behind the ids of its target: reads them all, and gives the M their logits, others none.

    What is drawn from it is drawn from a distribution over the target's ids, so every rule and option works, and the
    coupled rule's noise is the target's own.
    """

    def __init__(self, model: _Counted, vocabulary: DraftVocabulary) -> None:
        self._model = model
        self._rows, self._token_ids = vocabulary.rows, vocabulary.token_ids
        self._names = vocabulary.token_ids.astype(np.int32)
        self.vocab_size = len(vocabulary.rows)

    @property
    def max_context(self) -> int:
        """See ``protocol.Model``."""
        return self._model.max_context

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """See ``protocol.Model``."""
        return self._model.new_cache(capacity)

    @property
    def cache_bytes_in_use(self) -> int:
        """Bytes of all caches of this model."""
        return self._model.cache_bytes_in_use

    def cache_bytes(self, positions: int) -> int:
        """Bytes that a cache of so many tokens takes."""
        return self._model.cache_bytes(positions)

    def step_bytes(self, context: int, vocab_limit: int | None = None) -> int:  # noqa: ARG002  # of the target's ids
        """Bytes that a step after ``context`` tokens must read; see ``NativeModel.step_bytes``."""
        return self._model.step_bytes(context)

    def profile(self, on: bool) -> dict[str, float]:
        """Seconds by kernel; see ``NativeModel.profile``."""
        return self._model.profile(on)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """See ``protocol.Model``; float32 [R, V] for each run. An id outside the vocabulary raises ValueError."""
        inner = [TokenRun(run.cache, self._read(run.token_ids), run.num_logits) for run in runs]
        logits = self._model.forward(inner)
        return [self._spread(rows)[:, : run.vocab_limit] for rows, run in zip(logits, runs, strict=True)]

    def draft(self, runs: Sequence[DraftRun]) -> list[list[int]]:
        """See ``protocol.DraftingModel``. A row reads its own id, so a draft goes on from what it has drawn."""
        inner = [replace(run, token_ids=self._read(run.token_ids), vocab_limit=None) for run in runs]
        return [self._token_ids[drawn].tolist() for drawn in self._model.draft(inner, self._names)]

    def _read(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The row that reads each id."""
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            raise ValueError(f"a token id is outside the vocabulary of {self.vocab_size}")
        rows: list[int] = self._rows[np.asarray(token_ids)].tolist()
        return rows

    def _spread(self, logits: Logits) -> Logits:
        """float32 [R, M] to float32 [R, V]."""
        spread = np.full((len(logits), self.vocab_size), _NEVER, np.float32)
        spread[:, self._token_ids] = logits
        return spread
