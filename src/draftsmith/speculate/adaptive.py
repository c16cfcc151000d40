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
_AFTER_PRIOR = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.85)  # of the token that follows
_FREE_PRIOR = (0.1, 0.15, 0.2, 0.25, 0.4, 0.65, 0.88, 0.95)  # of copied tokens
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


class _Record:
    """How often draft tokens of one kind (drawn by a model, or free) were accepted."""

    def __init__(self, prior: Sequence[float]) -> None:
        self._by_confidence = [_Rate(value, memory=100) for value in prior]
        self.first = _Rate(0.6, memory=40)  # acceptance of a round's first draft token, before it is drafted
        self.later = _Rate(0.7, memory=80)  # and of the later ones, given that those before were accepted
        self._after = [_Rate(value, memory=80) for value in _AFTER_PRIOR]

    def of(self, confidence: float) -> _Rate:
        """Acceptance of tokens with such a confidence, given that those before were accepted."""
        return self._by_confidence[bisect_right(_EDGES, confidence)]

    def after(self, confidence: float) -> _Rate:
        """Acceptance of tokens that follow one with such a confidence: hard places and easy ones come in stretches."""
        return self._after[bisect_right(_EDGES, confidence)]

    def see(self, draft: Draft, num_accepted: int) -> None:
        """Take in what became of a draft's tokens up to the first rejection; none after it was judged."""
        for i in range(min(num_accepted + 1, len(draft.token_ids))):
            hit = float(i < num_accepted)
            (self.later if i else self.first).see(hit)
            if draft.confidences:
                self.of(draft.confidences[i]).see(hit)
                if i:
                    self.after(draft.confidences[i - 1]).see(hit)

    def fade(self) -> None:
        """A round went by without a draft of this kind."""
        self.first.fade(_FADE)
        for rate in self._by_confidence:
            rate.fade(_FADE_BY_CONFIDENCE)


class AutoLength:
    """A ``LengthPolicy`` for any drafter: never much slower than plain decoding, near the best fixed length or better.

    Where a drafter has free tokens (copied ones) and a model besides, each round goes the way that is expected to gain
    more: free tokens cost only their check, but a poor one also takes the place of a model's draft.

    It may be kept for later texts, and then starts with what it has learnt; under the rejection rule, where the length
    of drafts decides which noise is used, take a new one per text if the text is to be reproducible.
    """

    def __init__(self, costs: Costs, max_length: int = 16) -> None:
        self._costs = costs
        self._max_length = max_length
        self._drawn, self._free = _Record(_PRIOR), _Record(_FREE_PRIOR)
        self._speed = _Rate(1.0, memory=50, weight=8)  # tokens per unit of cost, as achieved

    def wants_more(self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False) -> bool:
        """Whether drafting one token more, and perhaps others after it, is expected to pay."""
        drafted = len(confidences)
        if drafted >= self._max_length:
            return False
        if upcoming is None:
            return self._gain_of_drawing(confidences) > 0
        following = self._free.of(upcoming)
        # With a model to fall back on, nothing is learnt by trying a copy that could not be learnt more cheaply.
        chance = following.value if drafted or instead else following.optimistic
        gain = self._gain(_product(self._free, confidences), chance, following.value, drafted, 0.0)
        return gain > 0 and not (instead and self._gain_of_drawing(confidences) > gain)

    def successor(self) -> AutoLength:
        """A policy for another text that starts with what this one has learnt; the two then go separate ways."""
        other = copy.copy(self)
        other._drawn, other._free, other._speed = copy.deepcopy((self._drawn, self._free, self._speed))
        return other

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Take in which tokens were accepted, and what the round wrote for its cost."""
        drafted = verdict.num_draft_tokens
        drafting = 0.0 if draft.free else drafted * self._costs.draft_step
        self._speed.see(verdict.num_accepted + 1, drafting + self._costs.verify_cost(drafted + 1))
        for record, used in ((self._drawn, not draft.free), (self._free, draft.free)):
            if used and drafted:
                record.see(draft, verdict.num_accepted)
            else:
                record.fade()

    def _gain_of_drawing(self, confidences: Sequence[float]) -> float:
        record, drafted = self._drawn, len(confidences)
        chance, later = record.first.optimistic, record.later.value
        if drafted:
            chance = later = record.after(confidences[-1]).value
        reach = _product(record, confidences)
        return self._gain(reach, chance, later, drafted, self._costs.draft_step)

    def _gain(self, reach: float, chance: float, following: float, drafted: int, draft_step: float) -> float:
        """The most that some number of further tokens is expected to gain above what its cost gains elsewhere.

        ``reach`` is the probability that all tokens so far are accepted, ``chance`` that the next one is then, and
        ``following`` the same for each one after it. Not positive: no number of tokens pays.
        """
        rate = max(1.0, self._speed.value)
        gain, best = 0.0, -math.inf
        for k in range(drafted + 1, self._max_length + 1):
            reach *= chance
            chance = following
            gain += reach - rate * (draft_step + self._costs.verify_cost(k + 1) - self._costs.verify_cost(k))
            best = max(best, gain)
        return best


def _product(record: _Record, confidences: Sequence[float]) -> float:
    """The probability that all of a round's tokens so far are accepted."""
    return math.prod(record.of(confidence).value for confidence in confidences)
