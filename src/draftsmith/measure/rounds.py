"""What rounds take in earnest, beside what the curves of the models' steps say they should.

Between the steps of two models lie sampling, verification, the length policy, text, and Python; and a model finds other
things in the processor's caches than when it is timed by itself. A few short replies tell how much that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from draftsmith.engine import LLM
from draftsmith.measure.conversation import forget_caches
from draftsmith.measure.costs import CostCurves
from draftsmith.measure.plan import PlainReply
from draftsmith.speculate import Drafter, TracedDrafter

__all__ = ["with_round_factor"]

PROMPTS, TOKENS = 4, 40
LENGTHS = (2, 6)
_FEWEST = 3  # rounds with a draft, for a reply to say anything


def with_round_factor(plain: LLM, drafter: Drafter, replies: Sequence[PlainReply], costs: CostCurves) -> CostCurves:
    """``costs`` with its ``round_factor``: the median over short replies to a few of the prompts, each written plainly
    and at two draft lengths in turn."""
    fast = {k: LLM(plain.target, drafter, num_draft_tokens=k) for k in LENGTHS}
    traces = {k: llm.record() for k, llm in fast.items()}
    asked = replies[:: max(1, len(replies) // PROMPTS)][:PROMPTS]
    found: list[float] = []
    for place, reply in enumerate([asked[0], *asked]):
        for llm in (plain, *fast.values()):
            forget_caches(llm)
        sampling = replace(reply.sampling, max_new_tokens=TOKENS)
        [alone] = plain.generate([reply.prompt_ids], sampling)
        for k, llm in fast.items():
            traces[k].rounds.clear()
            [drafted] = llm.generate([reply.prompt_ids], sampling)
            if place and alone.timing.decode_s > 0:  # the first one warms up
                step_s = alone.timing.decode_s / alone.timing.num_decoded
                found += _factor(drafted.timing.decode_s / step_s, traces[k], costs)
    return replace(costs, round_factor=median(found)) if found else costs


def _factor(spent: float, trace: TracedDrafter, costs: CostCurves) -> list[float]:
    """Of one reply that took ``spent`` plain steps: one value, or none where too little was drafted."""
    drafted = [one for one in trace.rounds if one.drafted]
    expected = sum(costs.round_cost(len(one.drafted), free=one.free) for one in drafted)
    rest = spent - (len(trace.rounds) - len(drafted))  # rounds without a draft are plain steps
    return [rest / expected] if len(drafted) >= _FEWEST and rest > 0 else []
