"""Memory for keys and values: how much there is, and the texts whose caches are kept because others may begin alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from draftsmith.model.memory import available_memory
from draftsmith.model.protocol import KVCache, Model
from draftsmith.optional import fulfils
from draftsmith.speculate import DraftSession

__all__ = ["CountedModel", "KVMemory", "Kept", "ModelOnDevice", "PrefixCache", "SharedCache", "shared_prefix"]

_PIECE = 512  # tokens compared at once; lists compare at C speed
_BLOCK = 64  # positions that are allocated together
_SHARE_OF_MEMORY = 0.5  # of what is free when the engine is made


@runtime_checkable
class SharedCache(KVCache, Protocol):
    """A cache that another can start from without copying. The native backend's are of this kind."""

    def fork(self, length: int) -> KVCache:
        """Another cache with the first ``length`` tokens. Later changes to one do not show in the other."""
        ...

    def growth(self, count: int) -> int:
        """Bytes that it takes to append ``count`` tokens."""
        ...


@runtime_checkable
class CountedModel(Model, Protocol):
    """A model that knows what its caches take. The native backend's do."""

    @property
    def cache_bytes_in_use(self) -> int:
        """Bytes of all caches of this model that are alive; what several share counts once."""
        ...

    def cache_bytes(self, positions: int) -> int:
        """Bytes that a cache of so many tokens takes."""
        ...


@runtime_checkable
class ModelOnDevice(Model, Protocol):
    """A model that may keep its caches elsewhere than in main memory. The torch backend's do."""

    @property
    def free_memory(self) -> int | None:
        """Bytes that are free there; None: it is main memory."""
        ...


class KVMemory:
    """The budget for the caches of a target and its draft model, in bytes; unlimited for models that do not count."""

    def __init__(self, target: Model, draft: Model | None, budget: int | None) -> None:
        """``budget`` None: half of the memory that is free at this moment."""
        self._models = [model for model in (target, draft) if isinstance(model, CountedModel)]
        self._budget, self._capacity, self._with_draft = math.inf, target.max_context, 1.0
        if not isinstance(target, CountedModel):
            return
        available = _free_memory(target) if budget is None else None
        if budget is not None:
            self._budget = budget
        elif available is not None:
            self._budget = available * _SHARE_OF_MEMORY
        block = sum(model.cache_bytes(_BLOCK) for model in self._models)
        self._with_draft = block / target.cache_bytes(_BLOCK)
        if self._budget < target.max_context * block / _BLOCK:
            self._capacity = max(1, int(self._budget / block)) * _BLOCK

    @property
    def capacity(self) -> int:
        """Tokens that one text may have: the model's context, or less where the budget holds less."""
        return self._capacity

    @property
    def budget(self) -> int | None:
        """Bytes; None when unlimited."""
        return None if math.isinf(self._budget) else int(self._budget)

    @property
    def in_use(self) -> int:
        """Bytes."""
        return sum(model.cache_bytes_in_use for model in self._models)

    @property
    def free(self) -> float:
        """Bytes; less than nothing when the budget is overdrawn."""
        return self._budget - self.in_use

    def growth(self, cache: KVCache, count: int, *, drafting: bool) -> float:
        """Bytes that ``count`` tokens more will take, a draft model's cache included."""
        grown = cache.growth(count) if fulfils(cache, SharedCache) else 0
        return grown * (self._with_draft if drafting else 1.0)


def _free_memory(target: Model) -> int | None:
    on_device = target.free_memory if isinstance(target, ModelOnDevice) else None
    return available_memory() if on_device is None else on_device


@dataclass(slots=True)
class Kept:
    """A text that is over: ``cache`` holds ``ids``. ``session``: its draft session, until somebody takes it."""

    ids: list[int]
    cache: KVCache
    session: DraftSession | None

    def give_session(self) -> DraftSession | None:
        """The draft session, which is then no longer here."""
        session, self.session = self.session, None
        return session


class PrefixCache:
    """Caches of texts that are over, the most recently useful last."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: list[Kept] = []

    def __len__(self) -> int:
        return len(self._entries)

    def best(self, ids: Sequence[int]) -> tuple[Kept | None, int]:
        """The entry that shares most of the beginning with ``ids``, their last token apart, and how many tokens."""
        found: tuple[Kept | None, int] = (None, 0)
        for entry in self._entries:
            shared = min(shared_prefix(entry.ids, ids), len(ids) - 1)
            if shared > found[1]:
                found = (entry, shared)
        return found

    def lend(self, entry: Kept, length: int) -> KVCache:
        """A cache of the entry's first ``length`` tokens: the entry's own where caches cannot be shared."""
        if fulfils(entry.cache, SharedCache):
            self._entries.remove(entry)
            self._entries.append(entry)
            return entry.cache.fork(length)
        self._entries.remove(entry)
        entry.cache.truncate(length)
        return entry.cache

    def keep(self, ids: list[int], cache: KVCache, session: DraftSession | None) -> None:
        """Keep a text; it replaces those that it goes on from."""
        if self._max_entries == 0 or not ids:
            return
        self._entries = [entry for entry in self._entries if entry.ids != ids[: len(entry.ids)]]
        self._entries.append(Kept(ids, cache, session))
        if len(self._entries) > self._max_entries:
            self.evict()

    def clear(self) -> None:
        """Forget all entries."""
        self._entries.clear()

    def evict(self) -> bool:
        """Forget the entry that has been of no use for longest; False when there is none."""
        if self._entries:
            del self._entries[0]
            return True
        return False


def shared_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading tokens that two lists share."""
    shorter = min(len(a), len(b))
    begin = 0
    while begin < shorter and a[begin : begin + _PIECE] == b[begin : begin + _PIECE]:
        begin += _PIECE
    return next((i for i in range(begin, shorter) if a[i] != b[i]), shorter)
