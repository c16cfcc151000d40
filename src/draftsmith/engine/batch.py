"""``Engine``: many requests at once, each with the tokens that it would have alone.

A step is one round of ``speculate.loop`` for every text of the batch: all that draft draft together, then one forward
of the target checks every draft and reads the next part of every prompt. Between steps requests join and leave. When
memory runs short, the text that came last gives up its caches and later reads prompt and reply again. Since logits are
a function of the tokens before and draws one of (seed, position, token), it goes on as if nothing had been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from draftsmith.engine.drafting import BatchDrafter, nobody
from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.engine.kv import KVMemory
from draftsmith.engine.limits import EngineLimits, share_reading
from draftsmith.engine.roster import Roster
from draftsmith.engine.task import Task
from draftsmith.errors import OutOfMemory, QueueFull, UsageError
from draftsmith.model.protocol import Checked, CheckRun, Logits, Model, TokenRun
from draftsmith.speculate import CostModel, Drafter, Round
from draftsmith.speculate.unseen import on_device
from draftsmith.types import Request, VerificationRule

__all__ = ["Engine", "EngineStats"]

Run = TypeVar("Run", TokenRun, CheckRun)
Said = TypeVar("Said", Logits, Checked)

_MOST_ROWS = 64  # of logits that a prompt is scored with at once; each may take half a megabyte


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing, and what it has done since it was made. Bytes are those of keys and values."""

    running: int
    waiting: int
    kept_texts: int
    kv_bytes: int
    kv_budget: int | None
    num_steps: int
    num_preemptions: int
    num_prompt_tokens: int
    num_reused_tokens: int  # prompt tokens that were in a cache already


class Engine:
    """Schedules requests over one target and perhaps a drafter. For one thread; ``EngineThread`` is for several.

    handle = engine.submit(request)
    while not handle.finished:
        engine.step()
    rounds = handle.take()
    """

    def __init__(
        self,
        model: Model,
        *,
        eos_ids: Collection[int] = (),
        drafter: Drafter | None = None,
        draft_model: Model | None = None,
        costs: Callable[[], CostModel] | None = None,
        num_draft_tokens: int | None = None,
        rule: VerificationRule = "coupled",
        limits: EngineLimits | None = None,
    ) -> None:
        """``draft_model``: the one behind ``drafter``, whose caches count too. ``num_draft_tokens``: how many to draft
        a round where the request does not say; None chooses by ``costs``, which is called once, when first needed.
        Under the rejection rule, what is sampled depends on the lengths of drafts and so on the batch, though not on
        the clock; under ``coupled``, and greedily, it does not.

        Raises UsageError when a draft length is to be chosen and there are no costs.
        """
        if drafter is not None and num_draft_tokens is None and costs is None:
            raise UsageError("an engine with a drafter needs num_draft_tokens, or costs to choose it by; give one")
        self.limits = limits or EngineLimits()
        self._model = model
        self._eos_ids = frozenset(eos_ids)
        self._rule: VerificationRule = rule
        self._drafter = BatchDrafter(drafter, rule, num_draft_tokens, costs, self.limits.prefill_tokens)
        self._memory = KVMemory(model, draft_model, self.limits.kv_bytes)
        self._roster = Roster(model, self._memory, self.limits)
        self._num_steps = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._roster.running and not self._roster.waiting

    @property
    def capacity(self) -> int:
        """Tokens that prompt and reply may have together: the model's context, or less where memory is short."""
        return self._memory.capacity

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._roster.waiting)

    @property
    def stats(self) -> EngineStats:
        """See ``EngineStats``."""
        return EngineStats(
            running=len(self._roster.running),
            waiting=len(self._roster.waiting),
            kept_texts=len(self._roster.kept),
            kv_bytes=self._memory.in_use,
            kv_budget=self._memory.budget,
            num_steps=self._num_steps,
            num_preemptions=self._roster.num_preemptions,
            num_prompt_tokens=self._roster.num_prompt_tokens,
            num_reused_tokens=self._roster.num_reused_tokens,
        )

    def submit(
        self, request: Request, options: RequestOptions | None = None, wake: Callable[[], object] | None = None
    ) -> Handle:
        """Queue a request; ``wake`` is called for all news of it.

        Raises QueueFull, PromptTooLong, UsageError; then nothing is queued.
        """
        self.check_queue(self.num_waiting)
        task = self.prepare(request, options, wake)
        self.enqueue(task)
        return task.handle

    def check_queue(self, waiting: int) -> None:
        """Raises QueueFull when no more than ``waiting`` requests may wait."""
        if waiting >= self.limits.max_waiting:
            raise QueueFull(f"{waiting} requests are waiting already; try again in a moment")

    def prepare(
        self, request: Request, options: RequestOptions | None = None, wake: Callable[[], object] | None = None
    ) -> Task:
        """Check a request and make it a task for ``enqueue``; any thread may. Raises PromptTooLong, UsageError."""
        options, width = options or RequestOptions(), self._model.vocab_size
        for where, ids in (("the prompt", request.prompt_ids), ("logit_bias", request.sampling.logit_bias)):
            wrong = next((token_id for token_id in ids if not 0 <= token_id < width), None)
            if wrong is not None:
                raise UsageError(f"{where} has the token id {wrong}; the model has ids from 0 to {width - 1}")
        drafter = self._drafter.name_for(options)
        handle = Handle(request, drafter, wake)
        drafts, capacity = drafter is not None, self._memory.capacity
        return Task(
            request, options, handle, drafts=drafts, capacity=capacity, eos_ids=self._eos_ids, target=self._model
        )

    def enqueue(self, task: Task) -> None:
        """Put a prepared task into the queue, however long that is."""
        self._roster.enqueue(task)

    def abandon(self) -> None:
        """End all requests where they are."""
        for task in [*self._roster.running, *self._roster.waiting]:
            self._roster.remove(task, keep=False)

    def forget_texts(self) -> None:
        """Free the caches of texts that are over. What was learnt about drafts stays."""
        self._roster.kept.clear()

    def step(self, before_models: Callable[[], object] = nobody) -> None:
        """One round for every text of the batch. Errors end the requests that they concern, never the others.

        ``before_models`` is called before a model computes, at least once: meanwhile other threads can have the
        interpreter, which they would have to fight for at any other time.
        """
        self._num_steps += 1
        try:
            self._dismiss_cancelled()
            self._roster.admit(self._drafter.start)
            counts = self._share_step()
            began = time.perf_counter()
            for task, error in self._drafter.draft(counts, len(self._roster.running), before_models):
                self._roster.remove(task, keep=False, error=error)
                del counts[task]
            drafted, texts = time.perf_counter(), len(counts)
            counts = self._roster.make_room(counts)
            before_models()
            answers = self._forward(counts)
            if len(answers) == texts:
                self._drafter.see_times(drafted - began, time.perf_counter() - drafted)
            for task, said in answers.items():
                self._advance(task, said)
        except BaseException:  # an interrupt: texts and caches may no longer fit together
            for task in list(self._roster.running):
                self._roster.remove(task, keep=False)
            raise

    def _dismiss_cancelled(self) -> None:
        for task in [*self._roster.running, *self._roster.waiting]:
            if task.handle.cancelled:
                self._roster.remove(task, keep=True)

    def _share_step(self) -> dict[Task, int]:
        """How many tokens of its text every task reads in this step: one where the reply is being written."""
        reading = [task for task in self._roster.running if not task.writing]
        others_wait = len(reading) < len(self._roster.running)
        tokens = self.limits.prefill_tokens_beside if others_wait else self.limits.prefill_tokens
        shares = dict(zip(reading, share_reading([task.unread for task in reading], tokens), strict=True))
        counts = {task: shares.get(task, 1) for task in self._roster.running}
        counts |= {task: min(count, task.unscored + _MOST_ROWS) for task, count in counts.items() if task.scores_prompt}
        return {task: count for task, count in counts.items() if count}

    def _forward(self, counts: Mapping[Task, int]) -> dict[Task, Logits | Checked]:
        """What the target says to all: logits for those who read their text to its end, choices for unseen drafts."""
        unseen = {task: run for task in counts if (run := task.check_run()) is not None}
        runs = {task: task.run(count) for task, count in counts.items() if task not in unseen}
        said: dict[Task, Logits | Checked] = {}
        if unseen:
            said |= self._together(unseen, on_device(self._model).check)
        if runs:
            logits = self._together(runs, self._model.forward)
            said |= {task: rows for task, rows in logits.items() if runs[task].num_logits}
        return said

    def _together(self, runs: dict[Task, Run], compute: Callable[[Sequence[Run]], list[Said]]) -> dict[Task, Said]:
        """``compute`` for all at once; nothing where it went wrong, which is then taken care of."""
        try:
            results = compute(list(runs.values()))
        except Exception as error:
            last = next(reversed(runs))
            if isinstance(error, OutOfMemory) and len(runs) > 1:  # no cache has changed: the others try again
                self._roster.preempt(last)
            else:
                for task in runs:
                    self._roster.remove(task, keep=False, error=error)
            return {}
        return dict(zip(runs, results, strict=True))

    def _advance(self, task: Task, said: Logits | Checked) -> None:
        """From what the target says to the round that the caller sees."""
        try:
            if isinstance(said, Checked):
                written: Round | None = task.advance_unseen(said, self._rule)
            else:
                written = task.advance(said, self._rule)
        except Exception as error:
            self._roster.remove(task, keep=False, error=error)
            return
        if written is None:
            return
        task.handle.put(written)
        if written.finish_reason is not None:
            self._drafter.finish(task)
            self._roster.remove(task, keep=True)
