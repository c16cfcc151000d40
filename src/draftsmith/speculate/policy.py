"""How many tokens to draft in a round: the protocol, the plain choices, and the costs that a choice depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from draftsmith.types import Draft, Verdict

__all__ = ["GROWTH", "SHORT_TEXT", "CostModel", "Costs", "FixedLength", "LengthPolicy", "TheoryLength", "begin_text"]


SHORT_TEXT = 64  # tokens: costs are told for texts of that length ...
GROWTH = 1024  # ... and what so many more of them add


class Costs(Protocol):
    """What a policy needs to know of costs; see ``CostModel``."""

    @property
    def draft_step(self) -> float:
        """c: what one draft token costs."""
        ...

    @property
    def draft_start(self) -> float:
        """What a draft costs besides its tokens."""
        ...

    @property
    def draft_read(self) -> float:
        """What one token more costs that the draft model reads together with others."""
        ...

    def verify_cost(self, num_tokens: int) -> float:
        """v(num_tokens), num_tokens >= 1."""
        ...


@dataclass(frozen=True, slots=True)
class CostModel:
    """What drafting and checking cost, in units of one plain step of the target.

    ``draft_step`` is c: one draft token; ``draft_start`` is what a draft of any length costs besides. ``verify`` holds
    v(1), v(2), ... where v(m) is the cost of checking m tokens at once; beyond its end v grows on with its last slope.
    ``draft_read`` is what one token more costs that the draft model reads with others: what it missed while it did not
    draft. Measured once by the engine and then fixed, so that a choice never depends on the clock.

    These are costs after a short text, of 64 tokens. ``context_step``: what a plain step costs besides for every 1,024
    tokens of context more, and ``context_row`` each further token of a check.
    """

    draft_step: float
    verify: tuple[float, ...] = (1.0, 1.03, 1.06, 1.1, 1.14, 1.18, 1.22, 1.26)
    draft_read: float = 0.0
    draft_start: float = 0.0
    context_step: float = 0.0
    context_row: float = 0.0

    def __post_init__(self) -> None:
        others = (self.draft_step, self.draft_read, self.draft_start, self.context_step, self.context_row)
        if min(others) < 0 or not self.verify or min(self.verify) <= 0:
            raise ValueError(f"costs must be positive: {self}")

    def verify_cost(self, num_tokens: int) -> float:
        """v(num_tokens), num_tokens >= 1."""
        known = len(self.verify)
        if num_tokens <= known:
            return self.verify[num_tokens - 1]
        slope = self.verify[-1] - self.verify[-2] if known > 1 else 0.0
        return self.verify[-1] + slope * (num_tokens - known)

    def draft_cost(self, num_drawn: int) -> float:
        """What a model's draft of so many tokens costs."""
        return self.draft_start + num_drawn * self.draft_step if num_drawn else 0.0

    def growth(self, context: float) -> tuple[float, float]:
        """What ``context`` tokens add to a plain step, and to each further token of a check."""
        more = max(0.0, context - SHORT_TEXT) / GROWTH
        return self.context_step * more, self.context_row * more

    def batch_cost(self, num_texts: int, context: float) -> float:
        """What it costs that so many texts of ``context`` tokens on average write one token each."""
        return self.verify_cost(num_texts) + num_texts * self.growth(context)[0]

    def check_cost(self, num_tokens: int, context: float) -> float:
        """v(num_tokens) for a text of so many tokens, in its plain steps."""
        step, row = self.growth(context)
        return (self.verify_cost(num_tokens) + step + row * (num_tokens - 1)) / (1 + step)

    def at(self, context: float) -> CostModel:
        """The same for texts of so many tokens, in units of their plain step.

        The weights are read once for all tokens of a check, but each of them has its own attention, so checks grow
        dearer than plain steps do. What a model's drafts cost in plain steps is taken to stay, since it has attention
        too. Beyond a window that all layers have, attention grows no more, which this does not know.
        """
        verify = tuple(self.check_cost(size, context) for size in range(1, len(self.verify) + 1))
        return replace(self, verify=verify, context_step=0.0, context_row=0.0)


class LengthPolicy(Protocol):
    """Decides, token by token, whether drafting one more pays."""

    def begin(self, unread: int, left: int | None = None) -> None:
        """A text begins, or goes on elsewhere; the draft model has yet to read ``unread`` tokens of it, and at most
        ``left`` more will be written, if that is known."""
        ...

    def repays(self, unread: int, left: int) -> bool:
        """Whether drafts of at most ``left`` tokens that are still to be written will repay reading ``unread`` ones."""
        ...

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """See ``drafters.protocol.WantsMore``. Changes nothing."""
        ...

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Take notice of a finished round, also of one without a draft."""
        ...


def begin_text(policy: LengthPolicy, unread: int, left: int, *, others_wait: bool = False) -> bool:
    """A text begins of which the drafter lacks ``unread`` tokens: is it to read them now, before it is asked to draft?

    Not where drafting is not expected to pay; then the policy knows what trying it later would cost. ``left``: how many
    tokens may still be written. ``others_wait`` for the reading, so that it has to be repaid by them.
    """
    policy.begin(0, left)
    if policy.wants_more((), None) and not (others_wait and not policy.repays(unread, left)):
        return True
    policy.begin(unread, left)
    return False


@dataclass(frozen=True, slots=True)
class FixedLength:
    """Always ``length`` tokens (as far as the drafter has them); 0 is plain decoding."""

    length: int

    def begin(self, unread: int, left: int | None = None) -> None:
        """Nothing depends on it."""

    def repays(self, unread: int, left: int) -> bool:  # noqa: ARG002  # see the protocol
        """Nobody asked whether it pays."""
        return True

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """Whether there are fewer than ``length`` yet. Free tokens are welcome, but a draft is of one kind."""
        del upcoming, instead
        return not drawn and len(confidences) < self.length

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Learns nothing."""


class TheoryLength:
    """The best length if all draft tokens were accepted with one probability a, each independently of the others.

    Then a round of k writes (1 - a^(k + 1)) / (1 - a) tokens on average (arXiv:2211.17192, section 3). a is the share
    of accepted ones among all judged so far. For comparison: it knows of no confidence, and once it does not draft it
    never tries again.
    """

    def __init__(self, costs: Costs, max_length: int = 16) -> None:
        self._costs = costs
        self._max_length = max_length
        self._accepted, self._judged = 2.8, 4.0  # what is taken for granted before anything is known
        self._length = self._best()

    def begin(self, unread: int, left: int | None = None) -> None:
        """Nothing depends on it."""

    def repays(self, unread: int, left: int) -> bool:  # noqa: ARG002  # see the protocol
        """Nobody asked whether it pays."""
        return True

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """Whether there are fewer than the best length yet."""
        del upcoming, instead
        return not drawn and len(confidences) < self._length

    def learn(self, draft: Draft, verdict: Verdict) -> None:
        """Take in which tokens were accepted; none after the first rejection was judged."""
        del draft
        self._accepted += verdict.num_accepted
        self._judged += min(verdict.num_accepted + 1, verdict.num_draft_tokens)
        self._length = self._best()

    def _best(self) -> int:
        acceptance = self._accepted / self._judged
        best, speed, written = 0, 1.0, 1.0
        for k in range(1, self._max_length + 1):
            written += acceptance**k
            drafting = self._costs.draft_start + k * self._costs.draft_step
            now = written / (drafting + self._costs.verify_cost(k + 1))
            best, speed = (k, now) if now > speed else (best, speed)
        return best
