"""What proposes tokens. A drafter that is no good costs time; it can never change the text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from draftsmith.model.protocol import DraftRun, Model, TokenRun, UnseenDraft
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = [
    "CopyingDraftSession",
    "DraftSession",
    "DraftSteps",
    "Drafter",
    "SteppedDraftSession",
    "UnseenDraftSession",
    "Until",
    "WantsMore",
]

DraftSteps: TypeAlias = Generator[TokenRun | DraftRun, Any, Draft]
"""A draft in the making: every TokenRun is answered with its logits, every DraftRun with the tokens drawn."""


class WantsMore(Protocol):
    """Whether to draft one token more."""

    def __call__(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        """``confidences`` are those of the round's draft tokens so far (none yet: whether to draft at all).

        ``upcoming`` is the confidence of the next token where the drafter knows it for nothing and without having drawn
        it (that token is then free), else None. ``instead``: if the answer is no, the drafter can draw tokens at a cost
        in place of the free one; is the free one the better way? ``drawn``: the first so many tokens were drawn, and
        the upcoming one would be copied after them.
        """
        ...


Until: TypeAlias = Callable[[Sequence[int], Sequence[float]], bool]
"""Told the tokens drawn so far and their confidences: is there a better way to go on than to draw?"""


class DraftSession(Protocol):
    """A drafter's state for one text."""

    def read(self, token_ids: Sequence[int]) -> None:
        """Take in the text so far, ahead of need. ``draft`` does so itself; this only chooses the moment."""
        ...

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """At most ``max_tokens`` tokens that may follow the text ``token_ids`` (prompt and reply, complete).

        Fewer, or none, when the drafter has nothing to propose, its context is full, or ``wants_more`` says so. A call
        that drafts nothing costs next to nothing. Every draft is answered by ``commit`` before the next call.
        """
        ...

    def commit(self, verdict: Verdict) -> None:
        """Learn what became of the draft: forget the tokens that were rejected."""
        ...

    def restart(self, request: Request) -> None:
        """Begin another text. What its prompt has in common with the text before is kept (the turns of a chat)."""
        ...


@runtime_checkable
class CopyingDraftSession(DraftSession, Protocol):
    """A session that copies, also after tokens that another drafter has drawn."""

    def copy_after(self, drawn: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """What followed the last time that the text ended as it does now with ``drawn``; ``draft`` has read the text.

        ``wants_more`` hears of the copied tokens alone. Changes nothing, and needs no ``commit``.
        """
        ...


@runtime_checkable
class SteppedDraftSession(DraftSession, Protocol):
    """A session that leaves the forwards of its model to the caller, who may run those of several texts as one."""

    @property
    def model(self) -> Model:
        """The model that the runs are for."""
        ...

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        """``draft``, step by step: what it yields is for ``model`` to do; it returns the draft, which may be cut short
        where ``until`` says so."""
        ...


@runtime_checkable
class UnseenDraftSession(DraftSession, Protocol):
    """A session whose drafts a target may check before anybody has seen them (``model.protocol.DeviceModel``)."""

    def draft_unseen(
        self, place: str, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore
    ) -> UnseenDraft | None:
        """``draft``, of a length that is settled before: what ``wants_more`` said of the last draft tells it.

        None where there is none to be had for a target at ``place``, or not yet: then ask ``draft``. What comes next is
        ``see``, or after an error ``draft`` or ``draft_unseen`` once more.
        """
        ...

    def see(self, draft: Draft, wants_more: WantsMore) -> None:
        """What was in the unseen draft. ``commit`` comes next."""
        ...


class Drafter(Protocol):
    """Anything that proposes tokens: a draft model, prompt lookup, a head."""

    @property
    def name(self) -> str:
        """As it appears in statistics."""
        ...

    def start(self, request: Request, rule: VerificationRule) -> DraftSession:
        """A session for one text. ``rule`` decides which noise a sampled draft is drawn with."""
        ...
