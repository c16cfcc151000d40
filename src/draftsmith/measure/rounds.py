"""What steps and rounds cost, timed together with real rounds, at several moments.

Between the steps of two models lie sampling, verification, the length policy, text, and Python; and a model finds other
things in the processor's caches than when it is timed by itself. So short replies are written beside the timing of
steps. A machine that others use too has phases, in which memory is slow or arithmetic is: each short reply is compared
with the curves of its own moment, and the curves are medians over all moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from draftsmith.engine import LLM
from draftsmith.measure.conversation import forget_caches
from draftsmith.measure.costs import CostCurves, measure_costs
from draftsmith.measure.plan import PlainReply
from draftsmith.model.protocol import Model
from draftsmith.speculate import Drafter, TracedDrafter

__all__ = ["measure_round_costs"]

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
    factors: list[float] = []
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
                factors += _factor(drafted.timing.decode_s / step_s, traces[k], costs)
    return replace(_medians(curves), round_factor=median(factors) if factors else 1.0)


def _medians(curves: Sequence[CostCurves]) -> CostCurves:
    sizes = curves[0].verify
    return CostCurves(
        curves[0].context,
        median(one.plain_s for one in curves),
        median(one.draft_cost for one in curves),
        {size: median(one.verify[size] for one in curves) for size in sizes},
        median(one.draft_call for one in curves),
    )


def _factor(spent: float, trace: TracedDrafter, costs: CostCurves) -> list[float]:
    """Of one reply that took ``spent`` plain steps: one value, or none where too little was drafted."""
    drafted = [one for one in trace.rounds if one.drafted]
    expected = sum(costs.round_cost(len(one.drafted), free=one.free) for one in drafted)
    rest = spent - (len(trace.rounds) - len(drafted))  # rounds without a draft are plain steps
    return [rest / expected] if len(drafted) >= _FEWEST and rest > 0 else []
