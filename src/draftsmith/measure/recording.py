"""A model that keeps a list of its forwards: what was read, how much was checked, how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from draftsmith.model.protocol import KVCache, Logits, Model, TokenRun

__all__ = ["Forward", "RecordingModel"]


@dataclass(frozen=True, slots=True)
class Forward:
    """One run of one forward. ``num_logits``: rows asked for. ``context``: tokens in the cache before it."""

    num_tokens: int
    num_logits: int
    context: int
    seconds: float


class RecordingModel:
    """Passes everything on to another model and records it: any backend can be timed from outside, by its protocol."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._forwards: list[Forward] = []

    @property
    def vocab_size(self) -> int:
        """See ``Model``."""
        return self.model.vocab_size

    @property
    def max_context(self) -> int:
        """See ``Model``."""
        return self.model.max_context

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """See ``Model``."""
        return self.model.new_cache(capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """See ``Model``. The time of a forward of several runs is shared out equally."""
        contexts = [run.cache.length for run in runs]
        began = time.perf_counter()
        rows = self.model.forward(runs)
        seconds = (time.perf_counter() - began) / max(1, len(runs))
        self._forwards += [
            Forward(len(run.token_ids), run.num_logits, context, seconds)
            for run, context in zip(runs, contexts, strict=True)
        ]
        return rows

    def take(self) -> list[Forward]:
        """The forwards since the last call, in order."""
        taken, self._forwards = self._forwards, []
        return taken
