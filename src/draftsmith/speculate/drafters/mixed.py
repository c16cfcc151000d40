"""Two drafters in one: free tokens where the text repeats itself, a model's where it does not."""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.model.protocol import Model
from draftsmith.speculate.drafters.protocol import Drafter, DraftSession, DraftSteps, SteppedDraftSession, WantsMore
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["MixedDraftSession", "MixedDrafter", "MixedModelSession"]


class MixedDrafter:
    """Asks ``free`` first, every round (prompt lookup or the like), and else ``model``.

    The length policy chooses between them: ``AutoLength`` by what it has learnt of both. Since what ``free`` proposes
    and the choice depend on the text so far alone, a mix is as lossless as its parts, under either rule.
    """

    def __init__(self, free: Drafter, model: Drafter) -> None:
        self._free = free
        self._model = model

    @property
    def name(self) -> str:
        """Both names, as in ``--draft``."""
        return f"{self._model.name}+{self._free.name}"

    def start(self, request: Request, rule: VerificationRule) -> MixedDraftSession:
        """A session of each."""
        free, model = self._free.start(request, rule), self._model.start(request, rule)
        return (
            MixedModelSession(free, model) if isinstance(model, SteppedDraftSession) else MixedDraftSession(free, model)
        )


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
        """See ``protocol.DraftSession``. A draft is of one kind: all free, or all of the model."""
        draft = self._draft_free(token_ids, max_tokens, wants_more)
        if draft.token_ids:
            return draft
        self._drafting = self._second
        return self._second.draft(token_ids, max_tokens, wants_more)

    def commit(self, verdict: Verdict) -> None:
        """Only the drafter whose draft it was has something to forget."""
        self._drafting.commit(verdict)

    def _draft_free(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        def prefers(confidences: Sequence[float], upcoming: float | None, *, instead: bool = False) -> bool:
            del instead
            return wants_more(confidences, upcoming, instead=not confidences)

        self._drafting = self._free
        return self._free.draft(token_ids, max_tokens, prefers)


class MixedModelSession(MixedDraftSession):
    """The same with a model whose forwards the caller may run (``protocol.SteppedDraftSession``)."""

    def __init__(self, free: DraftSession, model: SteppedDraftSession) -> None:
        super().__init__(free, model)
        self._stepped = model

    @property
    def model(self) -> Model:
        """The draft model."""
        return self._stepped.model

    def steps(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> DraftSteps:
        """See ``protocol.SteppedDraftSession``."""
        draft = self._draft_free(token_ids, max_tokens, wants_more)
        if draft.token_ids:
            return draft
        self._drafting = self._stepped
        return (yield from self._stepped.steps(token_ids, max_tokens, wants_more))
