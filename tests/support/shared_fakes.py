"""A fake model whose caches share blocks and are counted, like the native backend's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from draftsmith.model.protocol import Logits, TokenRun
from tests.support.fakes import VOCAB_SIZE, FakeCache, FakeModel

BLOCK = 64


class Block:
    """64 positions; counts who holds it."""

    def __init__(self, model: SharedFakeModel) -> None:
        self.owners = 0
        self.model = model


class SharedFakeCache(FakeCache):
    """Blocks are only counted; what the cache holds are the ids."""

    def __init__(self, model: SharedFakeModel, capacity: int) -> None:
        super().__init__(capacity)
        self.model = model
        self.blocks: list[Block] = []

    def __del__(self) -> None:
        for block in self.blocks:
            self._release(block)

    def fork(self, length: int) -> SharedFakeCache:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot fork {length} tokens of {self.length}")
        other = SharedFakeCache(self.model, self.capacity)
        other.ids = self.ids[:length]
        for block in self.blocks[: blocks_for(length)]:
            other._hold(block)
        return other

    def growth(self, count: int) -> int:
        needed = blocks_for(self.length + count)
        written = self.blocks[self.length // BLOCK : needed]
        return BLOCK * (max(0, needed - len(self.blocks)) + sum(block.owners > 1 for block in written))

    def reserve(self, count: int) -> None:
        needed = blocks_for(self.length + count)
        for i in range(self.length // BLOCK, min(needed, len(self.blocks))):
            if self.blocks[i].owners > 1:
                self._release(self.blocks[i])
                self._hold(Block(self.model))
                self.blocks[i] = self.blocks.pop()
        while len(self.blocks) < needed:
            self._hold(Block(self.model))

    def _hold(self, block: Block) -> None:
        self.model.cache_bytes_in_use += BLOCK * (block.owners == 0)
        block.owners += 1
        self.blocks.append(block)

    def _release(self, block: Block) -> None:
        block.owners -= 1
        self.model.cache_bytes_in_use -= BLOCK * (block.owners == 0)


def blocks_for(positions: int) -> int:
    return -(-positions // BLOCK)


class SharedFakeModel(FakeModel):
    """``batches`` records the tokens of every run of every forward; ``errors`` are raised by the next ones.

    64 positions count as 64 bytes.
    """

    def __init__(self, seed: int = 0, *, order: int = 2, max_context: int = 512, eos_after: int | None = None) -> None:
        super().__init__(seed, order=order, max_context=max_context, eos_after=eos_after)
        self.cache_bytes_in_use = 0
        self.batches: list[list[int]] = []
        self.errors: list[Exception] = []

    def cache_bytes(self, positions: int) -> int:
        return BLOCK * blocks_for(positions)

    def new_cache(self, capacity: int | None = None) -> SharedFakeCache:
        return SharedFakeCache(self, super().new_cache(capacity).capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        if self.errors:
            raise self.errors.pop(0)
        assert len({id(run.cache) for run in runs}) == len(runs)
        self.batches.append([len(run.token_ids) for run in runs])
        return [self._read(run) for run in runs]

    def _read(self, run: TokenRun) -> Logits:
        assert isinstance(run.cache, SharedFakeCache)
        assert run.num_logits <= len(run.token_ids)
        run.cache.reserve(len(run.token_ids))
        if run.num_logits == 0:
            self._forward(TokenRun(run.cache, run.token_ids))
            return np.empty((0, VOCAB_SIZE), np.float32)
        return self._forward(run)
