"""``plan``: which drafter to use, and how many tokens to draft, predicted from little work and then checked.

The target writes its replies once, plainly. Greedy and coupled texts do not depend on the drafter, so each candidate is
then read along that text (teacher-forced): wherever its own choice equals the target's token, a draft would have been
accepted. From those hits every draft length can be replayed exactly, and what each round costs follows from c and v(m).
Only the best candidates are run in earnest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import PromptTooLong, UsageError
from draftsmith.measure.conversation import Report, forget_caches, tell_nobody
from draftsmith.measure.costs import CostCurves
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.statistics import Interval, ratio_interval
from draftsmith.model.protocol import TokenRun
from draftsmith.sampling import Noise, TokenHistory, needs_history, process
from draftsmith.speculate import Drafter, FixedLength, PromptLookupDrafter, check_same_vocabulary
from draftsmith.types import Message, Request, SamplingParams, Verdict

__all__ = [
    "LENGTHS",
    "WORTHWHILE",
    "Forecast",
    "Hits",
    "PlainReply",
    "at_half_cost",
    "drawn_hits",
    "forecast",
    "lookup_hits",
    "mixed_hits",
    "model_hits",
    "write_replies",
]

WORTHWHILE = 1.02  # a gain below this is not worth the memory of a drafter
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
_STRIDE = 4  # tokens that are drafted at once along a text


@dataclass(frozen=True, slots=True)
class PlainReply:
    """A reply of the target, the ids of its prompt, and the seed and length it was asked for with."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    decode_s: float


@dataclass(frozen=True, slots=True)
class Hits:
    """How a candidate would have drafted one reply.

    ``runs[k][t]`` is (drafted, accepted) if it drafts k tokens when the next token to write is t; t = 0 is never
    drafted. ``free[t]``: the draft is a copy, which no model has to write.
    """

    runs: dict[int, tuple[tuple[int, int], ...]]
    free: tuple[bool, ...] = ()

    def is_free(self, place: int) -> bool:
        """Whether the draft for token ``place`` costs no step of a model."""
        return place < len(self.free) and self.free[place]


@dataclass(frozen=True, slots=True)
class Forecast:
    """The best draft length of a candidate and what it should gain, in tokens and plain steps over all replies.

    ``break_even_cost``: the c up to which drafts as good would pay at some length (inf: they cost no model's step).
    """

    num_draft_tokens: int
    speedup: float
    interval: Interval
    acceptance_rate: float
    mean_acceptance_length: float
    by_length: dict[int, float]
    break_even_cost: float


def write_replies(
    llm: LLM, items: Sequence[PromptItem], sampling: SamplingParams, report: Report = tell_nobody
) -> list[PlainReply]:
    """The plain replies of ``llm`` to all turns. Raises UsageError when none has a second token."""
    replies: list[PlainReply] = []
    for place, item in enumerate(items):
        report(place, len(items), f"plain {item.id}")
        forget_caches(llm)
        messages: list[Message] = []
        for text in item.turns:
            messages.append(Message("user", text))
            prompt = llm.prompt_format.encode(messages, add_generation_prompt=True).token_ids
            try:
                reply = llm.chat(messages, sampling)
            except PromptTooLong:
                break
            if len(reply.token_ids) > 1:
                replies.append(PlainReply(prompt, reply.token_ids, sampling, reply.timing.decode_s))
            messages.append(Message("assistant", reply.text))
    if not replies:
        raise UsageError("no reply had a second token, so there is nothing to plan for; give other or shorter prompts")
    return replies


def model_hits(draft: LoadedModel, target: LoadedModel, reply: PlainReply) -> Hits:
    """Read ``reply`` with a draft model, in two forwards. Raises TokenizerError for another vocabulary."""
    check_same_vocabulary(target.tokenizer.fingerprint(), draft.tokenizer.fingerprint(), target.name, draft.name)
    length = min(len(reply.token_ids), draft.model.max_context - len(reply.prompt_ids))
    if length < 2:
        return Hits({k: ((0, 0),) * len(reply.token_ids) for k in LENGTHS})
    cache = draft.model.new_cache(len(reply.prompt_ids) + length)
    draft.model.forward([TokenRun(cache, reply.prompt_ids, num_logits=0)])
    [rows] = draft.model.forward([TokenRun(cache, reply.token_ids[: length - 1], num_logits=length - 1)])
    history = TokenHistory(reply.prompt_ids) if needs_history(reply.sampling) else None
    noise, width = Noise(reply.sampling.seed or 0), min(draft.model.vocab_size, target.model.vocab_size)
    hits = [False]
    for place, row in enumerate(rows, start=1):
        if history is not None:
            history.push(reply.token_ids[place - 1])
        choice = noise.sample(process(row[:width], reply.sampling, history), len(reply.prompt_ids) + place)
        hits.append(choice == reply.token_ids[place])
    hits += [False] * (len(reply.token_ids) - length)
    return Hits({k: tuple((k, _run(hits, start, k)) for start in range(len(hits))) for k in LENGTHS})


def drawn_hits(reply: PlainReply, drafter: Drafter) -> Hits:
    """What a ``drafter`` whose model reads tokens of its own would have drafted along ``reply``: it is run, a few at a
    time. After a token that it has right it goes on as if it had drafted it; after a wrong one it is told.
    """
    text, first, end = [*reply.prompt_ids, *reply.token_ids], len(reply.prompt_ids), len(reply.token_ids)
    session = drafter.start(Request(prompt_ids=reply.prompt_ids, sampling=reply.sampling), "coupled")
    hits = [False]
    while len(hits) < end:
        place = len(hits)
        most = min(_STRIDE, end - place)
        drafted = session.draft(text[: first + place], most, FixedLength(most).wants_more).token_ids
        right = _run([a == b for a, b in zip(drafted, reply.token_ids[place:], strict=False)], 0, most)
        bonus = reply.token_ids[place + right] if place + right < end else 0
        session.commit(Verdict((*drafted[:right], bonus), right, len(drafted)))
        hits += [True] * right
        if right < most and len(hits) < end:
            hits.append(False)
    return Hits({k: tuple((k, _run(hits, start, k)) for start in range(end)) for k in LENGTHS})


def lookup_hits(reply: PlainReply, drafter: Drafter | None = None) -> Hits:
    """What prompt lookup (or another ``drafter`` that copies) would have drafted along ``reply``: it is simply run."""
    text, first = [*reply.prompt_ids, *reply.token_ids], len(reply.prompt_ids)
    request = Request(prompt_ids=reply.prompt_ids, sampling=reply.sampling)
    session = (drafter or PromptLookupDrafter()).start(request, "coupled")
    longest = [(0, 0)]
    drafts: list[tuple[int, ...]] = [()]
    for place in range(1, len(reply.token_ids)):
        drafts.append(
            session.draft(text[: first + place], max(LENGTHS), FixedLength(max(LENGTHS)).wants_more).token_ids
        )
        hits = [a == b for a, b in zip(drafts[-1], reply.token_ids[place:], strict=False)]
        longest.append((len(drafts[-1]), _run(hits, 0, len(hits))))
    runs = {k: tuple((min(k, drafted), min(k, kept)) for drafted, kept in longest) for k in LENGTHS}
    return Hits(runs, (True,) * len(longest))


def mixed_hits(free: Hits, model: Hits) -> Hits:
    """A mix of the two: copies where there is something to copy, the model's drafts elsewhere."""
    copies = tuple(drafted > 0 for drafted, _ in free.runs[min(LENGTHS)])
    runs = {
        k: tuple(
            one if copied else other for copied, one, other in zip(copies, free.runs[k], model.runs[k], strict=True)
        )
        for k in LENGTHS
    }
    return Hits(runs, copies)


def forecast(replies: Sequence[PlainReply], hits: Sequence[Hits], costs: CostCurves) -> Forecast:
    """Replay all replies at every draft length, and keep the one that gains most."""
    plain = [float(len(reply.token_ids) - 1) for reply in replies]
    played = {k: [_replay(reply, hit, k, costs) for reply, hit in zip(replies, hits, strict=True)] for k in LENGTHS}
    by_length = {k: sum(plain) / sum(replayed.cost for replayed in played[k]) for k in LENGTHS}
    best = max(LENGTHS, key=lambda k: by_length[k])
    kept = played[best]
    drafted, accepted, rounds = (sum(getattr(r, name) for r in kept) for name in ("drafted", "accepted", "rounds"))
    return Forecast(
        best,
        by_length[best],
        ratio_interval(plain, [replayed.cost for replayed in kept]),
        accepted / drafted if drafted else 0.0,
        1 + (accepted / rounds if rounds else 0.0),
        by_length,
        max(0.0, *(_break_even(sum(plain), played[k]) for k in LENGTHS)),
    )


def at_half_cost(costs: CostCurves) -> CostCurves:
    """The same machine with a draft of half the cost: a smaller or pruned one."""
    return replace(costs, draft_cost=costs.draft_cost / 2)


@dataclass(frozen=True, slots=True)
class _Replay:
    cost: float  # plain steps
    steps: int  # of a draft model
    step_cost: float  # of all those, in plain steps
    drafted: int
    accepted: int
    rounds: int  # with a draft


def _replay(reply: PlainReply, hits: Hits, k: int, costs: CostCurves) -> _Replay:
    cost, steps, drafted, accepted, rounds = 0.0, 0, 0, 0, 0
    place, end = 1, len(reply.token_ids)
    while place < end:
        proposed, kept = hits.runs[k][place]
        proposed = min(proposed, reply.sampling.max_new_tokens - place - 1)
        kept = min(kept, proposed, end - place)
        cost += costs.round_cost(proposed, free=hits.is_free(place))
        steps += 0 if hits.is_free(place) else proposed
        drafted, accepted, rounds = drafted + proposed, accepted + kept, rounds + (proposed > 0)
        place += kept + 1
    return _Replay(cost, steps, steps * costs.draft_cost, drafted, accepted, rounds)


def _break_even(plain: float, played: Sequence[_Replay]) -> float:
    """The c at which these rounds gain ``WORTHWHILE``; below 0 if they would not for nothing, inf without a model."""
    steps = sum(replay.steps for replay in played)
    left = plain / WORTHWHILE - sum(replay.cost - replay.step_cost for replay in played)
    return left / steps if steps else (math.inf if left >= 0 else 0.0)


def _run(hits: Sequence[bool], start: int, limit: int) -> int:
    """How many hits there are in a row from ``start``, ``limit`` at most."""
    end = min(start + limit, len(hits))
    return next((place - start for place in range(start, end) if not hits[place]), end - start)
