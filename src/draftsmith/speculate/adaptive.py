"""The draft length that pays, decided token by token from costs and from acceptance as observed.

In units of a plain step, a round that drafts k tokens costs k c + v(k + 1) and writes 1 + A_1 + ... + A_k tokens on
average, where A_i is the probability that draft tokens 1 to i are all accepted. To write as many tokens per unit of
cost as possible, draft one token more exactly as long as what it is expected to add exceeds what the same cost would
write elsewhere: A_i >= rate * (c + v(i + 1) - v(i)), where ``rate`` is the tokens that a unit of cost writes (1 for
plain decoding). Since A_i only falls, looking ahead as long as costs fall short of gains is all that is needed.

A_i is the product of the acceptances of the tokens drafted so far, each looked up by its confidence, and of the average
acceptance of tokens not drafted yet. Whether to draft at all is judged with some optimism, the more the less is known,
and what is known fades while nothing is drafted: an unlucky start is forgiven, and a drafter that was given up is tried
again, soon if it was nearly good enough and rarely if it was hopeless.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Sequence

from draftsmith.speculate.policy import Costs
from draftsmith.types import Draft, Verdict

__all__ = ["AutoLength"]

_EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of confidence; finer where most draft tokens are
_PRIOR = (0.25, 0.35, 0.5, 0.6, 0.75, 0.85, 0.95, 0.98)  # acceptance expected before anything is known, for each bin
_OPTIMISM = 1.0  # standard deviations
_FADE = 0.98  # of the evidence on first tokens, in a round without a draft
_FADE_BY_CONFIDENCE = 0.995


class _Rate:
    """A proportion learnt online: a prior worth 4 observations, and a memory of about ``memory`` of them."""

    __slots__ = ("_hits", "_keep", "_trials")

    def __init__(self, prior: float, memory: float, weight: float = 4.0) -> None:
        self._keep = 1 - 1 / memory
        self._hits = prior * weight
        self._trials = weight

    def see(self, hits: float, trials: float = 1.0) -> None:
        self._hits = self._hits * self._keep + hits
        self._trials = self._trials * self._keep + trials

    def fade(self, keep: float) -> None:
        """Hold the same opinion on less evidence."""
        self._hits *= keep
        self._trials *= keep

    @property
    def value(self) -> float:
        return self._hits / self._trials

    @property
    def optimistic(self) -> float:
        """The value and as much as it may well be underestimated by."""
        value = self.value
        return min(1.0, value + _OPTIMISM * math.sqrt(value * max(0.0, 1 - value) / self._trials))


class AutoLength:
    """A ``LengthPolicy`` for any drafter: never much slower than plain decoding, near the best fixed length or better.

    It may be kept for later texts, and then starts with what it has learnt; under the rejection rule, where the length
    of drafts decides which noise is used, take a new one per text if the text is to be reproducible.
    """

    def __init__(self, costs: Costs, max_length: int = 16) -> None:
        self._costs = costs
        self._max_length = max_length
        self._by_confidence = [_Rate(prior, memory=100) for prior in _PRIOR]
        self._first = _Rate(0.6, memory=40)  # acceptance of a round's first draft token, before it is drafted
        self._later = _Rate(0.7, memory=80)  # and of the later ones, given that those before were accepted
        self._speed = _Rate(1.0, memory=50, weight=8)  # tokens per unit of cost, as achieved

    def wants_more(self, confidences: Sequence[float], upcoming: float | None) -> bool:
        """Whether drafting one token more, and perhaps others after it, is expected to pay."""
        drafted = len(confidences)
        if drafted >= self._max_length:
            return False
        reach = 1.0
        for confidence in confidences:
            reach *= self._bin(confidence).value
        following = self._later if upcoming is None else self._bin(upcoming)
        coming = following if drafted or upcoming is not None else self._first
        return self._pays(reach, coming.value if drafted else coming.optimistic, following.value, drafted)

    def successor(self) -> AutoLength:
        """A policy for another text that starts with what this one has learnt; the two then go separate ways."""
        other = copy.copy(self)
        other._by_confidence = [copy.copy(rate) for rate in self._by_confidence]
        other._first, other._later, other._speed = (copy.copy(r) for r in (self._first, self._later, self._speed))
        return other

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Take in which tokens were accepted, and what the round wrote for its cost."""
        drafted = verdict.num_draft_tokens
        cost = drafted * self._costs.draft_step + self._costs.verify_cost(drafted + 1)
        self._speed.see(verdict.num_accepted + 1, cost)
        for i in range(min(verdict.num_accepted + 1, drafted)):  # no token after the first rejection was judged
            hit = float(i < verdict.num_accepted)
            (self._later if i else self._first).see(hit)
            if draft.confidences:
                self._bin(draft.confidences[i]).see(hit)
        if drafted == 0:
            self._first.fade(_FADE)
            for rate in self._by_confidence:
                rate.fade(_FADE_BY_CONFIDENCE)

    def _bin(self, confidence: float) -> _Rate:
        return self._by_confidence[bisect_right(_EDGES, confidence)]

    def _pays(self, reach: float, chance: float, following: float, drafted: int) -> bool:
        """Whether for some number of further tokens the expected gain exceeds the cost.

        ``reach`` is the probability that all tokens so far are accepted, ``chance`` that the next one is then, and
        ``following`` the same for each one after it.
        """
        rate = max(1.0, self._speed.value)
        gain = 0.0
        for k in range(drafted + 1, self._max_length + 1):
            reach *= chance
            chance = following
            step = self._costs.verify_cost(k + 1) - self._costs.verify_cost(k)
            gain += reach - rate * (self._costs.draft_step + step)
            if gain > 0:
                return True
        return False
