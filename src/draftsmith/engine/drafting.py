"""Drafting for a whole batch: who drafts, how much, and with one forward of the draft model for all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from draftsmith.engine.handle import RequestOptions
from draftsmith.engine.pause import Pause, longest_pause
from draftsmith.engine.task import Task
from draftsmith.engine.watch import BatchStep, StepWatch
from draftsmith.model.protocol import DraftRun, Model, TokenRun
from draftsmith.optional import fulfils
from draftsmith.speculate import (
    AutoLength,
    CostModel,
    Drafter,
    DraftSession,
    DraftSteps,
    FixedLength,
    LengthPolicy,
    SteppedDraftSession,
    begin_text,
)
from draftsmith.speculate.drafters.model import drafting
from draftsmith.speculate.drafters.protocol import UnseenDraftSession
from draftsmith.types import Draft, VerificationRule

__all__ = ["BatchCosts", "BatchDrafter", "nobody"]

_HANDLING = 0.02  # of a plain step of a text alone: to ask for a draft, judge it and learn from it, in Python
_QUESTIONS = 32  # over which the share that brought a draft is averaged
_MEMORY = 8  # rounds with drafts, over which the number of texts that draft is averaged


def nobody() -> None:
    """To tell where nobody waits to be told."""


class BatchCosts:
    """``Costs`` as one text of a batch sees them, in units of the batch's plain step.

    B texts write, D of them are expected to draft, and the same forward reads P tokens of prompts. If each of the D
    checks m tokens, the forward has B + P + D (m - 1) rows, and what these cost above B + P rows is shared by the D, as
    are the steps of the draft model. A unit of cost would elsewhere write one token for each of the B, so the share
    counts B / D times. Every row has its own attention, which grows with its text; texts count as long as they are on
    average. What handling a draft takes, all others wait for. These numbers are set before each round; for a text
    alone, these are the costs as measured, and as ``watch`` has found them to be since, if there is one.
    """

    def __init__(self, costs: CostModel, watch: StepWatch | None = None) -> None:
        self._costs = costs
        self._watch = watch
        self.set(writing=1, drafting=1, reading=0, running=1, context=0)

    def as_measured(self) -> BatchCosts:
        """The same without what has been found since."""
        return BatchCosts(self._costs)

    def set(self, *, writing: int, drafting: int, reading: int, running: int, context: float) -> None:
        """What the next forward consists of; ``running`` >= ``writing`` >= ``drafting`` >= 1. ``running``: texts that
        wait while the draft model reads, among them those whose prompts are still to be read. ``context``: tokens that
        a text has, on average.
        """
        drafts, checks = (self._watch.draft_factor, self._watch.check_factor) if self._watch else (1.0, 1.0)
        costs = self._costs
        self._drafting, self._first_row = drafting, writing + reading
        plain, self._row = costs.batch_cost(writing, context), costs.growth(context)[1]
        scale = writing / drafting / plain
        self._scale = scale * checks
        self._before = costs.verify_cost(self._first_row)
        together = costs.batch_cost(drafting, context) * scale * drafts
        self._draft_step, self._draft_start = costs.draft_step * together, costs.draft_start * together
        alone = costs.batch_cost(1, context) * running / costs.batch_cost(running, context) * drafts
        self._draft_read = costs.draft_read * alone  # for one text, not D
        self._handling = _HANDLING * (writing - 1) / plain

    @property
    def draft_step(self) -> float:
        """What one draft token for each of the D costs; a draft model's batches are taken to cost like the target's."""
        return self._draft_step

    @property
    def draft_start(self) -> float:
        """What a draft costs besides its tokens."""
        return self._draft_start

    @property
    def draft_read(self) -> float:
        """What it costs that the draft model reads a token more of one text."""
        return self._draft_read

    def verify_cost(self, num_tokens: int) -> float:
        """What it costs that each of the D checks ``num_tokens`` tokens."""
        if num_tokens == 1:
            return 1.0
        more = self._drafting * (num_tokens - 1)
        rows = self._costs.verify_cost(self._first_row + more) - self._before + self._row * more
        return 1.0 + self._handling + rows * self._scale


class BatchDrafter:
    """Starts draft sessions and policies, and lets all texts that are ready draft side by side."""

    def __init__(
        self,
        drafter: Drafter | None,
        rule: VerificationRule,
        num_draft_tokens: int | None,
        measure: Callable[[], CostModel] | None,
        read_at_once: int,
    ) -> None:
        """``measure`` is called once, when a length has first to be chosen. A draft model reads at most
        ``read_at_once`` tokens of text in a step, unless it is about to draft and lacks fewer.
        """
        self._drafter = drafter
        self._rule: VerificationRule = rule
        self._num_draft_tokens = num_draft_tokens
        self._measure = measure
        self._read_at_once = read_at_once
        self._costs: BatchCosts | None = None
        self._as_measured: BatchCosts | None = None  # where texts depend on the lengths of drafts: without the clock
        self._watch: StepWatch | None = None
        self._step: BatchStep | None = None  # under way, if something can be learnt of it
        self._learnt: AutoLength | None = None  # the policy of the text that ended last
        self._together: float | None = None  # how many texts draft in a round in which some do, of late
        self._brought = 1.0  # how many of the questions for a draft brought one, of late

    def name_for(self, options: RequestOptions) -> str | None:
        """The drafter's name; None when this request is not to draft."""
        drafts = options.draft and self._length_for(options) != 0
        return self._drafter.name if self._drafter is not None and drafts else None

    def start(self, task: Task, session: DraftSession | None, read: int) -> None:
        """A session for ``task`` if it drafts: ``session``, whose text shares ``read`` tokens with it, or a new one."""
        if not task.drafts or self._drafter is None:
            return
        if session is not None:
            session.restart(task.request)
        task.drafter_read = read if session is not None else 0
        task.session = session or self._drafter.start(task.request, self._rule)
        if task.policy is not None:  # it had a place before
            self._begin(task, task.policy)

    def _begin(self, task: Task, policy: LengthPolicy) -> None:
        """A text begins, or goes on after it had to wait. What the draft model reads of it, all others wait for."""
        unread, left = len(task.ids) - task.drafter_read, task.end - len(task.ids)
        begin_text(policy, unread, left, others_wait=True)

    def finish(self, task: Task) -> None:
        """Remember for the next text what this one's policy has learnt."""
        if isinstance(task.policy, AutoLength):
            self._learnt = task.policy

    def draft(
        self, parts: Mapping[Task, int], running: int, before_models: Callable[[], object] = nobody
    ) -> list[tuple[Task, Exception]]:
        """Propose a draft to every text among ``parts`` (tokens to read by task) that is ready for one.

        ``running``: how many texts write or read their prompts, also those that read nothing in this step.
        ``before_models`` is called before a draft model drafts.

        Returns the tasks that went wrong; they must not go on.
        """
        failed, read = self._draft(parts, running, before_models)
        self._step = None if failed or read is None else self._describe(parts, read)
        return failed

    def see_times(self, draft_s: float, check_s: float) -> None:
        """What the last ``draft`` took, and the forward after it, in seconds."""
        if self._watch is not None and self._step is not None:
            self._watch.see(self._step, draft_s, check_s)

    def _draft(
        self, parts: Mapping[Task, int], running: int, before_models: Callable[[], object]
    ) -> tuple[list[tuple[Task, Exception]], int | None]:
        """``draft``, and how many tokens draft models read for their drafts; None where they read for other reasons."""
        alone, longest = len(parts) == 1, longest_pause(running, self._brought)
        ready = [task for task in parts if self._is_due(task, running, longest, alone=alone)]
        if not ready:
            return [], 0
        begin = [task for task in ready if task.policy is None]
        policies = {task: task.policy or self._new_policy(task) for task in ready}
        if begin:  # a text that begins will soon be one of so many
            self._set(parts, writing=running, drafting=running, reading=0, running=running)
        for task in begin:
            self._begin(task, policies[task])
        self._set_costs(ready, parts, running)
        drafts: dict[Task, Draft | Exception] = {}
        stepped: dict[Task, tuple[Model, DraftSteps]] = {}
        may_read = True
        for task in ready:
            session, policy = task.session, policies[task]
            task.policy = policy
            try:
                if self._goes_unseen(task, policy):
                    continue
                if fulfils(session, SteppedDraftSession):
                    if len(task.ids) - task.drafter_read <= self._read_at_once or not policy.wants_more((), None):
                        stepped[task] = (session.model, session.steps(task.ids, task.max_draft, policy.wants_more))
                    elif may_read:
                        task.drafter_read += self._read_at_once
                        session.read(task.ids[: task.drafter_read + 1])
                        may_read = False
                elif session is not None:
                    drafts[task] = session.draft(task.ids, task.max_draft, policy.wants_more)
            except Exception as error:
                drafts[task] = error
        drafts |= _draft_together(stepped, before_models)
        read = 0
        for task, draft in drafts.items():
            if isinstance(draft, Draft) and draft.token_ids:
                task.propose(draft)
                read += 0 if draft.free else len(task.ids) - task.drafter_read
                task.drafter_read = task.drafter_read if draft.free else len(task.ids)
        for task in ready:
            if task.pause is not None:
                task.pause.settle(drafted=task.has_draft, longest=longest)
            self._brought += (task.has_draft - self._brought) / _QUESTIONS
        self._count(sum(task.has_draft for task in ready))
        failed = [(task, error) for task, error in drafts.items() if isinstance(error, Exception)]
        return failed, read if may_read else None

    def _describe(self, parts: Mapping[Task, int], read: int) -> BatchStep | None:
        """The step to come, if the watch can learn from it: texts only write, and nothing was drafted unseen."""
        if self._watch is None or sum(parts.values()) > len(parts):
            return None
        drafts = [task for task in parts if task.has_draft]
        if not drafts:
            return BatchStep(len(parts), len(parts), context=_mean_context(parts))
        drawn = [task.num_drawn for task in drafts if task.num_drawn]
        if any(task.is_unseen for task in drafts):
            return None
        rows = len(parts) + sum(task.rows(0) for task in drafts)
        return BatchStep(len(parts), rows, len(drawn), max(drawn, default=0), read, _mean_context(parts))

    def _is_due(self, task: Task, running: int, longest: int, *, alone: bool) -> bool:
        """Whether to ask for a draft now. Every text is looked at in every round, so what is quick comes first."""
        if task.session is None:
            return False
        resting = not alone and task.pause is not None and not task.pause.over(longest)
        if (resting and not task.constrained) or not task.writing or task.max_draft <= 0 or task.has_draft:
            return False
        if task.pause is None and self._length_for(task.options) is None:
            task.pause = Pause(round((running - 1) * max(0.0, 1 - 2 * self._brought)))
            resting = not alone and not task.pause.over(longest)
        return not task.propose_forced() and not resting

    def _length_for(self, options: RequestOptions) -> int | None:
        """The length of a request's drafts; None: to be chosen round by round."""
        return self._num_draft_tokens if options.num_draft_tokens is None else options.num_draft_tokens

    def _goes_unseen(self, task: Task, policy: LengthPolicy) -> bool:
        """Propose a draft that nobody has seen, where that can be."""
        session, unread = task.session, len(task.ids) - task.drafter_read
        if task.place is None or not fulfils(session, UnseenDraftSession) or unread > self._read_at_once:
            return False
        draft = session.draft_unseen(task.place, task.ids, task.max_draft, policy.wants_more)
        if draft is None:
            return False
        task.propose_unseen(draft)
        task.drafter_read = len(task.ids)
        return True

    def _set_costs(self, ready: Sequence[Task], parts: Mapping[Task, int], running: int) -> None:
        """Drafts and checks are shared by as many as will have a draft, not by all that are asked for one."""
        if self._costs is not None:
            asked, writing = len(ready), sum(task.writing for task in parts)
            drafting = asked if self._together is None else min(asked, max(1, round(self._together)))
            reading = sum(parts.values()) - writing
            self._set(parts, writing=writing, drafting=drafting, reading=reading, running=running)

    def _set(self, parts: Mapping[Task, int], *, writing: int, drafting: int, reading: int, running: int) -> None:
        context = _mean_context([task for task in parts if task.writing] or parts)
        for costs in (self._costs, self._as_measured):
            if costs is not None:
                costs.set(writing=writing, drafting=drafting, reading=reading, running=running, context=context)

    def _count(self, drafted: int) -> None:
        """So many texts have drafted in a round; one without a draft says nothing about who shares its costs."""
        if drafted:
            known = drafted if self._together is None else self._together
            self._together = known + (drafted - known) / _MEMORY

    def _new_policy(self, task: Task) -> LengthPolicy:
        """A fixed length, or one that begins with what was learnt, except where the text depends on it."""
        length = self._length_for(task.options)
        if length is not None:
            return FixedLength(length)
        if self._costs is None:
            measured = self._measure() if self._measure is not None else CostModel(0.0)
            self._watch = StepWatch(measured)
            self._costs = BatchCosts(measured, self._watch)
        if self._rule == "rejection" and not task.request.sampling.greedy:
            self._as_measured = self._as_measured or self._costs.as_measured()
            return AutoLength(self._as_measured)
        return AutoLength(self._costs) if self._learnt is None else self._learnt.successor()


def _mean_context(texts: Collection[Task]) -> float:
    """Tokens that a text has."""
    return sum(len(task.ids) for task in texts) / max(1, len(texts))


def _draft_together(
    sessions: Mapping[Task, tuple[Model, DraftSteps]], before_models: Callable[[], object]
) -> dict[Task, Draft | Exception]:
    """The draft of every session, or what went wrong with it; those on one model share its forwards."""
    results: dict[Task, Draft | Exception] = {}
    groups: dict[int, tuple[Model, dict[Task, DraftSteps]]] = {}
    for task, (model, steps) in sessions.items():
        groups.setdefault(id(model), (model, {}))[1][task] = steps
    for model, group in groups.values():
        answers: dict[Task, object] = dict.fromkeys(group)
        while answers:
            wanted = _next_wanted(group, answers, results)
            answers = {}
            runs = {task: run for task, run in wanted.items() if isinstance(run, TokenRun)}
            whole = {task: run for task, run in wanted.items() if isinstance(run, DraftRun)}
            if wanted:
                before_models()
            try:
                if runs:
                    answers |= zip(runs, model.forward(list(runs.values())), strict=True)
                if whole:
                    answers |= zip(whole, drafting(model).draft(list(whole.values())), strict=True)
            except Exception as error:
                results |= dict.fromkeys(wanted, error)
                break
    return results


def _next_wanted(
    group: Mapping[Task, DraftSteps], answers: Mapping[Task, object], results: dict[Task, Draft | Exception]
) -> dict[Task, TokenRun | DraftRun]:
    """Give every draft in the making its answer (None: it has not begun); who ends goes into ``results``."""
    wanted: dict[Task, TokenRun | DraftRun] = {}
    for task, answer in answers.items():
        try:
            wanted[task] = group[task].send(answer)
        except StopIteration as drafted:
            results[task] = drafted.value
        except Exception as error:
            results[task] = error
    return wanted
