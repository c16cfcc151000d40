"""Two drafters in one: free tokens where the text repeats itself, a model's where it does not, and some of both."""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.model.protocol import Model
from draftsmith.optional import fulfils
from draftsmith.sampling import point
from draftsmith.speculate.drafters.model import drive
from draftsmith.speculate.drafters.protocol import (
    CopyingDraftSession,
    Drafter,
    DraftSession,
    DraftSteps,
    SteppedDraftSession,
    Until,
    WantsMore,
)
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["MixedDraftSession", "MixedDrafter", "MixedModelSession"]


class MixedDrafter:
    """Asks ``free`` first, every round (prompt lookup or the like), and else ``model``; after the tokens that the model
    drew, a copy may go on from where they lead back to a text that is known.

    The length policy chooses between them: ``AutoLength`` by what it has learnt of both. Since what ``free`` proposes
    and the choice depend on the text and the draft so far alone, a mix is as lossless as its parts, under either rule.
    """

    def __init__(self, free: Drafter, model: Drafter, *, watched: bool = True) -> None:
        """``watched``: look for a copy after every token that the model draws, at the price of a call for each; else
        only after the last one."""
        self._free = free
        self._model = model
        self._watched = watched

    @property
    def name(self) -> str:
        """Both names, as in ``--draft``."""
        return f"{self._model.name}+{self._free.name}"

    def start(self, request: Request, rule: VerificationRule) -> MixedDraftSession:
        """A session of each."""
        free, model = self._free.start(request, rule), self._model.start(request, rule)
        if isinstance(model, SteppedDraftSession):
            return MixedModelSession(free, model, watched=self._watched)
        return MixedDraftSession(free, model)


class MixedDraftSession:
    """One text's sessions of both drafters."""

    def __init__(self, free: DraftSession, model: DraftSession) -> None:
        self._free = free
        self._second = model
        self._drafting = free  # whose draft awaits its verdict

    def restart(self, request: Request) -> None:
        """See ``protocol.DraftSession``."""
        self._free.restart(request)
        self._second.restart(request)

    def read(self, token_ids: Sequence[int]) -> None:
        """See ``protocol.DraftSession``."""
        self._free.read(token_ids)
        self._second.read(token_ids)

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``protocol.DraftSession``. A draft is all free, or the model's, perhaps with a copy after it."""
        draft = self._draft_free(token_ids, max_tokens, wants_more)
        if draft.token_ids:
            return draft
        self._drafting = self._second
        return self._with_copy(self._second.draft(token_ids, max_tokens, wants_more), max_tokens, wants_more)

    def commit(self, verdict: Verdict) -> None:
        """Only the drafter whose draft it was has something to forget."""
        self._drafting.commit(verdict)

    def _draft_free(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        def prefers(
            confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
        ) -> bool:
            del instead, drawn
            return wants_more(confidences, upcoming, instead=not confidences)

        self._drafting = self._free
        return self._free.draft(token_ids, max_tokens, prefers)

    def _with_copy(self, draft: Draft, max_tokens: int, wants_more: WantsMore) -> Draft:
        """``draft``, and what followed the last time that the text ended like this."""
        count = len(draft.token_ids)
        if not 0 < count < max_tokens or not fulfils(self._free, CopyingDraftSession):
            return draft

        def wants(
            confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
        ) -> bool:
            del instead, drawn
            return wants_more([*draft.confidences, *confidences], upcoming, drawn=count)

        copy = self._free.copy_after(draft.token_ids, max_tokens - count, wants)
        return Draft(
            draft.token_ids + copy.token_ids,
            draft.distributions and (*draft.distributions, *map(point, copy.token_ids)),
            draft.confidences + copy.confidences,
            num_copied=len(copy.token_ids),
        )

    def _copies_better(self, wants_more: WantsMore) -> Until | None:
        """Whether a copy after the tokens drawn so far is the better way to go on."""
        if not fulfils(self._free, CopyingDraftSession):
            return None
        free = self._free

        def until(drawn_ids: Sequence[int], of_drawn: Sequence[float]) -> bool:
            def better(
                confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
            ) -> bool:
                del instead, drawn
                return wants_more([*of_drawn, *confidences], upcoming, instead=True, drawn=len(of_drawn))

            return bool(free.copy_after(drawn_ids, 1, better).token_ids)

        return until


class MixedModelSession(MixedDraftSession):
    """The same with a model whose forwards the caller may run (``protocol.SteppedDraftSession``)."""

    def __init__(self, free: DraftSession, model: SteppedDraftSession, *, watched: bool = True) -> None:
        super().__init__(free, model)
        self._stepped = model
        self._watched = watched

    @property
    def model(self) -> Model:
        """The draft model."""
        return self._stepped.model

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``MixedDraftSession``."""
        return drive(self._stepped.model, self.steps(token_ids, max_tokens, wants_more))

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        """See ``protocol.SteppedDraftSession``."""
        del until
        draft = self._draft_free(token_ids, max_tokens, wants_more)
        if draft.token_ids:
            return draft
        self._drafting = self._stepped
        watch = self._copies_better(wants_more) if self._watched else None
        drawn = yield from self._stepped.steps(token_ids, max_tokens, wants_more, watch)
        return self._with_copy(drawn, max_tokens, wants_more)
