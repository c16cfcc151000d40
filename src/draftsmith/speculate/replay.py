"""Judging length policies by a recorded trace, without the models.

What a drafter proposes after a given text does not depend on how the rounds before were cut. So each position of the
text has one outcome, accepted or not, with one confidence, and any other policy would have met the same. Positions that
were never drafted (the bonus token after a draft that was all accepted) are unknown, and a replayed draft ends there.
Record with more tokens a round than the policies will want, and few positions are unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from draftsmith.speculate.policy import CostModel, LengthPolicy, begin_text
from draftsmith.speculate.trace import Trace
from draftsmith.types import Draft, Verdict

__all__ = ["ReplayResult", "replay"]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What drafting at one position gives, when the text before is right."""

    accepted: bool
    confidence: float | None
    free: bool
    blind: tuple[float, ...]  # confidences of what was drafted after it, if it was wrong


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """``cost`` is in plain steps, so ``speedup`` is what to expect over plain decoding."""

    tokens: int
    rounds: int
    draft_tokens: int
    accepted_tokens: int
    cost: float

    @property
    def speedup(self) -> float:
        """Tokens per plain step's time."""
        return self.tokens / self.cost if self.cost else 0.0

    @property
    def tokens_per_round(self) -> float:
        """1 for plain decoding."""
        return self.tokens / self.rounds if self.rounds else 0.0


def replay(
    trace: Trace, new_policy: Callable[[CostModel], LengthPolicy], costs: CostModel | None = None
) -> ReplayResult:
    """Write all texts of ``trace`` again with one policy, which keeps what it learns from text to text.

    ``costs`` None: those of the trace. What a draft model has to read before it drafts is paid for, except for a prompt
    that it reads at once, since reading prompts is no part of decoding.
    """
    costs = costs or trace.costs
    policy = new_policy(costs)
    tokens = rounds = drafted = accepted = 0
    cost = 0.0
    for outcomes, start, length in _texts(trace):
        place, unread = 0, 0 if begin_text(policy, start, length) else start
        while place < length:
            draft, hits = _draft(outcomes, place, length, policy)
            k = len(draft.confidences)
            policy.learn(draft, Verdict((0,) * (hits + 1), hits, k))
            cost += costs.verify_cost(k + 1) + costs.draft_cost(draft.num_drawn)
            cost += unread * costs.draft_read if draft.num_drawn else 0.0
            unread = 0 if draft.num_drawn else unread + hits + 1
            place, rounds, drafted, accepted = place + hits + 1, rounds + 1, drafted + k, accepted + hits
        tokens += length
    return ReplayResult(tokens, rounds, drafted, accepted, cost)


def _texts(trace: Trace) -> list[tuple[dict[int, _Outcome], int, int]]:
    """For each text: outcomes by position after its first round's start, that start, how many positions there are."""
    starts: dict[int, int] = {}
    lengths: dict[int, int] = {}
    outcomes: dict[int, dict[int, _Outcome]] = defaultdict(dict)
    for row in trace.rounds:
        origin = starts.setdefault(row.text, row.start)
        lengths[row.text] = row.start + len(row.written) - origin
        for i in range(min(row.num_accepted + 1, len(row.drafted))):
            hit, free = i < row.num_accepted, row.free or i >= len(row.drafted) - row.num_copied
            confidence = row.confidences[i] if row.confidences else None
            blind = () if hit else row.confidences[i + 1 :]
            outcomes[row.text][row.start - origin + i] = _Outcome(hit, confidence, free, blind)
    return [(outcomes[text], starts[text], lengths[text]) for text in starts]


def _draft(outcomes: dict[int, _Outcome], place: int, length: int, policy: LengthPolicy) -> tuple[Draft, int]:
    """The draft that ``policy`` would have had made at ``place``, and how many of its tokens are accepted.

    A round is of the kind that it was in the recording. After a wrong token it drafts on blindly, with the confidences
    that were recorded there.
    """
    confidences: list[float] = []
    first = outcomes.get(place)
    hits, wrong = 0, None
    while first is not None and place + len(confidences) < length - 1:
        k = len(confidences)
        if wrong is None:
            here = outcomes.get(place + k)
            if here is None or here.free is not first.free or here.confidence is None:
                break
            confidence = here.confidence
        elif k - hits - 1 < len(wrong):
            here, confidence = None, wrong[k - hits - 1]
        else:
            break
        if not policy.wants_more(confidences, confidence if first.free else None):
            break
        confidences.append(confidence)
        if here is not None and here.accepted:
            hits += 1
        elif here is not None:
            wrong = here.blind
    free = first is not None and first.free and bool(confidences)
    return Draft((0,) * len(confidences), None, tuple(confidences), free), hits
