"""Who waits, who runs, and with which caches: places and memory are given out here and taken back."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

from draftsmith.engine.kv import KVMemory, PrefixCache, SharedCache, shared_prefix
from draftsmith.engine.limits import EngineLimits
from draftsmith.engine.task import Task
from draftsmith.model.protocol import KVCache, Model
from draftsmith.optional import fulfils
from draftsmith.speculate import DraftSession

__all__ = ["Roster"]

_WORTH_WAITING_FOR = 64  # tokens of a prompt that another text is about to read
_SLACK = 64  # tokens that every text may still write when another one gets a place
_BY_NUMBER = attrgetter("number")

Seat = Callable[[Task, DraftSession | None, int], None]
"""Told of a task that gets a place, a draft session to take over, and how many tokens that one may have read."""


class Roster:
    """``waiting`` and ``running`` are in order of arrival; who was preempted keeps the number it had."""

    def __init__(self, model: Model, memory: KVMemory, limits: EngineLimits) -> None:
        self.running: list[Task] = []
        self.waiting: list[Task] = []
        self.kept = PrefixCache(limits.max_kept_texts if limits.share_prompts else 0)
        self.num_preemptions = self.num_prompt_tokens = self.num_reused_tokens = 0
        self._model = model
        self._memory = memory
        self._limits = limits
        self._arrivals = 0

    def enqueue(self, task: Task) -> None:
        """Put a task at the end of the queue."""
        self._arrivals += 1
        task.number = self._arrivals
        self.waiting.append(task)

    def admit(self, seat: Seat) -> None:
        """Give places to those who wait, in order of arrival, as far as places and memory go.

        Who begins like a text that is being read waits until the two can share what is read.
        """
        for task in list(self.waiting):
            if len(self.running) >= self._limits.max_running:
                return
            if self._is_being_read(task):
                continue
            try:
                if not self._admit(task, seat):
                    return
            except Exception as error:
                self.remove(task, keep=False, error=error)

    def remove(self, task: Task, *, keep: bool, error: Exception | None = None) -> None:
        """A task is over. ``keep``: its cache is sound and may serve others. ``error`` ends it if it has no end yet."""
        (self.running if task in self.running else self.waiting).remove(task)
        if keep and task.has_cache:
            self.kept.keep(task.ids[: task.cache.length], task.cache, task.session)
        task.drop()
        if not task.handle.finished:
            task.handle.end(error)

    def preempt(self, task: Task) -> None:
        """Back into the queue, at its old place and without caches."""
        task.drop()
        self.running.remove(task)
        insort(self.waiting, task, key=_BY_NUMBER)
        self.num_preemptions += 1

    def make_room(self, parts: dict[Task, int]) -> dict[Task, int]:
        """What is left of a step's ``parts`` (tokens to read by task) when the last ones have made room for the others.

        The text that came first is never preempted, so there is always one that goes on.
        """
        while sum(self._growth(task, task.rows(count)) for task, count in parts.items()) > self._memory.free:
            if self.kept.evict():
                continue
            if len(self.running) == 1:
                break
            last = self.running[-1]
            self.preempt(last)
            parts = {task: count for task, count in parts.items() if task is not last}
        return parts

    def _admit(self, task: Task, seat: Seat) -> bool:
        """Move one task from the queue into the batch, with the best cache there is; False when memory is short."""
        cache, session, shared = self._best_cache(task)
        need = self._memory.growth(cache, len(task.ids) - cache.length, drafting=task.drafts)
        while need > self._unclaimed() and self.kept.evict():
            pass
        if need > self._unclaimed() and self.running:
            return False
        self.waiting.remove(task)
        insort(self.running, task, key=_BY_NUMBER)
        self.num_prompt_tokens += len(task.ids)
        self.num_reused_tokens += cache.length
        task.seat(cache)
        seat(task, session() if session is not None else None, shared)
        task.handle.started(cache.length)
        return True

    def _best_cache(self, task: Task) -> tuple[KVCache, Callable[[], DraftSession | None] | None, int]:
        """A cache that holds as much as possible of the task's text, how to get a draft session that goes with it, and
        how many tokens the two texts share.
        """
        entry, shared = self.kept.best(task.ids[: task.sharable + 1])
        session = entry.give_session if entry is not None and task.drafts else None
        held, lender = max(self._lenders(task), key=lambda lender: lender[0], default=(0, None))
        if lender is not None and held > shared:
            return lender.fork(held), session, shared
        if entry is not None:
            return self.kept.lend(entry, shared), session, shared
        return self._model.new_cache(), None, 0

    @property
    def _sharing(self) -> Sequence[Task]:
        """Those of the batch whose texts may save others some reading."""
        return self.running if self._limits.share_prompts else ()

    def _lenders(self, task: Task) -> Iterator[tuple[int, SharedCache]]:
        """Caches of the batch that can be shared, with the number of tokens of the task's text that each holds."""
        for other in self._sharing:
            if fulfils(other.cache, SharedCache):
                yield min(shared_prefix(other.ids, task.ids), other.cache.length, task.sharable), other.cache

    def _is_being_read(self, task: Task) -> bool:
        """Whether another text will soon hold much more of this one's beginning than any cache does now."""
        coming = [shared_prefix(other.ids, task.ids) for other in self._sharing if not other.writing]
        best = min(max(coming, default=0), task.sharable)
        if best < _WORTH_WAITING_FOR:
            return False
        held = max((held for held, _ in self._lenders(task)), default=best)
        return best - max(held, self.kept.best(task.ids[: task.sharable + 1])[1]) >= _WORTH_WAITING_FOR

    def _unclaimed(self) -> float:
        """Free bytes without those that the batch will need before long, to read its prompts and write a little."""
        return self._memory.free - sum(self._growth(task, task.unread + _SLACK) for task in self.running)

    def _growth(self, task: Task, count: int) -> float:
        return self._memory.growth(task.cache, count, drafting=task.drafts)
