"""A draft model with a vocabulary of its own, by the way that suits the request: common tokens, or text."""

from __future__ import annotations

from collections.abc import Sequence

from draftsmith.model.protocol import Model
from draftsmith.speculate.drafters.foreign import ForeignModel
from draftsmith.speculate.drafters.model import ModelDrafter
from draftsmith.speculate.drafters.protocol import DraftSteps, SteppedDraftSession, Until, WantsMore
from draftsmith.speculate.drafters.text import TextDrafter
from draftsmith.speculate.vocabulary import VocabularyMap
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["TranslatedDraftSession", "TranslatedDrafter"]


class TranslatedDrafter:
    """``vocabularies.method`` decides, request by request. ``target_vocab_size`` is the width of the target's logits,
    ``max_context`` its longest text."""

    def __init__(
        self,
        model: Model,
        vocabularies: VocabularyMap,
        *,
        target_vocab_size: int,
        max_context: int,
        name: str = "model",
    ) -> None:
        self._vocabularies = vocabularies
        self._by_text = TextDrafter(model, vocabularies, name=name)
        foreign = ForeignModel(model, vocabularies, max_context=max_context)
        self._by_tokens = ModelDrafter(foreign, target_vocab_size=target_vocab_size, name=name)

    @property
    def name(self) -> str:
        """As it appears in statistics."""
        return self._by_text.name

    def start(self, request: Request, rule: VerificationRule) -> TranslatedDraftSession:
        """A session that can change its way with the next request."""
        return TranslatedDraftSession(self, request, rule)

    def start_one_way(self, request: Request, rule: VerificationRule) -> SteppedDraftSession:
        """A session of the way that suits ``request``."""
        return (self._by_tokens if self.uses_tokens(request) else self._by_text).start(request, rule)

    def uses_tokens(self, request: Request) -> bool:
        """Whether ``request`` is drafted with common tokens, not through the text."""
        return self._vocabularies.method(sampled=not request.sampling.greedy) == "tokens"


class TranslatedDraftSession:
    """One session for each way, begun when it is first needed."""

    def __init__(self, drafter: TranslatedDrafter, request: Request, rule: VerificationRule) -> None:
        self._drafter = drafter
        self._rule = rule
        self._way = drafter.uses_tokens(request)
        self._sessions = {self._way: drafter.start_one_way(request, rule)}

    @property
    def model(self) -> Model:
        """See ``protocol.SteppedDraftSession``."""
        return self._sessions[self._way].model

    def restart(self, request: Request) -> None:
        """See ``protocol.DraftSession``."""
        self._way = self._drafter.uses_tokens(request)
        if self._way in self._sessions:
            self._sessions[self._way].restart(request)
        else:
            self._sessions[self._way] = self._drafter.start_one_way(request, self._rule)

    def read(self, token_ids: Sequence[int]) -> None:
        """See ``protocol.DraftSession``."""
        self._sessions[self._way].read(token_ids)

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``protocol.DraftSession``."""
        return self._sessions[self._way].draft(token_ids, max_tokens, wants_more)

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        """See ``protocol.SteppedDraftSession``."""
        return self._sessions[self._way].steps(token_ids, max_tokens, wants_more, until)

    def commit(self, verdict: Verdict) -> None:
        """See ``protocol.DraftSession``."""
        self._sessions[self._way].commit(verdict)
