"""What steps and rounds cost, timed together with real rounds, at several moments.

Between the steps of two models lie sampling, verification, the length policy, text, and Python; and a model finds other
things in the processor's caches than when it is timed by itself. So short replies are written beside the timing of
steps. A machine that others use too is disturbed now and then: of each step the moments in which it was fast count. The
replies are written twice; the quicker rounds of each are compared with the quicker plain steps just before or after
them, and the median counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, median

from draftsmith.engine import LLM
from draftsmith.measure.conversation import Report, forget_caches, tell_nobody
from draftsmith.measure.costs import CostCurves, measure_costs
from draftsmith.measure.plan import PlainReply
from draftsmith.model.protocol import Model
from draftsmith.speculate import Drafter, RoundRecord, TracedDrafter
from draftsmith.types import Timing

__all__ = ["measure_round_costs", "never_falling"]

MOMENTS, TOKENS = 5, 32
REPEATS = 3  # of the timing of steps, at each moment
REPLIES, ENOUGH_S = 4, 1.5  # begun at each moment, unless so many seconds have gone: long ones are disturbed less
AGAIN = 2  # times that every beginning is written: the quicker one counts
LENGTHS = (2, 6)


def measure_round_costs(
    plain: LLM,
    drafter: Drafter,
    draft: Model | None,
    replies: Sequence[PlainReply],
    report: Report = tell_nobody,
) -> CostCurves:
    """The costs of ``drafter``, whose model is ``draft``, after as much text as ``replies`` had.

    At each moment steps are timed, and the beginnings of some replies are written plainly, twice at two draft lengths,
    and plainly again: what drifts meanwhile cancels, and what disturbs one of the two does not count. ``report`` is
    told of each moment before it begins.
    """
    context = int(median(len(reply.prompt_ids) + len(reply.token_ids) // 2 for reply in replies))
    text = [*replies[0].prompt_ids, *replies[0].token_ids] * (1 + context // len(replies[0].prompt_ids))
    fast = [LLM(plain.target, drafter, num_draft_tokens=k) for k in LENGTHS]
    traced = [(llm, llm.record()) for llm in fast]
    curves: list[CostCurves] = []
    written: list[tuple[float, tuple[tuple[RoundRecord, ...], ...]]] = []  # a plain step, and rounds of one length
    for moment in range(MOMENTS):
        report(moment, MOMENTS, "timing rounds")
        costs = measure_costs(plain.target.model, draft, text[:context], repeats=REPEATS, sampling=replies[0].sampling)
        curves.append(costs)
        began = time.monotonic()
        for turn in range(REPLIES):
            if turn and time.monotonic() - began > ENOUGH_S:
                break
            reply = replies[(moment * REPLIES + turn) * len(replies) // (MOMENTS * REPLIES)]
            first = _begin(plain, reply)
            attempts = [[_rounds(*one, reply) for one in traced] for _ in range(AGAIN)]
            last = _begin(plain, reply)
            step_s = min(one.decode_s / max(1, one.num_decoded) for one in (first, last))
            written += [(step_s, same) for same in zip(*attempts, strict=True)]
    together = _merged(curves)
    found = [(step_s, min(_drafting(rounds, together) for rounds in same)) for step_s, same in written]
    factors = [(ratio / step_s, expected) for step_s, (ratio, expected) in found if step_s and expected]
    return replace(together, round_factor=_typical(factors))


def _rounds(llm: LLM, trace: TracedDrafter, reply: PlainReply) -> tuple[RoundRecord, ...]:
    """The rounds in which the first tokens of ``reply`` are written."""
    trace.rounds.clear()
    _begin(llm, reply)
    return tuple(trace.rounds)


def _begin(llm: LLM, reply: PlainReply) -> Timing:
    """What the first tokens of ``reply`` take."""
    forget_caches(llm)
    [written] = llm.generate([reply.prompt_ids], replace(reply.sampling, max_new_tokens=TOKENS))
    return written.timing


def _merged(curves: Sequence[CostCurves]) -> CostCurves:
    """Of every step the lower quartile of the moments' seconds; others can only make it slower. v never falls."""

    def fast(values: Sequence[float]) -> float:
        return sorted(values)[(len(values) - 1) // 4]

    plain = fast([one.plain_s for one in curves])
    verify = {size: fast([one.verify[size] * one.plain_s for one in curves]) / plain for size in curves[0].verify}
    return CostCurves(
        curves[0].context,
        plain,
        fast([one.draft_cost * one.plain_s for one in curves]) / plain,
        never_falling(verify),
        fast([one.draft_call * one.plain_s for one in curves]) / plain,
    )


def never_falling(verify: Mapping[int, float]) -> dict[int, float]:
    """The nearest curve (least squares) that never falls: neighbours that do are replaced by their mean."""
    blocks: list[list[float]] = []
    for _, cost in sorted(verify.items()):
        blocks.append([cost])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [fmean(block) for block in blocks for _ in block]
    return {size: cost / level[0] for size, cost in zip(sorted(verify), level, strict=True)}


def _drafting(rounds: Sequence[RoundRecord], costs: CostCurves) -> tuple[float, float]:
    """Seconds for each step that a reply's rounds with a draft should have cost, and these steps.

    Each round lasts from its beginning to the next one's. (0, 0) without drafts.
    """
    drafted = [(one, after) for one, after in pairwise(rounds) if one.drafted]
    expected = sum(costs.round_cost(len(one.drafted), free=one.free) for one, _ in drafted)
    return sum(after.began - one.began for one, after in drafted) / expected if drafted else 0.0, expected


def _typical(weighted: Sequence[tuple[float, float]]) -> float:
    """The weighted median of (value, weight); 1 of nothing. A reply with few drafts says little about them."""
    half = sum(weight for _, weight in weighted) / 2
    for value, weight in sorted(weighted):
        half -= weight
        if half <= 0:
            return value
    return 1.0
