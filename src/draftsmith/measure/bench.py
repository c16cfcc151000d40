"""``bench``: what speculation gains on these prompts, on this machine. Plain and speculative take turns in one run.

Definitions. tokens/s: tokens after a reply's first one / time from the first token to the last; reading the prompt is
not counted, neither the target's nor the draft's. Speed-up: speculative tokens/s / plain tokens/s, over all tokens.
Acceptance rate: accepted / draft tokens. Mean acceptance length: 1 + accepted / rounds with a draft, bonus token
included. Intervals: 95 %, bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from statistics import median

from draftsmith.errors import UsageError
from draftsmith.measure.conversation import Report, Turn, both_ways, tell_nobody
from draftsmith.measure.costs import CostCurves, measure_costs
from draftsmith.measure.pair import Pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.recording import Forward
from draftsmith.measure.roofline import Roofline, measure_roofline
from draftsmith.measure.statistics import Interval, ratio_interval
from draftsmith.types import SamplingParams

__all__ = ["BenchResult", "Group", "PromptResult", "TimeShare", "run_bench"]


@dataclass(frozen=True, slots=True)
class TimeShare:
    """Seconds of speculative decoding in forwards of the target, in drafting, and in everything else."""

    target_s: float
    draft_s: float
    other_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptResult:
    """One conversation, all its turns; seconds are medians over the repeats. ``predicted_s``: see ``BenchResult``."""

    id: str
    category: str
    tokens: int
    decoded: tuple[int, int]  # plain, speculative: tokens after the first of each reply
    plain_s: float
    speculative_s: float
    prefill_s: tuple[float, float]
    identical: bool
    drafted_per_round: tuple[int, ...]  # of rounds after the first, 0 for a round without a draft
    free_rounds: tuple[bool, ...]  # of the same rounds: the draft was a copy
    num_drafts: int
    num_draft_tokens: int
    accepted_per_pos: tuple[int, ...]
    time: TimeShare
    context: int

    @property
    def speedup(self) -> float:
        """Speculative / plain tokens per second."""
        plain, speculative = self.decoded
        return (speculative / self.speculative_s) / (plain / self.plain_s)


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts taken together: all of them, or one category. Never empty."""

    prompts: tuple[PromptResult, ...]

    @property
    def plain_rate(self) -> float:
        """Plain tokens/s."""
        return sum(p.decoded[0] for p in self.prompts) / sum(p.plain_s for p in self.prompts)

    @property
    def speculative_rate(self) -> float:
        """Speculative tokens/s."""
        return sum(p.decoded[1] for p in self.prompts) / sum(p.speculative_s for p in self.prompts)

    @property
    def speedup(self) -> float:
        """Over all tokens."""
        return self.speculative_rate / self.plain_rate

    @property
    def intervals(self) -> tuple[Interval, Interval, Interval]:
        """Of plain tokens/s, speculative tokens/s, and speed-up."""
        plain = ratio_interval([p.decoded[0] for p in self.prompts], [p.plain_s for p in self.prompts])
        fast = ratio_interval([p.decoded[1] for p in self.prompts], [p.speculative_s for p in self.prompts])
        scaled = [p.plain_s * p.decoded[1] / p.decoded[0] for p in self.prompts]  # plain time for the same tokens
        return plain, fast, ratio_interval(scaled, [p.speculative_s for p in self.prompts])

    @property
    def end_to_end_speedup(self) -> float:
        """With the time that reading the prompts took."""
        plain = sum(p.plain_s + p.prefill_s[0] for p in self.prompts)
        return plain / sum(p.speculative_s + p.prefill_s[1] for p in self.prompts)

    @property
    def accepted_per_pos(self) -> tuple[int, ...]:
        """Accepted draft tokens by their place in the draft."""
        columns = zip_longest(*(p.accepted_per_pos for p in self.prompts), fillvalue=0)
        return tuple(sum(column) for column in columns)

    @property
    def drafted_per_pos(self) -> tuple[int, ...]:
        """Rounds whose draft had a token in that place."""
        rounds = [k for p in self.prompts for k in p.drafted_per_round]
        return tuple(sum(k > place for k in rounds) for place in range(max(rounds, default=0)))

    @property
    def acceptance_rate(self) -> float:
        """Accepted / draft tokens; 0 without any."""
        drafted = sum(p.num_draft_tokens for p in self.prompts)
        return sum(self.accepted_per_pos) / drafted if drafted else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted / rounds with a draft."""
        drafts = sum(p.num_drafts for p in self.prompts)
        return 1 + (sum(self.accepted_per_pos) / drafts if drafts else 0.0)

    def predicted_speedup(self, costs: CostCurves) -> float:
        """What the rounds as they were should have gained by c and v(m): tokens / cost in plain steps."""
        cost = sum(
            costs.round_cost(k, free=free)
            for p in self.prompts
            for k, free in zip(p.drafted_per_round, p.free_rounds, strict=True)
        )
        return sum(p.decoded[1] for p in self.prompts) / cost if cost else 1.0


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What ``run_bench`` found. ``skipped``: prompts that did not fit or whose replies had no second token."""

    prompts: tuple[PromptResult, ...]
    costs: CostCurves
    skipped: tuple[str, ...] = ()
    timeline: tuple[tuple[int, int], ...] = field(default=())  # (draft tokens, accepted) of a few rounds
    roofline: Roofline | None = None

    @property
    def overall(self) -> Group:
        """All prompts."""
        return Group(self.prompts)

    @property
    def categories(self) -> dict[str, Group]:
        """By category, in the order of the prompts."""
        names = dict.fromkeys(p.category for p in self.prompts)
        return {name: Group(tuple(p for p in self.prompts if p.category == name)) for name in names}


def run_bench(
    pair: Pair,
    items: Sequence[PromptItem],
    sampling: SamplingParams,
    *,
    repeats: int = 1,
    report: Report = tell_nobody,
) -> BenchResult:
    """Answer every prompt both ways, ``repeats`` times, the order alternating; before that, the first one to warm up.

    Raises UsageError when nothing could be measured.
    """
    if repeats < 1:
        raise UsageError(f"repeat is {repeats}; it must be at least 1")
    total = len(items) * repeats
    report(0, total, "warming up")
    trace = pair.speculative.record()
    list(both_ways(pair, items[0], sampling, speculative_first=False))
    trace.rounds.clear()
    turns: dict[str, list[list[Turn]]] = {item.id: [] for item in items}
    for repeat in range(repeats):
        for place, item in enumerate(items):
            flipped = (repeat + place) % 2 == 1
            run: list[Turn] = []
            for turn in both_ways(pair, item, sampling, speculative_first=flipped):
                run.append(replace(turn, rounds=tuple(trace.rounds)))
                trace.rounds.clear()
            turns[item.id].append(run)
            report(repeat * len(items) + place + 1, total, item.id)
    measured = [item for item in items if any(len(t.plain.token_ids) > 1 for run in turns[item.id] for t in run)]
    if not measured:
        raise UsageError("no reply had a second token, so there is no speed to measure; give other or shorter prompts")
    results = tuple(_prompt_result(item, turns[item.id]) for item in measured)
    sample = turns[measured[len(measured) // 2].id][0][0]
    context = int(median(result.context for result in results))
    text = [*sample.prompt_ids, *sample.plain.token_ids] * (1 + context // len(sample.prompt_ids))
    report(total, total, "timing steps")
    target, draft = pair.target.model, pair.speculative.draft_model
    costs = measure_costs(target, draft, text[: max(1, context)], sampling=sampling)
    skipped = tuple(item.id for item in items if item not in measured)
    timeline = tuple((len(one.drafted), one.num_accepted) for one in sample.rounds[:24])
    return BenchResult(results, costs, skipped, timeline, measure_roofline(target, draft, costs))


def _prompt_result(item: PromptItem, runs: Sequence[Sequence[Turn]]) -> PromptResult:
    first = runs[0]
    stats = [turn.speculative.speculation for turn in first if turn.speculative.speculation is not None]
    accepted = zip_longest(*(s.num_accepted_tokens_per_pos for s in stats), fillvalue=0)
    return PromptResult(
        id=item.id,
        category=item.category,
        tokens=sum(len(turn.speculative.token_ids) for turn in first),
        decoded=(
            sum(turn.plain.timing.num_decoded for turn in first),
            sum(turn.speculative.timing.num_decoded for turn in first),
        ),
        plain_s=median(sum(turn.plain.timing.decode_s for turn in run) for run in runs),
        speculative_s=median(sum(turn.speculative.timing.decode_s for turn in run) for run in runs),
        prefill_s=(
            median(sum(turn.plain.timing.prefill_s for turn in run) for run in runs),
            median(sum(turn.speculative.timing.prefill_s for turn in run) for run in runs),
        ),
        identical=all(turn.plain.token_ids == turn.speculative.token_ids for run in runs for turn in run),
        drafted_per_round=tuple(len(one.drafted) for turn in first for one in turn.rounds),
        free_rounds=tuple(one.free for turn in first for one in turn.rounds),
        num_drafts=sum(s.num_drafts for s in stats),
        num_draft_tokens=sum(s.num_draft_tokens for s in stats),
        accepted_per_pos=tuple(sum(column) for column in accepted),
        time=_time_share(first),
        context=sum(len(turn.prompt_ids) + len(turn.plain.token_ids) // 2 for turn in first) // len(first),
    )


def _time_share(turns: Sequence[Turn]) -> TimeShare:
    def seconds(forwards: Sequence[Forward]) -> float:
        return sum(forward.seconds for forward in forwards)

    whole = sum(turn.speculative.timing.decode_s for turn in turns)
    target = sum(seconds(turn.target_forwards[1:]) for turn in turns)
    draft = sum(turn.speculative.timing.draft_s for turn in turns)
    return TimeShare(target, draft, max(0.0, whole - target - draft))
