"""A draft model as a drafter."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from draftsmith.model.protocol import (
    DeviceModel,
    DraftingModel,
    DraftRun,
    Model,
    TokenChoice,
    TokenRun,
    UnseenDraft,
    UnseenRun,
)
from draftsmith.optional import fulfils
from draftsmith.sampling import Noise, NoiseSource, TextState, probability_of
from draftsmith.speculate.drafters.protocol import DraftSteps, Until, WantsMore
from draftsmith.types import Distribution, Draft, Request, Verdict, VerificationRule

__all__ = ["ModelDraftSession", "ModelDrafter", "common_prefix", "common_vocabulary", "drafting", "drive", "softmax_at"]

LARGE_VOCABULARY = 65_536
COMMON_IDS = 49_152
RECENT = 64  # tokens of the text that tell whether it keeps to the common part of the vocabulary ...
MANY_RARE = 0.1  # ... and the share of others from which on it does not
LATER = 2  # tokens that an unseen draft is longer than the last one, if that could have gone on


class ModelDrafter:
    """Drafts with a smaller model of the same vocabulary (else see ``TranslatedDrafter``).

    ``target_vocab_size`` is the width of the target's logits: ids that the target cannot write are never drafted.
    """

    def __init__(self, model: Model, *, target_vocab_size: int, name: str = "model") -> None:
        self._model = model
        self._name = name
        self._vocab_size = min(model.vocab_size, target_vocab_size)

    @property
    def name(self) -> str:
        """As it appears in statistics."""
        return self._name

    def start(self, request: Request, rule: VerificationRule) -> ModelDraftSession:
        """A session with an empty cache of its own."""
        return ModelDraftSession(self._model, self._vocab_size, request, rule, Noise(request.sampling.seed or 0))


class ModelDraftSession:
    """One text's cache of the draft model. Between calls it holds a prefix of the text and nothing else.

    Draft tokens are drawn as the target would draw them, with all sampling options: with the target's noise under the
    coupled rule, with noise of their own under the rejection rule (else p and q would not be independent, and the rule
    would not be lossless). Confidence is the probability that the draft gave its token: the processed one, or for
    greedy drafts the softmax of the raw logits.
    """

    def __init__(
        self, model: Model, vocab_size: int, request: Request, rule: VerificationRule, noise: NoiseSource
    ) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._rule = rule
        self._noise = noise
        self._cache = model.new_cache()
        self._held: list[int] = []  # the ids in the cache
        self._pending: list[int] = []  # draft tokens that await their verdict; all but the last may be in the cache
        self._ahead = 0  # tokens of an unseen draft; none before a draft of this text has been seen
        self._unseen: list[int] = []  # text that the model reads at its beginning
        self._begin(request)

    def restart(self, request: Request) -> None:
        """Begin another text with the cache of the last one, as far as the prompts agree."""
        self._noise = Noise(request.sampling.seed or 0)
        self._begin(request)
        self._keep(min(common_prefix(self._held, request.prompt_ids), len(request.prompt_ids) - 1))

    def read(self, token_ids: Sequence[int]) -> None:
        """Take in the text up to its last token, which the first draft step reads."""
        if self._can_read(token_ids) and len(token_ids) - 1 > len(self._held):
            unread = token_ids[len(self._held) : -1]
            self._model.forward([TokenRun(self._cache, unread, num_logits=0)])
            self._held += unread

    @property
    def model(self) -> Model:
        """What the runs of ``steps`` are for."""
        return self._model

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``protocol.DraftSession.draft``. Unread text and the first step are one forward."""
        return drive(self._model, self.steps(token_ids, max_tokens, wants_more))

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        """See ``protocol.SteppedDraftSession.steps``."""
        self._pending = []
        room = self._room(token_ids, max_tokens, wants_more)
        if room < 1:
            return Draft(())
        self._catch_up_history(token_ids)
        limit = self._vocab_limit(token_ids)
        if not self._text.allows_any(limit):
            return Draft(())
        if self._draws_from_rows_alone:
            if until is None:
                return (yield from self._in_one_call(token_ids, room, limit, wants_more))
            return (yield from self._watched(token_ids, room, limit, wants_more, until))
        return (yield from self._token_by_token(token_ids, room, limit, wants_more, until))

    def draft_unseen(
        self, place: str, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore
    ) -> UnseenDraft | None:
        """See ``protocol.UnseenDraftSession``."""
        model, self._pending = self._model, []
        if not (self._ahead and self._draws_from_rows_alone):
            return None
        if not fulfils(model, DeviceModel) or model.place != place:
            return None
        room = min(self._ahead, self._room(token_ids, max_tokens, wants_more))
        if room < 1:
            return None
        self._catch_up_history(token_ids)
        self._unseen = [*token_ids[len(self._held) :]]
        limit = min(self._vocab_limit(token_ids), self._vocab_size)
        run = UnseenRun(self._cache, self._unseen, room, limit, self._choice(len(token_ids)))
        [draft] = model.draft_unseen([run])
        return draft

    def see(self, draft: Draft, wants_more: WantsMore) -> None:
        """See ``protocol.UnseenDraftSession``."""
        self._pending = list(draft.token_ids)
        self._held += [*self._unseen, *self._pending[:-1]]
        for token_id in self._pending:
            self._text.push(token_id)
        length, confidences = len(self._pending), draft.confidences
        enough = (i for i in range(1, length + 1) if not wants_more(confidences[:i], None))
        self._ahead = next(enough, length + LATER)

    def _in_one_call(self, token_ids: Sequence[int], room: int, limit: int, wants_more: WantsMore) -> DraftSteps:
        confidences: list[float] = []

        def wants_another(confidence: float) -> bool:
            confidences.append(confidence)
            return len(confidences) < room and wants_more(confidences, None)

        self._pending = yield from self._call(token_ids[len(self._held) :], room, limit, len(token_ids), wants_another)
        self._ahead = len(self._pending)
        return Draft(tuple(self._pending), None, tuple(confidences))

    def _watched(
        self, token_ids: Sequence[int], room: int, limit: int, wants_more: WantsMore, until: Until
    ) -> DraftSteps:
        """The same with a call for every token, so that ``until`` can be asked after each."""
        drawn, confidences = self._pending, list[float]()

        def no_more(confidence: float) -> bool:
            confidences.append(confidence)
            return False

        while not drawn or (len(drawn) < room and not until(drawn, confidences) and wants_more(confidences, None)):
            unread = drawn[-1:] or token_ids[len(self._held) :]
            position = len(token_ids) + len(drawn)
            drawn += yield from self._call(unread, 1, limit, position, no_more)
        return Draft(tuple(drawn), None, tuple(confidences))

    def _call(
        self, unread: Sequence[int], room: int, limit: int, position: int, wants_another: Callable[[float], bool]
    ) -> Generator[DraftRun, list[int], list[int]]:
        """Let the model read and draw, and keep account of it. Returns the tokens drawn."""
        choice = self._choice(position)
        try:
            drawn = yield DraftRun(self._cache, unread, room, choice, wants_another, min(limit, self._vocab_size))
        except BaseException:  # the call went wrong somewhere on its way
            self._keep(len(self._held))
            raise
        self._held += [*unread, *drawn[:-1]]
        for token_id in drawn:
            self._text.push(token_id)
        return drawn

    def _choice(self, position: int) -> TokenChoice:
        """How the model chooses by itself."""
        params = self._params
        return TokenChoice(
            greedy=params.greedy,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed or 0,
            position=position,
        )

    def _token_by_token(
        self, token_ids: Sequence[int], room: int, limit: int, wants_more: WantsMore, until: Until | None
    ) -> DraftSteps:
        """The same where the distribution has to be known (rejection) or depends on the text (penalties, grammars)."""
        drawn = self._pending
        distributions: list[Distribution] = []
        confidences: list[float] = []
        unread = token_ids[len(self._held) :]
        while not drawn or (len(drawn) < room and self._text.allows_any(limit) and wants_more(confidences, None)):
            run = TokenRun(self._cache, unread if not drawn else drawn[-1:], vocab_limit=limit)
            logits = (yield run)[0, : self._vocab_size]
            self._held += run.token_ids
            q = self._text.distribution(logits)
            drawn.append(self._draw(q, len(token_ids) + len(drawn), len(token_ids)))
            distributions.append(q)
            confidences.append(softmax_at(logits, drawn[-1]) if self._params.greedy else probability_of(q, drawn[-1]))
            self._text.push(drawn[-1])
            if until is not None and until(drawn, confidences):
                break
        sampled = self._rule == "rejection" and not self._params.greedy
        return Draft(tuple(drawn), tuple(distributions) if sampled else None, tuple(confidences))

    def commit(self, verdict: Verdict) -> None:
        """Drop the rejected tokens from cache and history."""
        rejected = len(self._pending) - verdict.num_accepted
        if self._pending and rejected > 0:
            text = len(self._held) - (len(self._pending) - 1)  # the last draft token was never read
            self._keep(min(len(self._held), text + verdict.num_accepted))
            for _ in range(rejected):
                self._text.pop()
        self._pending = []

    def _begin(self, request: Request) -> None:
        self._params = request.sampling
        self._num_prompt = len(request.prompt_ids)
        self._text = TextState(request, drafting=True)
        self._pending = []
        self._ahead = 0
        # The model may draw by itself where it would draw the same: no history to heed, no distribution to hand in.
        self._draws_from_rows_alone = (
            isinstance(self._model, DraftingModel)
            and isinstance(self._noise, Noise)
            and self._text.rows_suffice
            and (self._params.greedy or self._rule == "coupled")
        )

    def _room(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> int:
        """How many tokens may be drafted; less than 1 where none is wanted. The cache holds what ``_held`` says."""
        if self._cache.length > len(self._held):  # an unseen draft went wrong
            self._cache.truncate(len(self._held))
        room = min(max_tokens, self._cache.capacity - len(token_ids) + 1)
        return room if room > 0 and wants_more([], None) and self._can_read(token_ids) else 0

    def _can_read(self, token_ids: Sequence[int]) -> bool:
        """Whether the text fits this model: its context, and its vocabulary where the target's is wider."""
        unread = token_ids[len(self._held) :]
        return len(token_ids) <= self._cache.capacity and (not unread or max(unread) < self._model.vocab_size)

    def _catch_up_history(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids[self._num_prompt + self._text.reply_length :]:
            self._text.push(token_id)

    def _draw(self, q: Distribution, position: int, round_start: int) -> int:
        if self._rule == "rejection":
            return self._noise.sample_draft(q, position, round_start)
        return self._noise.sample(q, position)

    def _vocab_limit(self, token_ids: Sequence[int]) -> int:
        """How much of the vocabulary to draft from: all of it where the text at hand leaves the common part."""
        common = common_vocabulary(self._vocab_size)
        rare = sum(token_id >= common for token_id in token_ids[-RECENT:])
        return self._vocab_size if rare > RECENT * MANY_RARE else common

    def _keep(self, length: int) -> None:
        self._cache.truncate(length)
        del self._held[length:]


def common_vocabulary(vocab_size: int) -> int:
    """How many of the first ids make up nearly all of a text, where the vocabulary is large.

    Byte-pair merges are learned, and numbered, from the most frequent on: of Qwen2.5's 151,936 ids the first 49,152 are
    95 to 98 % of English text, code and mathematics. A small draft model spends a third of its time on the others.
    """
    return vocab_size if vocab_size <= LARGE_VOCABULARY else max(COMMON_IDS, vocab_size // 3)


def drive(model: Model, steps: DraftSteps) -> Draft:
    """Run ``steps`` (``protocol.SteppedDraftSession``) to the end."""
    answer: object = None
    while True:
        try:
            wanted = steps.send(answer)
        except StopIteration as drafted:
            draft: Draft = drafted.value
            return draft
        if isinstance(wanted, TokenRun):
            [answer] = model.forward([wanted])
        else:
            [answer] = drafting(model).draft([wanted])


def drafting(model: Model) -> DraftingModel:
    """``model``, which a DraftRun was asked of."""
    if not fulfils(model, DraftingModel):
        raise TypeError(f"{type(model).__name__} cannot write drafts by itself")
    return model


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of leading tokens that ``a`` and ``b`` share."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def softmax_at(logits: npt.NDArray[np.float32], token_id: int) -> float:
    """softmax(logits)[token_id], in float32: good enough for a confidence."""
    return float(1.0 / np.exp(logits - logits[token_id]).sum())
