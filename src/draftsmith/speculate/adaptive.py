"""The draft length that pays, decided token by token from costs and from acceptance as observed.

In units of a plain step, a round that drafts k tokens costs k c + v(k + 1) and writes 1 + A_1 + ... + A_k tokens on
average, where A_i is the probability that draft tokens 1 to i are all accepted. To write as many tokens per unit of
cost as possible, draft one token more exactly as long as what it is expected to add exceeds what the same cost would
write elsewhere: A_i >= rate * (c + v(i + 1) - v(i)), where ``rate`` is the tokens that a unit of cost writes (1 for
plain decoding). Since A_i only falls, looking ahead as long as costs fall short of gains is all that is needed.

A_i is the product of the acceptances of the tokens drafted so far, each looked up by its confidence, and of the average
acceptance of tokens not drafted yet; for copies, by the length of the match, which grows with every token copied.

After a model's tokens, a copy may go on where they lead back to a text that is known: it costs only its check.

Three things keep a poor drafter from costing much. Whether to draft is judged with little optimism, except for a text's
first draft. A draft may only be as long as what it can lose has been gained by earlier ones of its kind, so it starts
with one or two tokens, however sure a draft model is of itself. And a text keeps account of what its drafts have gained
and lost, with what a model reads that it missed: together they must not lose more than a stake of 1.5 plain steps, 0.75
for every hundred tokens and 2 more for every hundred after 64, however good the chances look. That is 3 % of 64 tokens
and of more. Not all of the stake is there at once: where a text begins with a hard place, something is left for later,
and what a long text earns is more than what a draft model has to read that missed it. Reading also has to be repaid by
what is left of the text, and of that only by what copies are not expected to write.

What is known fades while nothing is drafted, and counts for little in the next text: an unlucky start is forgiven, and
a drafter that was given up is tried again, soon if it was nearly good enough and rarely if it was hopeless.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, count, repeat

from draftsmith.speculate.policy import Costs
from draftsmith.types import Draft, Verdict

__all__ = ["AutoLength"]

_EDGES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of confidence; finer where most draft tokens are
_PRIOR = (0.25, 0.35, 0.5, 0.6, 0.75, 0.85, 0.95, 0.98)  # acceptance expected before anything is known, for each bin
_AFTER_PRIOR = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.85)  # of the token that follows
# Of copied tokens, after matches of 1, 2, 3, 4, 6, 9, 16, 33 tokens and more; their confidence is n / (n + 1).
_FREE_EDGES = (0.6, 0.7, 0.78, 0.845, 0.895, 0.938, 0.969)
_FREE_PRIOR = (0.35, 0.5, 0.65, 0.72, 0.8, 0.86, 0.93, 0.98)
_OPTIMISM = 0.8  # standard deviations ...
_GOING_ON = 0.5  # ... for the token after one that was drafted ...
_READING = 0.4  # ... before a prompt is read for drafts: what that takes is lost at once ...
_AT_FIRST = 2.4  # ... and at the beginning of a text that was read: it may be of another kind than those before
_FADE = 0.99  # of the evidence on first tokens, in a round without a draft
_FADE_BY_CONFIDENCE = 0.995
_FADE_AFTER = 0.97  # of that on tokens that might have followed, in a round that was right and ended by choice
_CREDIT = 0.5  # plain steps that a draft may lose before any was gained
_MOST_CREDIT = 6.0
_STAKE = 1.5  # plain steps that the drafts of a text may lose together ...
_STAKE_SHARE = 0.0075  # ... besides this much of every token written so far ...
_LONG, _SHARE_OF_LONG = 64, 0.02  # ... and this much of every token after so many
_AT_ONCE = 0.7  # of the stake ...
_TRIALS_AT_ONCE = 4  # ... or as much as so many drafts of one token lose ...
_RELEASED = 0.03  # ... besides this much of every token: or an unlucky beginning takes it all
_MOST_CARRIED = 1.0  # of that credit, into the next text
_LIKE_ANY = 0.5  # how much another text is expected to be like all, and not like the last
_CARRIED = 3.0  # trials of first tokens that this counts for
_USUAL_PRIOR = 0.6
_FORGIVEN = 0.5  # trials of first tokens that turn out as expected at first, for a text that was not read
_LITTLE = 0.5  # plain steps of reading that need no reason
_UNKNOWN = 1 << 30
_USUAL = 192  # tokens of a reply, where more are allowed ...
_PART_LEFT = 3  # ... and the part of them in which reading a prompt has to be repaid


class _Rate:
    """A proportion learnt online: a prior worth 4 observations, and a memory of about ``memory`` of them."""

    __slots__ = ("_hits", "_keep", "_trials")

    def __init__(self, prior: float, memory: float, weight: float = 4.0) -> None:
        self._keep = 1 - 1 / memory
        self._hits = prior * weight
        self._trials = weight

    def copy(self) -> _Rate:
        """One that goes its own way from here."""
        other = _Rate.__new__(_Rate)
        other._hits, other._keep, other._trials = self._hits, self._keep, self._trials
        return other

    def see(self, hits: float, trials: float = 1.0) -> None:
        self._hits = self._hits * self._keep + hits
        self._trials = self._trials * self._keep + trials

    def see_again(self, hits: float, trials: float, times: int) -> None:
        """``see`` the same so many times."""
        keep = self._keep**times
        weight = (1 - keep) / (1 - self._keep)
        self._hits = self._hits * keep + hits * weight
        self._trials = self._trials * keep + trials * weight

    def fade(self, keep: float) -> None:
        """Hold the same opinion on less evidence."""
        self._hits *= keep
        self._trials *= keep

    def cap(self, trials: float) -> None:
        """Hold it on the evidence of no more than so many observations."""
        self.fade(min(1.0, trials / self._trials))

    @property
    def value(self) -> float:
        return self._hits / self._trials

    @property
    def optimistic(self) -> float:
        """The value and as much as it may well be underestimated by."""
        return self.above(_OPTIMISM)

    def above(self, deviations: float) -> float:
        """The value and so many standard deviations."""
        value = self.value
        return min(1.0, value + deviations * math.sqrt(value * max(0.0, 1 - value) / self._trials))


class _Record:
    """How often draft tokens of one kind (drawn by a model, or free) were accepted."""

    def __init__(self, prior: Sequence[float], edges: Sequence[float] = _EDGES) -> None:
        self._edges = edges
        self._by_confidence = [_Rate(value, memory=100) for value in prior]
        self.first = _Rate(0.6, memory=40, weight=3)  # acceptance of a round's first draft token, before it is drafted
        self.later = _Rate(0.7, memory=80)  # and of the later ones, given that those before were accepted
        self._after = [_Rate(value, memory=80) for value in _AFTER_PRIOR]
        self.usual = _Rate(_USUAL_PRIOR, memory=300, weight=6)  # the first tokens' of all texts
        self.speed = _Rate(1.0, memory=30, weight=8)  # tokens that a unit of cost writes in rounds of this kind
        self._faded = 0  # rounds whose fading the rates by confidence have yet to see: most texts of a batch never ask

    def copy(self) -> _Record:
        """One that goes its own way from here."""
        other = copy.copy(self)
        other._by_confidence = [rate.copy() for rate in self._by_confidence]
        other._after = [rate.copy() for rate in self._after]
        other.first, other.later = self.first.copy(), self.later.copy()
        other.usual, other.speed = self.usual.copy(), self.speed.copy()
        return other

    def of(self, confidence: float) -> _Rate:
        """Acceptance of tokens with such a confidence, given that those before were accepted."""
        if self._faded:
            keep = _FADE_BY_CONFIDENCE**self._faded
            for rate in self._by_confidence:
                rate.fade(keep)
            self._faded = 0
        return self._by_confidence[bisect_right(self._edges, confidence)]

    def after(self, confidence: float) -> _Rate:
        """Acceptance of tokens that follow one with such a confidence: hard places and easy ones come in stretches."""
        return self._after[bisect_right(_EDGES, confidence)]

    def see(self, draft: Draft, num_accepted: int, begin: int, end: int) -> None:
        """Take in what became of the tokens from ``begin`` to ``end``; none after the first rejection was judged."""
        for i in range(begin, min(num_accepted + 1, end)):
            hit = float(i < num_accepted)
            (self.later if i else self.first).see(hit)
            if not i:
                self.usual.see(hit)
            if draft.confidences:
                self.of(draft.confidences[i]).see(hit)
                if i > begin:
                    self.after(draft.confidences[i - 1]).see(hit)

    def begin(self) -> None:
        """Another text: it may be like the last one, or like any."""
        last, usual = self.first.value, self.usual.value
        self.first = _Rate((1 - _LIKE_ANY) * last + _LIKE_ANY * usual, memory=40, weight=_CARRIED)

    def forgive(self) -> None:
        """A text goes by without drafts of this kind: what is known of all texts counts a little less."""
        self.usual.see(_USUAL_PRIOR * _FORGIVEN, _FORGIVEN)

    def fade(self, rounds: int = 1) -> None:
        """So many rounds went by without a draft of this kind."""
        self.first.fade(_FADE**rounds)
        self._faded += rounds


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
        self._drawn, self._free = _Record(_PRIOR), _Record(_FREE_PRIOR, _FREE_EDGES)
        self._credits = {"drawn": _CREDIT, "free": _CREDIT}
        self._unread = 0  # tokens that the draft model has to read first
        self._end = _UNKNOWN  # how many tokens the text may have
        self._balance, self._written = 0.0, 0  # plain steps that drafts of this text have saved, and its tokens so far
        self._plain_rounds = 0  # that have yet to be taken in: in a batch, many of them come between two questions
        self._copied = _Rate(0.0, memory=100)  # how much of all texts copies have written

    def begin(self, unread: int, left: int | None = None) -> None:
        """See ``LengthPolicy``."""
        self._take_in()
        self._unread = unread
        self._end = _UNKNOWN if left is None else left
        self._balance, self._written = 0.0, 0
        if unread:
            self._drawn.forgive()
        self._credits = {kind: min(max(credit, _CREDIT), _MOST_CARRIED) for kind, credit in self._credits.items()}
        for record in (self._drawn, self._free):
            record.begin()

    def repays(self, unread: int, left: int) -> bool:
        """See ``LengthPolicy``: plain steps saved until a text ends, which may be soon, and often before it must."""
        self._take_in()
        chance, later = self._drawn.first.above(_READING), self._drawn.later.value
        best, written = 1.0, 1.0
        for k in range(1, self._max_length + 1):
            written += chance * later ** (k - 1)
            best = max(best, written / self._price(k, k))
        left_to_model = min(left, _USUAL) / _PART_LEFT * (1 - self._copied.value)
        return best > 1.0 and left_to_model * (1 - 1 / best) >= unread * self._costs.draft_read

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """Whether drafting one token more, and perhaps others after it, is expected to pay."""
        drafted = len(confidences)
        if drafted >= self._max_length:
            return False
        self._take_in()
        if drawn and upcoming is not None:
            if not self._is_covered(drafted + 1, drawn):
                return False
            enough = math.inf if instead else 0.0
            gain = self._gain_of_copying(confidences, upcoming, self._drawn.speed.value, drawn=drawn, enough=enough)
            return gain > 0 and not (instead and gain < self._gain_of_drawing(confidences))
        if not self._can_afford(drafted + 1, free=upcoming is not None):
            return False
        if upcoming is None:
            return self._gain_of_drawing(confidences, enough=0.0) > 0 and (
                drafted > 0 or self._repays_what_was_missed()
            )
        # With a model to fall back on, nothing is learnt by trying a copy that could not be learnt more cheaply.
        instead = instead and self._would_draw()
        hopeful = not drafted and not instead
        speed = self._free.speed.value
        if self._gain_of_copying(confidences, upcoming, speed, hopeful=hopeful, enough=0.0) <= 0:
            return False
        return not instead or self._gain_of_copying((), upcoming, self._drawn.speed.value) >= self._gain_of_drawing(())

    def successor(self) -> AutoLength:
        """A policy for another text that starts with what this one has learnt; the two then go separate ways."""
        self._take_in()
        other = copy.copy(self)
        other._drawn, other._free, other._credits = self._drawn.copy(), self._free.copy(), dict(self._credits)
        other._copied = self._copied.copy()
        return other

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Take in which tokens were accepted, and what the round wrote for its cost."""
        drafted, written, drawn = verdict.num_draft_tokens, verdict.num_accepted + 1, draft.num_drawn
        if not drafted:
            self._plain_rounds += 1
            return
        self._take_in()
        cost = self._price(drafted, drawn)
        reading = self._unread * self._costs.draft_read if drawn else 0.0
        self._balance += written - cost - reading
        self._written += written
        self._copied.see(written if draft.free and verdict.num_accepted else 0, written)
        record, kind = (self._free, "free") if draft.free else (self._drawn, "drawn")
        record.speed.see(written, cost)
        self._credits[kind] = min(_MOST_CREDIT, max(0.0, self._credits[kind] + written - cost))
        if drawn:
            self._unread = 0
            self._drawn.see(draft, verdict.num_accepted, 0, drawn)
            if verdict.num_accepted == drafted == drawn and draft.confidences:  # what might have come next is not known
                self._drawn.after(draft.confidences[-1]).fade(_FADE_AFTER)
        else:
            self._unread += written
            self._drawn.fade()
        if drawn < drafted:
            self._free.see(draft, verdict.num_accepted, drawn, drafted)
        else:
            self._free.fade()

    def _take_in(self) -> None:
        """The rounds without a draft since the last time: each wrote a token at the cost of a plain step."""
        rounds, self._plain_rounds = self._plain_rounds, 0
        if rounds:
            self._drawn.speed.see_again(1.0, self._costs.verify_cost(1), rounds)
            self._copied.see_again(0.0, 1.0, rounds)
            self._unread += rounds
            self._written += rounds
            self._drawn.fade(rounds)
            self._free.fade(rounds)

    def _can_afford(self, length: int, *, free: bool) -> bool:
        """Whether a draft of so many tokens can be lost: by the text's account, and if it is longer than one token by
        what drafts of its kind have earned.
        """
        num_drawn = 0 if free else length
        if not self._is_covered(length, num_drawn):
            return False
        return length == 1 or self._price(length, num_drawn) - 1.0 <= self._credits["free" if free else "drawn"]

    def _is_covered(self, length: int, num_drawn: int) -> bool:
        """Whether the text's account bears that all tokens of a draft turn out wrong."""
        reading = self._unread * self._costs.draft_read if num_drawn else 0.0
        lost = self._price(length, num_drawn) - 1.0 + reading
        at_once = max(_AT_ONCE, _TRIALS_AT_ONCE * (self._price(1, min(1, num_drawn)) - 1.0))
        stake = min(_STAKE, at_once + _RELEASED * self._written)
        earned = _STAKE_SHARE * self._written + _SHARE_OF_LONG * max(0, self._written - _LONG)
        return lost <= stake + earned + self._balance

    def _would_draw(self) -> bool:
        """Whether the model may begin a draft and is expected to gain by it."""
        return (
            self._can_afford(1, free=False)
            and self._gain_of_drawing((), enough=0.0) > 0
            and self._repays_what_was_missed()
        )

    def _repays_what_was_missed(self) -> bool:
        """Whether drafts to come are expected to repay what the draft model has to read first: where the text's account
        bears that, it may be by what copies have saved, which says nothing of the model.
        """
        little = self._unread * self._costs.draft_read <= _LITTLE
        return little or self.repays(self._unread, self._end - self._written)

    def _price(self, length: int, num_drawn: int) -> float:
        """What a round with a draft of so many tokens costs; a model drew ``num_drawn`` of them."""
        drawing = self._costs.draft_start + num_drawn * self._costs.draft_step if num_drawn else 0.0
        return drawing + self._costs.verify_cost(length + 1)

    def _gain_of_drawing(self, confidences: Sequence[float], enough: float = math.inf) -> float:
        """See ``_gain``."""
        record = self._drawn
        at_first = not self._written and not self._unread
        chance, later = record.first.above(_AT_FIRST if at_first else _OPTIMISM), record.later.value
        if confidences:
            after = record.after(confidences[-1])
            chance, later = after.above(_GOING_ON), after.value
        ahead, speed = chain((chance,), repeat(later)), record.speed.value
        start = 0.0 if confidences else max(1.0, speed) * self._costs.draft_start
        reach, step = _product(record, confidences), self._costs.draft_step
        return self._gain(reach, ahead, len(confidences), step, speed, enough + start) - start

    def _gain_of_copying(
        self,
        confidences: Sequence[float],
        upcoming: float,
        speed: float,
        *,
        hopeful: bool = False,
        drawn: int = 0,
        enough: float = math.inf,
    ) -> float:
        """See ``_gain``. After n / (n + 1) comes (n + 1) / (n + 2): with every token that is right, the match is longer
        by one.
        """
        match = upcoming / max(1e-9, 1 - upcoming)
        rates = (self._free.of((match + i) / (match + i + 1)) for i in count())
        ahead = (rate.optimistic if hopeful and not i else rate.value for i, rate in enumerate(rates))
        reach = _product(self._drawn, confidences[:drawn]) * _product(self._free, confidences[drawn:])
        return self._gain(reach, ahead, len(confidences), 0.0, speed, enough)

    def _gain(
        self, reach: float, chances: Iterator[float], drafted: int, draft_step: float, speed: float, enough: float
    ) -> float:
        """The most that some number of further tokens is expected to gain above what its cost gains elsewhere.

        ``reach`` is the probability that all tokens so far are accepted, ``chances`` that the next ones are, each after
        the one before. ``speed`` is that of elsewhere: of rounds of the same kind, since copies come in stretches, and
        so do places where there is nothing to copy. Not positive: no number of tokens pays. More than ``enough`` need
        not be found.
        """
        rate, verify_cost = max(1.0, speed), self._costs.verify_cost
        gain, best, before = 0.0, -math.inf, verify_cost(drafted + 1)
        for k in range(drafted + 1, self._max_length + 1):
            reach *= next(chances)
            cost = verify_cost(k + 1)
            gain += reach - rate * (draft_step + cost - before)
            best, before = max(best, gain), cost
            if best > enough:
                break
            if gain + reach * (self._max_length - k) <= max(best, 0.0):
                break  # whatever checks cost, no further token can change the answer
        return best


def _product(record: _Record, confidences: Sequence[float]) -> float:
    """The probability that all of a round's tokens so far are accepted."""
    return math.prod(record.of(confidence).value for confidence in confidences)
