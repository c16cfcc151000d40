"""The reference loop: speculative decoding of one text, as in the papers. It is the oracle for faster engines.

Plain decoding is the same loop without a drafter: every round is then one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from draftsmith.errors import PromptTooLong, UsageError
from draftsmith.model.protocol import Checked, CheckRun, KVCache, Logits, Model, TokenRun, UnseenDraft
from draftsmith.optional import fulfils
from draftsmith.sampling import Noise, TextState, logprobs_of, point
from draftsmith.speculate.constrained import forced_draft, without_forbidden
from draftsmith.speculate.drafters.protocol import DraftSession, UnseenDraftSession
from draftsmith.speculate.policy import FixedLength, LengthPolicy, begin_text
from draftsmith.speculate.unseen import meeting_place, needs_logits, on_device, see
from draftsmith.speculate.verify import verify
from draftsmith.types import (
    Distribution,
    Draft,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprobs,
    Verdict,
    VerificationRule,
)

__all__ = [
    "Round",
    "RoundTimes",
    "as_round",
    "generate",
    "record",
    "said_by",
    "target_distributions",
    "token_limit",
]

PROMPT_PART = 512  # tokens read between two reports of progress
_NO_DRAFT = Draft(())


@dataclass(frozen=True, slots=True)
class Round:
    """What one round wrote: ``num_accepted`` draft tokens and, unless the text ended before it, the bonus token.

    ``num_draft_tokens`` counts those that were proposed within the text. ``logprobs`` has one entry a token, or none.
    """

    token_ids: tuple[int, ...]
    num_accepted: int
    num_draft_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()

    def cut(self, length: int, finish_reason: FinishReason) -> Round:
        """The same round when the text ends after its first ``length`` tokens."""
        return replace(
            self,
            token_ids=self.token_ids[:length],
            num_accepted=min(self.num_accepted, length),
            num_draft_tokens=min(self.num_draft_tokens, length),
            finish_reason=finish_reason,
            logprobs=self.logprobs[:length],
        )


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """What a round took: seconds of drafting, a model drawing ``num_drawn`` tokens, and of checking all.

    ``context``: tokens that were there before it. ``apart``: the two were waited for one by one; else most of what
    drafting took is in ``check_s``.
    """

    num_draft_tokens: int
    num_drawn: int
    draft_s: float
    check_s: float
    apart: bool = True
    context: int = 0


def generate(
    model: Model,
    cache: KVCache,
    request: Request,
    *,
    eos_ids: Collection[int] = (),
    session: DraftSession | None = None,
    policy: LengthPolicy | None = None,
    rule: VerificationRule = "coupled",
    on_round: Callable[[RoundTimes], object] | None = None,
    on_prompt: Callable[[int, int], object] | None = None,
) -> Iterator[Round]:
    """Write the reply to ``request``, one Round at a time; the last one has a finish_reason.

    ``cache`` holds nothing, or the keys and values of a proper prefix of the prompt; it is modified. After every round
    it holds prompt and reply except the last token, also when the caller stops early. ``session`` is that of a drafter,
    started with the same request and rule; without one, decoding is plain. EOS is part of the reply. ``on_round`` is
    told what each round after the first took. ``on_prompt(read, all)`` counts the prompt's tokens while they are read.

    Raises UsageError for an empty prompt, PromptTooLong when the context has no room for a token of reply.
    """
    params, noise, policy = request.sampling, Noise(request.sampling.seed or 0), policy or FixedLength(4)
    ids, end = list(request.prompt_ids), len(request.prompt_ids) + token_limit(request, cache.capacity)
    text = TextState(request)
    ends = frozenset() if params.ignore_eos else frozenset(eos_ids)
    if on_prompt is not None:
        _read_in_parts(model, cache, ids, on_prompt)
    place, wants_logits = meeting_place(model), needs_logits(params, text)
    proposed: Draft | UnseenDraft = _NO_DRAFT  # the first round reads the prompt and writes one token
    draft_s = 0.0
    while True:
        start, began = len(ids), time.perf_counter()
        logits: Logits | None = None
        if isinstance(proposed, Draft):
            draft = proposed
            run = TokenRun(cache, [*ids[cache.length :], *draft.token_ids], num_logits=len(draft.token_ids) + 1)
            [logits] = model.forward([run])
            distributions = target_distributions(logits, draft, text)
        else:
            [checked] = on_device(model).check([CheckRun(cache, ids[cache.length :], proposed, wants_logits)])
            draft, logits = see(checked, session, policy), checked.logits
            distributions = said_by(checked, draft, text)
        verdict = verify(draft, distributions, rule, noise, start)
        finished = as_round(verdict, ends, room=end - start, logits=logits, params=params)
        ids += finished.token_ids
        cache.truncate(len(ids) - 1)
        if session:
            session.commit(verdict)
            if not draft.forced:
                policy.learn(draft, verdict)
        record(text, ids[len(request.prompt_ids) + text.reply_length :])
        if start > len(request.prompt_ids):
            if on_round:
                elapsed, apart = time.perf_counter() - began, draft is proposed
                on_round(RoundTimes(len(draft.token_ids), draft.num_drawn, draft_s, elapsed, apart, start))
        elif session and begin_text(policy, unread=start, left=end - len(ids)):
            session.read(ids)  # the prompt, as part of prefill
        yield finished
        if finished.finish_reason:
            return
        if session:
            began = time.perf_counter()
            proposed = _propose(session, ids, end - len(ids) - 1, policy, text, place)
            draft_s = time.perf_counter() - began


def _propose(
    session: DraftSession, ids: Sequence[int], room: int, policy: LengthPolicy, text: TextState, place: str | None
) -> Draft | UnseenDraft:
    """What the next round checks. ``place``: see ``meeting_place``."""
    if place is not None and fulfils(session, UnseenDraftSession):
        unseen = session.draft_unseen(place, ids, room, policy.wants_more)
        if unseen is not None:
            return unseen
    draft = forced_draft(text, room) or session.draft(ids, room, policy.wants_more)
    return without_forbidden(draft, text)


def _read_in_parts(model: Model, cache: KVCache, ids: Sequence[int], on_prompt: Callable[[int, int], object]) -> None:
    """Append all but the last part of the prompt to the cache, and say how far it is."""
    while len(ids) - cache.length > PROMPT_PART:
        model.forward([TokenRun(cache, ids[cache.length : cache.length + PROMPT_PART], num_logits=0)])
        on_prompt(cache.length, len(ids))


def token_limit(request: Request, capacity: int) -> int:
    """How many tokens of reply ``request`` may have when prompt and reply share a context of ``capacity`` tokens."""
    length = len(request.prompt_ids)
    if length == 0:
        raise UsageError("The prompt is empty; give at least one token")
    if length >= capacity:
        raise PromptTooLong(
            f"The prompt has {length} tokens, but the context holds {capacity} with the reply; shorten the prompt"
        )
    return min(request.sampling.max_new_tokens, capacity - length)


def target_distributions(logits: npt.NDArray[np.float32], draft: Draft, text: TextState) -> Iterator[Distribution]:
    """The target's distribution row by row. Asking for the next row means that the draft token before it was kept."""
    yield text.distribution(logits[0])
    for row, token_id in zip(logits[1:], draft.token_ids, strict=True):
        text.push(token_id)
        yield text.distribution(row)


def said_by(checked: Checked, draft: Draft, text: TextState) -> Iterator[Distribution]:
    """The same of a target that was asked for its choices, and is certain of them, or for its logits."""
    if checked.logits is None:
        return map(point, checked.choices)
    return target_distributions(checked.logits, draft, text)


def as_round(
    verdict: Verdict, ends: Collection[int], room: int, logits: Logits | None, params: SamplingParams
) -> Round:
    """The verdict as far as it is part of the text, which ends with a token of ``ends`` or after ``room`` more.

    ``logits`` are needed where ``params`` want log-probabilities.
    """
    tokens, top = verdict.token_ids, params.logprobs
    logprobs: tuple[TokenLogprobs, ...] = ()
    if top is not None and logits is not None:
        logprobs = tuple(logprobs_of(logits[i], tokens[i], top) for i in range(len(tokens)))
    whole = Round(tokens, verdict.num_accepted, verdict.num_draft_tokens, None, logprobs)
    for i, token_id in enumerate(tokens):
        if token_id in ends:
            return whole.cut(i + 1, "stop")
    return whole.cut(room, "length") if len(tokens) >= room else whole


def record(text: TextState, token_ids: Sequence[int]) -> None:
    """Take in tokens of the reply that ``text`` has not seen."""
    for token_id in token_ids:
        text.push(token_id)
