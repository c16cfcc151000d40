"""The draft length that pays, decided token by token from costs and from acceptance as observed.

In units of a plain step, a round that drafts k tokens costs k c + v(k + 1) and writes 1 + A_1 + ... + A_k tokens on
average, where A_i is the probability that draft tokens 1 to i are all accepted. To write as many tokens per unit of
cost as possible, draft one token more exactly as long as what it is expected to add exceeds what the same cost would
write elsewhere: A_i >= rate * (c + v(i + 1) - v(i)), where ``rate`` is the tokens that a unit of cost writes (1 for
plain decoding). Since A_i only falls, looking ahead as long as costs fall short of gains is all that is needed.

A_i is the product of the acceptances of the tokens drafted so far, each looked up by its confidence, and of the average
acceptance of tokens not drafted yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from draftsmith.speculate.policy import CostModel
from draftsmith.types import Draft, Verdict

__all__ = ["AutoLength"]

_EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of confidence; finer where most draft tokens are
_PRIOR = (0.25, 0.35, 0.45, 0.55, 0.7, 0.8, 0.9, 0.97)  # acceptance expected before anything is known, for each bin


class _Rate:
    """A proportion learnt online: a prior worth ``weight`` observations, and a memory of about ``memory`` of them."""

    __slots__ = ("_keep", "hits", "trials")

    def __init__(self, prior: float, weight: float, memory: float) -> None:
        self._keep = 1 - 1 / memory
        self.hits = prior * weight
        self.trials = weight

    def see(self, hit: float, trial: float = 1.0) -> None:
        self.hits = self.hits * self._keep + hit
        self.trials = self.trials * self._keep + trial

    @property
    def value(self) -> float:
        return self.hits / self.trials


class AutoLength:
    """A ``LengthPolicy`` for any drafter: never much slower than plain decoding, near the best fixed length or better.

    It may be kept for later texts, and then starts with what it has learnt; under the rejection rule, where the length
    of drafts decides which noise is used, take a new one per text if the text is to be reproducible.
    """

    def __init__(self, costs: CostModel, max_length: int = 16) -> None:
        self._costs = costs
        self._max_length = max_length
        self._by_confidence = [_Rate(prior, 4.0, 100.0) for prior in _PRIOR]
        self._first = _Rate(0.6, 4.0, 40.0)  # acceptance of a round's first draft token, before it is drafted
        self._later = _Rate(0.7, 4.0, 80.0)  # and of the later ones, given that those before were accepted
        self._speed = _Rate(1.0, 8.0, 50.0)  # tokens per unit of cost, as achieved
        self._idle = 0  # rounds without a draft since the last with one
        self._patience = _FIRST_PAUSE

    def wants_more(self, confidences: Sequence[float], upcoming: float | None) -> bool:
        """Whether another draft token is expected to pay, or is due as a trial after a pause."""
        drafted = len(confidences)
        if drafted >= self._max_length:
            return False
        if drafted == 0 and self._idle >= self._patience:
            return True
        reach = 1.0
        for confidence in confidences:
            reach *= self._acceptance(confidence)
        if upcoming is not None:
            chance = following = self._acceptance(upcoming)
        else:
            following = self._later.value
            chance = following if drafted else self._first.value
        return self._pays(reach, chance, following, drafted)

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Update the acceptances, the achieved rate, and how long to pause after trials that fail."""
        drafted = verdict.num_draft_tokens
        cost = drafted * self._costs.draft_step + self._costs.verify_cost(drafted + 1)
        self._speed.see(verdict.num_accepted + 1, cost)
        if drafted == 0:
            self._idle += 1
            return
        for i in range(min(verdict.num_accepted + 1, drafted)):
            hit = float(i < verdict.num_accepted)
            (self._later if i else self._first).see(hit)
            if draft.confidences:
                self._by_confidence[bisect_right(_EDGES, draft.confidences[i])].see(hit)
        if self._idle >= self._patience:
            self._patience = _FIRST_PAUSE if verdict.num_accepted else min(2 * self._patience, _LONGEST_PAUSE)
        self._idle = 0

    def _acceptance(self, confidence: float) -> float:
        return self._by_confidence[bisect_right(_EDGES, confidence)].value

    def _pays(self, reach: float, chance: float, following: float, drafted: int) -> bool:
        """Whether there is a number of further tokens whose expected gain exceeds their cost."""
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


_FIRST_PAUSE = 8  # rounds without a draft before the first trial
_LONGEST_PAUSE = 64
