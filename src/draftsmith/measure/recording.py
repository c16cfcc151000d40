"""A model that keeps a list of its forwards: what was read, how much was checked, how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from draftsmith.model.protocol import KVCache, Logits, Model, TokenRun

__all__ = ["Forward", "ProfilingModel", "RecordingModel"]


@runtime_checkable
class ProfilingModel(Protocol):
    """A model that knows which of its kernels took the time; see ``NativeModel``."""

    def profile(self, on: bool) -> dict[str, float]:
        """Seconds by kernel since profiling was last turned on; then it is ``on``, from zero."""
        ...


@dataclass(frozen=True, slots=True)
class Forward:
    """One run of one forward. ``num_logits``: rows asked for. ``context``: tokens in the cache before it.

    ``ended``: by ``time.perf_counter``. ``kernels``: seconds of each, where they were asked for and the model knows.
    """

    num_tokens: int
    num_logits: int
    context: int
    seconds: float
    ended: float = 0.0
    kernels: Mapping[str, float] = field(default_factory=dict)


class RecordingModel:
    """Passes everything on to another model and records it: any backend can be timed from outside, by its protocol.

    ``by_kernel``, which may be changed at any time: whether forwards are taken apart by kernel.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.by_kernel = False
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
        profiled = self.model if self.by_kernel and isinstance(self.model, ProfilingModel) else None
        if profiled is not None:
            profiled.profile(True)
        began = time.perf_counter()
        rows = self.model.forward(runs)
        ended = time.perf_counter()
        seconds = (ended - began) / max(1, len(runs))
        kernels = {} if profiled is None else profiled.profile(False)
        self._forwards += [
            Forward(len(run.token_ids), run.num_logits, context, seconds, ended, kernels)
            for run, context in zip(runs, contexts, strict=True)
        ]
        return rows

    @property
    def latest_end(self) -> float:
        """When the last forward ended, by ``time.perf_counter``. There must have been one since ``take``."""
        return self._forwards[-1].ended

    def take(self) -> list[Forward]:
        """The forwards since the last call, in order."""
        taken, self._forwards = self._forwards, []
        return taken
