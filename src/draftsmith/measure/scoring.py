"""The log-probabilities of given texts, many at a time, by the batched engine, which reads once what they share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from draftsmith.engine import LLM, Engine, EngineLimits, Handle, RequestOptions
from draftsmith.errors import UsageError
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.types import Request, SamplingParams

__all__ = ["Scored", "Scorer", "rolling_windows"]

Ids = tuple[int, ...]
_AT_ONCE = 64  # in the engine's queue
_ONE_TOKEN = SamplingParams(greedy=True, max_new_tokens=1, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Scored:
    """``logprob``: natural, of all tokens of the continuation; ``greedy``: whether each was the likeliest."""

    logprob: float
    greedy: bool


class Scorer:
    """Scores continuations with the target of an ``LLM``. Drafts have nothing to do with it."""

    def __init__(self, llm: LLM) -> None:
        self._model = llm.target.model
        self._name = llm.name

    @property
    def max_tokens(self) -> int:
        """Tokens of context and continuation together; longer contexts lose their beginning."""
        return self._model.max_context - 1

    def score(self, pairs: Sequence[tuple[Ids, Ids]], report: Report = tell_nobody) -> list[Scored]:
        """ln p(continuation | context) of each pair, in order. A context has at least one token.

        Raises UsageError for a context without tokens, and for a continuation that leaves no room for any.
        """
        texts = [self._cut(*pair) for pair in pairs]
        order = sorted(range(len(texts)), key=lambda i: texts[i][0])  # those that begin alike follow each other
        found: dict[int, Scored] = {}
        engine = Engine(self._model, limits=EngineLimits(max_waiting=sys.maxsize))
        for begin in range(0, len(order), _AT_ONCE):
            report(begin, len(order), "scoring")
            part = order[begin : begin + _AT_ONCE]
            handles = {i: self._submit(engine, *texts[i]) for i in part if texts[i][1] < len(texts[i][0])}
            while not engine.idle:
                engine.step()
            for i in part:
                found[i] = _scored(handles[i]) if i in handles else Scored(0.0, True)
        return [found[i] for i in range(len(texts))]

    def _cut(self, context: Ids, continuation: Ids) -> tuple[Ids, int]:
        """The text as it is read, and where its continuation begins."""
        if not context:
            raise UsageError("a context to score after has no token; give at least one, the beginning of the text")
        room = self.max_tokens - len(continuation)
        if room < 1:
            raise UsageError(
                f"a continuation has {len(continuation)} tokens, and {self._name} has room for {self.max_tokens} with "
                "its context; score shorter texts"
            )
        kept = context[-room:]
        return (*kept, *continuation), len(kept)

    def _submit(self, engine: Engine, text: Ids, begin: int) -> Handle:
        options = RequestOptions(draft=False, prompt_logprobs=1, prompt_logprobs_from=begin)
        return engine.submit(Request(prompt_ids=text, sampling=_ONE_TOKEN), options)


def _scored(handle: Handle) -> Scored:
    if handle.error is not None:
        raise handle.error
    told = handle.prompt_logprobs
    return Scored(sum(one.logprob for one in told), all(one.top[0][0] == one.token_id for one in told))


def rolling_windows(token_ids: Sequence[int], first: int, longest: int) -> list[tuple[Ids, Ids]]:
    """Pairs for ``Scorer.score`` in which every token is predicted once, after as many before it as fit.

    The first is predicted after ``first``, the beginning of the text. ``longest``: tokens of a window, at least 2.
    """
    size = longest - 1
    windows: list[tuple[Ids, Ids]] = []
    for begin in range(0, len(token_ids), size):
        end = min(begin + size, len(token_ids))
        before = (first,) if begin == 0 else tuple(token_ids[max(0, end - longest) : begin])
        windows.append((before, tuple(token_ids[begin:end])))
    return windows
