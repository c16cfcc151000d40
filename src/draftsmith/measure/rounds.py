"""What steps and rounds cost, timed together with real rounds, at several moments.

Between the steps of two models lie sampling, verification, the length policy, text, and Python; and a model finds other
things in the processor's caches than when it is timed by itself. So short replies are written beside the timing of
steps. A machine that others use too is disturbed now and then: of each step the moments in which it was fast count, and
of the replies, each of which is compared with a plain one of its moment, the median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median

from draftsmith.engine import LLM
from draftsmith.measure.conversation import forget_caches
from draftsmith.measure.costs import CostCurves, measure_costs
from draftsmith.measure.plan import PlainReply
from draftsmith.model.protocol import Model
from draftsmith.speculate import Drafter, RoundRecord

__all__ = ["measure_round_costs", "never_falling"]

MOMENTS, TOKENS = 5, 32
REPEATS = 3  # of the timing of steps, at each moment
LENGTHS = (2, 6)
_FEWEST = 3  # rounds with a draft, for a reply to say anything


def measure_round_costs(plain: LLM, drafter: Drafter, draft: Model | None, replies: Sequence[PlainReply]) -> CostCurves:
    """The costs of ``drafter``, whose model is ``draft``, after as much text as ``replies`` had.

    At each moment steps are timed, and the beginning of one reply is written plainly and at two draft lengths.
    """
    context = int(median(len(reply.prompt_ids) + len(reply.token_ids) // 2 for reply in replies))
    text = [*replies[0].prompt_ids, *replies[0].token_ids] * (1 + context // len(replies[0].prompt_ids))
    fast = {k: LLM(plain.target, drafter, num_draft_tokens=k) for k in LENGTHS}
    traces = {k: llm.record() for k, llm in fast.items()}
    curves: list[CostCurves] = []
    written: list[tuple[float, tuple[RoundRecord, ...]]] = []
    for moment in range(MOMENTS):
        reply = replies[moment * len(replies) // MOMENTS]
        costs = measure_costs(plain.target.model, draft, text[:context], repeats=REPEATS, sampling=replies[0].sampling)
        curves.append(costs)
        sampling = replace(reply.sampling, max_new_tokens=TOKENS)
        for llm in (plain, *fast.values()):
            forget_caches(llm)
        [alone] = plain.generate([reply.prompt_ids], sampling)
        for k, llm in fast.items():
            traces[k].rounds.clear()
            [drafted] = llm.generate([reply.prompt_ids], sampling)
            if alone.timing.decode_s > 0:
                step_s = alone.timing.decode_s / alone.timing.num_decoded
                written.append((drafted.timing.decode_s / step_s, tuple(traces[k].rounds)))
    together = _merged(curves)
    factors = [factor for spent, rounds in written for factor in _factor(spent, rounds, together)]
    return replace(together, round_factor=median(factors) if factors else 1.0)


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


def _factor(spent: float, rounds: Sequence[RoundRecord], costs: CostCurves) -> list[float]:
    """Of one reply that took ``spent`` plain steps: one value, or none where too little was drafted."""
    drafted = [one for one in rounds if one.drafted]
    expected = sum(costs.round_cost(len(one.drafted), free=one.free) for one in drafted)
    rest = spent - (len(rounds) - len(drafted))  # rounds without a draft are plain steps
    return [rest / expected] if len(drafted) >= _FEWEST and rest > 0 else []
