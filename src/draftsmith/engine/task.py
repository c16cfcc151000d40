"""A request inside the batched engine: its text, its caches and its drafter's state."""

from __future__ import annotations

from collections.abc import Collection

from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.engine.pause import Pause
from draftsmith.model.protocol import Checked, CheckRun, KVCache, Logits, Model, TokenRun, UnseenDraft
from draftsmith.sampling import Noise, TextState, logprobs_of
from draftsmith.speculate import DraftSession, LengthPolicy, Round, token_limit, verify
from draftsmith.speculate.constrained import forced_draft, without_forbidden
from draftsmith.speculate.loop import as_round, record, said_by, target_distributions
from draftsmith.speculate.unseen import meeting_place, needs_logits, see
from draftsmith.types import Draft, Request, TokenLogprobs, Verdict, VerificationRule

__all__ = ["NO_DRAFT", "Task"]

NO_DRAFT = Draft(())


class Task:
    """The text so far is all that matters: cache and draft session can be dropped and made again at any time.

    ``number``: the order of arrival. ``ids``: prompt and reply. ``constrained``: whether a grammar may force tokens.
    ``drafts``: whether it may draft; ``session`` and ``policy`` are there then, from when they are needed.
    ``drafter_read``: about how many of ``ids`` the session has read. ``place``: where its drafts may be checked unseen,
    if anywhere. ``pause``: of asking it for drafts, from when it writes; none where their lengths are fixed.
    """

    def __init__(
        self,
        request: Request,
        options: RequestOptions,
        handle: Handle,
        *,
        drafts: bool,
        capacity: int,
        eos_ids: Collection[int],
        target: Model,
    ) -> None:
        """``capacity``: tokens that prompt and reply may have together.

        Raises UsageError for an empty prompt, PromptTooLong when there is no room for a reply.
        """
        self.number = 0
        self.request = request
        self.options = options
        self.handle = handle
        self.constrained = request.constraint is not None
        self.ids = list(request.prompt_ids)
        self.end = len(self.ids) + token_limit(request, capacity)
        self.session: DraftSession | None = None
        self.policy: LengthPolicy | None = None
        self.drafts = drafts
        self.drafter_read = 0
        self.pause: Pause | None = None
        self._cache: KVCache | None = None
        self._noise = Noise(request.sampling.seed or 0)
        self._text = TextState(request)
        self.place = meeting_place(target)
        self._needs_logits = needs_logits(request.sampling, self._text)
        self._ends = frozenset() if request.sampling.ignore_eos else frozenset(eos_ids)
        self._draft = NO_DRAFT
        self._unseen: UnseenDraft | None = None  # in place of the draft
        self._prompt_logprobs: list[TokenLogprobs] = []

    @property
    def cache(self) -> KVCache:
        """Holds a proper prefix of ``ids``. Raises RuntimeError while the task waits and has none."""
        if self._cache is None:
            raise RuntimeError("a task without a place has no cache")
        return self._cache

    @property
    def has_cache(self) -> bool:
        """Whether the task has a place."""
        return self._cache is not None

    def seat(self, cache: KVCache) -> None:
        """Give the task a place with ``cache``."""
        self._cache = cache

    @property
    def unread(self) -> int:
        """Tokens of the text that the cache lacks; 1 while the reply is being written."""
        return len(self.ids) - self.cache.length

    @property
    def writing(self) -> bool:
        """Whether the next round adds tokens for the price of one: prompt read, first token out."""
        return self.unread == 1 and len(self.ids) > len(self.request.prompt_ids)

    @property
    def scores_prompt(self) -> bool:
        """Whether the next tokens are read for the log-probabilities of the prompt, too."""
        if self.options.prompt_logprobs is None:
            return False
        return len(self._prompt_logprobs) < len(self.request.prompt_ids) - self.options.prompt_logprobs_from

    @property
    def sharable(self) -> int:
        """How many tokens of the text may come from a cache: logits are needed of those after them."""
        return self.options.prompt_logprobs_from - 1 if self.scores_prompt else len(self.ids) - 1

    @property
    def unscored(self) -> int:
        """Tokens to read before the first whose logits tell of the prompt."""
        return max(0, self.sharable - self.cache.length)

    @property
    def max_draft(self) -> int:
        """Draft tokens that can still be of use: the bonus token comes on top of them."""
        return self.end - len(self.ids) - 1

    @property
    def has_draft(self) -> bool:
        """Whether there is something to be checked in the next round."""
        return self._unseen is not None or bool(self._draft.token_ids)

    @property
    def is_unseen(self) -> bool:
        """Whether that is a draft that nobody has seen."""
        return self._unseen is not None

    @property
    def num_drawn(self) -> int:
        """Tokens of it that a model drew."""
        return self._draft.num_drawn

    def propose_unseen(self, draft: UnseenDraft) -> None:
        """Check ``draft`` in the next round."""
        self._unseen = draft

    def propose(self, draft: Draft) -> None:
        """Check ``draft`` in the next round, as far as the request's grammar allows it."""
        self._draft = without_forbidden(draft, self._text)

    def propose_forced(self) -> bool:
        """Check what must follow by the request's grammar, if anything must."""
        self._draft = forced_draft(self._text, self.max_draft) or NO_DRAFT
        return bool(self._draft.token_ids)

    def rows(self, count: int) -> int:
        """Rows of the forward that reads ``count`` tokens and checks the draft."""
        return count + len(self._draft.token_ids if self._unseen is None else self._unseen)

    def run(self, count: int) -> TokenRun:
        """Read the next ``count`` tokens of the text; with the last of them, the draft, and logits for all that."""
        begin, draft = self.cache.length, self._draft.token_ids
        scored = max(0, count - self.unscored) if self.scores_prompt else 0
        if begin + count < len(self.ids):
            return TokenRun(self.cache, self.ids[begin : begin + count], num_logits=scored)
        rows = max(scored, 1)
        return TokenRun(self.cache, [*self.ids[begin:], *draft], num_logits=len(draft) + rows)

    def check_run(self) -> CheckRun | None:
        """Read what is left of the text and check the unseen draft; None when there is none."""
        if self._unseen is None:
            return None
        return CheckRun(self.cache, self.ids[self.cache.length :], self._unseen, self._needs_logits)

    def advance(self, logits: Logits, rule: VerificationRule) -> Round | None:
        """One round of ``speculate.loop``, from logits to tokens: adds them to the text and settles caches and policy.

        None where the prompt is scored and not yet read to its end. Whatever is raised (unusable logits) leaves the
        task in doubt: it must not go on.
        """
        if self.scores_prompt:
            logits = self._score_prompt(logits)
            if self.scores_prompt or not len(logits):
                return None
        draft, self._draft = self._draft, NO_DRAFT
        distributions = target_distributions(logits, draft, self._text)
        return self._settle(draft, verify(draft, distributions, rule, self._noise, len(self.ids)), logits)

    def advance_unseen(self, checked: Checked, rule: VerificationRule) -> Round:
        """The same with the draft that nobody had seen."""
        self._unseen = None
        draft = see(checked, self.session, self.policy)
        distributions = said_by(checked, draft, self._text)
        verdict = verify(draft, distributions, rule, self._noise, len(self.ids))
        return self._settle(draft, verdict, checked.logits)

    def _settle(self, draft: Draft, verdict: Verdict, logits: Logits | None) -> Round:
        """Add the verdict to the text."""
        params, room = self.request.sampling, self.end - len(self.ids)
        written = as_round(verdict, self._ends, room=room, logits=logits, params=params)
        if self.options.round_filter is not None:
            written = self.options.round_filter(written)
        self.ids += written.token_ids
        self.cache.truncate(len(self.ids) - 1)
        if self.session is not None:
            self.session.commit(verdict)
        if self.policy is not None and not draft.forced:
            self.policy.learn(draft, verdict)
            if self.pause is not None and draft.token_ids and not verdict.num_accepted:
                self.pause.regret()
        if written.finish_reason is None:
            record(self._text, self.ids[len(self.request.prompt_ids) + self._text.reply_length :])
        return written

    def _score_prompt(self, logits: Logits) -> Logits:
        """Take the rows that tell of the prompt's own tokens, in order; what is left tells of the reply."""
        begin = self.options.prompt_logprobs_from + len(self._prompt_logprobs)
        told = self.request.prompt_ids[begin:][: len(logits)]
        top = self.options.prompt_logprobs or 0
        self._prompt_logprobs += [logprobs_of(row, i, top) for row, i in zip(logits, told, strict=False)]
        if not self.scores_prompt:
            self.handle.prompt_logprobs = tuple(self._prompt_logprobs)
        return logits[len(told) :]

    def drop(self) -> None:
        """Give up caches, session and draft; the text stays."""
        if self.scores_prompt:
            self._prompt_logprobs = []  # the prompt is read again from its beginning
        self._cache = self.session = None
        self.drafter_read = 0
        self._draft = NO_DRAFT
        self._unseen = None
