"""The run of ``plan``: replies, costs and forecasts of all candidates, then the best in earnest; and its output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import UsageError
from draftsmith.measure.contest import LocalSide, run_contest
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.measure.costs import CostCurves
from draftsmith.measure.drafter_parts import DrafterParts, drafter_parts
from draftsmith.measure.engine_costs import EngineCosts
from draftsmith.measure.plan import WORTHWHILE, Forecast, PlainReply, at_half_cost, forecast, write_replies
from draftsmith.measure.prompts import PromptItem, select_prompts
from draftsmith.measure.rounds import measure_round_costs
from draftsmith.measure.statistics import Interval
from draftsmith.types import SamplingParams

__all__ = ["Candidate", "Plan", "make_plan", "plan_json", "plan_text"]

# How many candidates are measured, at most, and how near to the best prediction theirs must be: choosing lengths round
# by round gains more than any forecast of a fixed one can tell, and most where a drafter has two kinds of tokens.
MEASURED, NEAR = 3, 0.85
MEASURED_PROMPTS = 16  # of all categories in turn
MOST_REPEATS, ENOUGH_S = 8, 20.0  # of each of them: fewer when the plain replies take more than so many seconds in all
AUTO_UNLESS = 1.02  # how much faster a fixed length has to be to be told: it cannot follow other texts and machines
FEW_REPLIES, FEW_TOKENS = 4, 200  # with fewer of either, chance and single disturbances weigh more than the drafter


@dataclass(frozen=True, slots=True)
class Candidate:
    """One drafter, what its steps cost, what it should gain, and what it would gain at half the cost.

    ``measured``: its speed-up as measured at its best fixed length; ``measured_auto``: with lengths chosen round by
    round. None: not worth measuring. ``fixed_over_auto``: the 95 % interval, over prompts, of the first over the
    second; None on too few prompts too.
    """

    name: str
    costs: CostCurves
    forecast: Forecast
    half_cost_speedup: float
    measured: float | None = None
    measured_auto: float | None = None
    fixed_over_auto: Interval | None = None

    def __post_init__(self) -> None:
        if (self.measured is None) != (self.measured_auto is None):
            raise ValueError(f"both ways are measured, or none: {self}")

    @property
    def gain(self) -> float | None:
        """The speed-up measured of the way that is to be used, None if there is none."""
        return self.measured_auto if self.use_auto else self.measured

    @property
    def by_chance(self) -> bool:
        """Whether the fixed length may owe what it was faster by, if it was, to the prompts."""
        return self.fixed_over_auto is None or self.fixed_over_auto[0] <= 1

    @property
    def use_auto(self) -> bool:
        """Whether lengths are best chosen round by round.

        They lose little to the best fixed one anywhere, so a fixed one has to be faster by more than chance, and by
        more than a little unless that decides whether drafting pays.
        """
        if self.measured is None or self.measured_auto is None or self.by_chance:
            return True
        pays = self.measured_auto >= WORTHWHILE or self.measured < WORTHWHILE
        return pays and self.measured_auto * AUTO_UNLESS >= self.measured


@dataclass(frozen=True, slots=True)
class Plan:
    """Candidates, the best first: those that were measured, by what was measured, then the others, as predicted.

    ``elsewhere``: the costs are another engine's, so nothing can be measured here and the prediction decides.
    """

    candidates: tuple[Candidate, ...]
    plain_rate: float
    replies: int
    tokens: int
    elsewhere: bool = False

    @property
    def best(self) -> Candidate | None:
        """The candidate to use; None: do not draft."""
        first = self.candidates[0]
        gain = first.forecast.speedup if self.elsewhere else first.gain or 0.0
        return first if gain >= WORTHWHILE else None


def make_plan(
    target: LLM,
    names: Sequence[str | LoadedModel],
    items: Sequence[PromptItem],
    sampling: SamplingParams,
    *,
    options: dict[str, Any] | None = None,
    costs: EngineCosts | None = None,
    report: Report = tell_nobody,
) -> Plan:
    """``target``: an LLM without a drafter. ``names``: candidates, references or ``lookup``. ``options``: of ``LLM``.

    ``costs``: of another engine, to plan for that one: texts and acceptance are measured here, nothing is timed.
    Raises UsageError without a candidate, and what loading raises.
    """
    if not names:
        raise UsageError("there is no drafter to plan for; name some with --candidate REF")
    options = dict(options or {})
    opened = [drafter_parts(name, target.target, options) for name in names]  # what cannot be is told before any work
    replies = write_replies(target, items, sampling, report)
    candidates = [_candidate(parts, target, replies, costs, report) for parts in opened]
    del opened  # the runs in earnest open theirs anew
    ranked = sorted(zip(candidates, names, strict=True), key=lambda pair: -pair[0].forecast.speedup)
    found = [candidate for candidate, _ in ranked]
    if costs is None:
        some = select_prompts(items, MEASURED_PROMPTS)
        plain_s = len(some) * sum(reply.decode_s for reply in replies) / len(items)
        repeats = max(1, min(MOST_REPEATS, round(ENOUGH_S / max(1e-3, plain_s))))
        at_least = max(WORTHWHILE, NEAR * found[0].forecast.speedup)
        near = [pair for pair in ranked[:MEASURED] if pair[0].forecast.speedup >= at_least]
        for place, (candidate, name) in enumerate(near):
            found[place] = _measured(candidate, name, target, some, sampling, repeats, options, report)
        found.sort(key=lambda candidate: -(candidate.gain or 0.0))
    tokens = sum(len(reply.token_ids) for reply in replies)
    rate = (tokens - len(replies)) / sum(reply.decode_s for reply in replies)
    return Plan(tuple(found), rate, len(replies), tokens, elsewhere=costs is not None)


def _candidate(
    parts: DrafterParts,
    target: LLM,
    replies: Sequence[PlainReply],
    elsewhere: EngineCosts | None,
    report: Report,
) -> Candidate:
    def tell(done: int, total: int, what: str) -> None:
        report(done, total, f"{what} with {parts.name}")

    if elsewhere is None:
        draft = parts.model.model if parts.model else None
        costs = measure_round_costs(target, parts.drafter, draft, replies, tell)
    else:
        costs = elsewhere.curves(parts.name, drafts=parts.model is not None)
    hits = []
    for place, reply in enumerate(replies):
        report(place, len(replies), f"reading with {parts.name}")
        hits.append(parts.hits(target.target, reply))
    cheaper = forecast(replies, hits, at_half_cost(costs))
    return Candidate(parts.name, costs, forecast(replies, hits, costs), cheaper.speedup)


def _measured(
    candidate: Candidate,
    name: str | LoadedModel,
    target: LLM,
    items: Sequence[PromptItem],
    sampling: SamplingParams,
    repeats: int,
    options: dict[str, Any],
    report: Report,
) -> Candidate:
    """The candidate with its speed-ups: plain, its best length and auto take turns on every prompt."""
    k = candidate.forecast.num_draft_tokens
    auto = LLM(target.target, name, **{**options, "num_draft_tokens": "auto"})
    fixed = LLM(target.target, auto.drafter, **{**options, "num_draft_tokens": k})
    ways = [LocalSide("plain", target), LocalSide("fixed", fixed), LocalSide("auto", auto)]
    plain, best, chosen = run_contest(ways, items, sampling, repeats=repeats, report=report).sides
    (measured, _), (measured_auto, _) = best.ratio(plain), chosen.ratio(plain)
    between = best.ratio(chosen)[1] if len(best.answers) >= FEW_REPLIES else None
    return replace(candidate, measured=measured, measured_auto=measured_auto, fixed_over_auto=between)


def plan_json(plan: Plan, provenance: dict[str, Any]) -> dict[str, Any]:
    """The object that ``plan --json`` prints. Schema: docs/schemas/plan.json."""
    best, first = plan.best, plan.candidates[0]
    return {
        "recommendation": {
            "draft": "none" if best is None else best.name,
            "num_draft_tokens": None if best is None else best.forecast.num_draft_tokens,
            "predicted_speedup": first.forecast.speedup,
            "predicted_speedup_ci95": list(first.forecast.interval),
            "measured_speedup": first.measured,
            "measured_speedup_auto": first.measured_auto,
            "advice": _advice(plan),
        },
        "candidates": [
            {
                "draft": c.name,
                "num_draft_tokens": c.forecast.num_draft_tokens,
                "predicted_speedup": c.forecast.speedup,
                "predicted_speedup_ci95": list(c.forecast.interval),
                "measured_speedup": c.measured,
                "measured_speedup_auto": c.measured_auto,
                "fixed_over_auto_ci95": None if c.fixed_over_auto is None else list(c.fixed_over_auto),
                "use_auto": None if c.measured is None else c.use_auto,
                "predicted_by_num_draft_tokens": {str(k): gain for k, gain in c.forecast.by_length.items()},
                "predicted_speedup_at_half_cost": c.half_cost_speedup,
                "break_even_draft_cost_c": c.forecast.break_even_cost
                if math.isfinite(c.forecast.break_even_cost)
                else None,
                "acceptance_rate": c.forecast.acceptance_rate,
                "mean_acceptance_length": c.forecast.mean_acceptance_length,
                "draft_cost_c": c.costs.draft_cost,
                "draft_call_cost": c.costs.draft_call,
                "round_factor": c.costs.round_factor,
                "verify_cost_v": {str(size): cost for size, cost in c.costs.verify.items()},
            }
            for c in plan.candidates
        ],
        "plain": {"tokens_per_s": plan.plain_rate, "step_s": first.costs.plain_s},
        "replies": plan.replies,
        "tokens": plan.tokens,
        "provenance": {**provenance, "cost_context": first.costs.context},
    }


def plan_text(value: dict[str, Any]) -> str:
    """The advice and the table, from the JSON object."""
    lines = [
        value["recommendation"]["advice"],
        *_for_engine(value.get("for")),
        "",
        "| drafter | k | predicted | measured | with auto | acceptance | length | c | at half c | pays below c |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for c in value["candidates"]:
        low, high = c["predicted_speedup_ci95"]
        lines.append(
            f"| {c['draft']} | {c['num_draft_tokens']} | {c['predicted_speedup']:.2f} [{low:.2f}, {high:.2f}] "
            f"| {_number(c['measured_speedup'])} | {_number(c['measured_speedup_auto'])} "
            f"| {c['acceptance_rate']:.0%} | {c['mean_acceptance_length']:.2f} | {c['draft_cost_c']:.3f} "
            f"| {c['predicted_speedup_at_half_cost']:.2f} | {_break_even(c['break_even_draft_cost_c'])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "k: the draft length that gains most. Predicted: speed-up over plain decoding, with a 95 % interval over\n"
            "prompts. Measured: the same in earnest; with auto: with lengths chosen round by round.\n"
            "Acceptance: accepted / draft tokens. Length: 1 + accepted / rounds with a draft, bonus token\n"
            "included. c: draft step / plain step. At half c: what a draft as good at half the cost (a smaller one,\n"
            "or one with a pruned vocabulary) would gain. Pays below c: what a draft as good may cost to gain 2 %.",
        ]
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _for_engine(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    starts = [f"Start {told['engine']} with:", *(f"  {line}" for line in told["commands"])] if told["commands"] else []
    return [*starts, *(f"note: {note}" for note in told["notes"])]


def _break_even(cost: float | None) -> str:
    return "any" if cost is None else f"{cost:.3f}" if cost > 0 else "never"


def _advice(plan: Plan) -> str:
    """What to do, in one line; and in a second how little it rests on, where that is so."""
    if plan.replies >= FEW_REPLIES and plan.tokens >= FEW_TOKENS:
        return _choice(plan)
    return (
        f"{_choice(plan)}\nToo little to rely on: {plan.tokens} tokens in all, replies: {plan.replies}. Give at least "
        f"{FEW_REPLIES} prompts and {FEW_TOKENS} tokens (--limit, --max-new-tokens)."
    )


def _choice(plan: Plan) -> str:
    first = plan.candidates[0]
    predicted = f"{first.forecast.speedup:.2f}x"
    if plan.elsewhere:
        if plan.best is None:
            return f"Do not draft: the best candidate, {first.name}, would not pay (predicted {predicted})."
        return (
            f"Use {first.name} with {first.forecast.num_draft_tokens} draft tokens: expect {predicted} (not measured)."
        )
    auto = None if first.measured_auto is None else f"{first.measured_auto:.2f}x"
    if auto is None:
        return f"Do not draft: the best candidate, {first.name}, does not pay (predicted {predicted})."
    fixed = f"{predicted} with --num-draft-tokens {first.forecast.num_draft_tokens}, measured {first.measured:.2f}x"
    if plan.best is None:
        told = f"predicted {fixed}; {auto} with lengths chosen round by round"
        return f"Do not draft: the best candidate, {first.name}, does not pay ({told})."
    if first.use_auto:
        faster = (first.measured or 0.0) > (first.measured_auto or 0.0)
        chance = " (by chance, perhaps)" if faster and first.by_chance else ""
        told = f"{first.name}, its lengths chosen round by round (auto): measured {auto}"
        return f"Use {told}. A fixed length: {fixed}{chance}."
    return f"Use {first.name}: expect {fixed}. With lengths chosen round by round (auto): {auto}."
