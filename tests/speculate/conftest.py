"""Models that are tables: what follows depends on the last two tokens, so every text can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from draftsmith.model.protocol import TokenRun

Row = npt.NDArray[np.float32]


class TableCache:
    """Remembers the ids themselves."""

    def __init__(self, capacity: int) -> None:
        self.ids: list[int] = []
        self.capacity = capacity

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        if not 0 <= length <= len(self.ids):
            raise ValueError(length)
        del self.ids[length:]


class TableModel:
    """Logits are a fixed random function of the last two tokens. ``noise`` mixes in another one: a draft of it.

    ``reads`` records the number of tokens of every run.
    """

    def __init__(
        self, vocab_size: int = 30, *, seed: int = 0, noise: float = 0.0, max_context: int = 400, scale: float = 3.0
    ) -> None:
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.reads: list[int] = []

        @cache
        def row(context: tuple[int, ...]) -> Row:
            common = np.random.default_rng((seed, *context)).normal(0, scale, 64)[:vocab_size]
            own = np.random.default_rng((seed, 99, *context)).normal(0, scale, 64)[:vocab_size]
            return ((1 - noise) * common + noise * own).astype(np.float32)

        self._row = row

    def logits(self, ids: Sequence[int]) -> Row:
        return self._row(tuple(ids[-2:])).copy()

    def new_cache(self, capacity: int | None = None) -> TableCache:
        return TableCache(self.max_context if capacity is None else capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Row]:
        return [self._append(run) for run in runs]

    def _append(self, run: TokenRun) -> Row:
        cache, ids = run.cache, list(run.token_ids)
        assert isinstance(cache, TableCache)
        if not ids or cache.length + len(ids) > cache.capacity or not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"a run of {len(ids)} tokens after {cache.length} of {cache.capacity}: {ids}")
        self.reads.append(len(ids))
        cache.ids += ids
        ends = range(cache.length - run.num_logits + 1, cache.length + 1)
        rows = np.array([self.logits(cache.ids[:end]) for end in ends], np.float32).reshape(-1, self.vocab_size)
        return rows[:, : run.vocab_limit]


@pytest.fixture
def table_model() -> Callable[..., TableModel]:
    return TableModel
