"""The frozen values that travel through the system. No behaviour beyond checking themselves.

The way of a request: messages, prompt ids, Request, batch, Draft, target logits, Verdict, tokens, text (Completion).
Vocabulary and counters are those of vLLM: see ``docs/architecture.md``.

Shape legend: k draft tokens in a round, n tokens of text, V vocabulary entries, S entries with non-zero probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from draftsmith.errors import UsageError

__all__ = [
    "Completion",
    "Constraint",
    "Distribution",
    "Draft",
    "FinishReason",
    "Grammar",
    "GrammarKind",
    "LogitsProcessor",
    "Matcher",
    "Message",
    "Request",
    "SamplingParams",
    "SpeculationStats",
    "Timing",
    "TokenLogprobs",
    "ToolCall",
    "Verdict",
    "VerificationRule",
]

FinishReason = Literal["stop", "length"]
GrammarKind = Literal["json_schema", "regex", "grammar"]
VerificationRule = Literal["coupled", "rejection"]
LogitsProcessor = Callable[[Sequence[int], npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""``processor(token_ids, scores)``: prompt and reply so far, and float32 [V]; returns scores [V], which may be the same
array, changed. It must depend on its arguments alone, or a text depends on its drafts."""

MAX_SEED = 2**63 - 1
_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model asks to be done. ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``role`` is ``system``, ``user`` or ``assistant``; or ``tool`` (what a call gave),
    where the prompt format knows tools, and only there has an assistant's message ``tool_calls``.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Grammar:
    """The form that a whole reply has to have.

    ``kind`` says what ``source`` is: a JSON schema (draft 2020-12, as text; the reply is JSON on one line), a regular
    expression (of Rust's regex crate), or a context-free grammar (llguidance's kind of Lark, or llama.cpp's GBNF).
    """

    kind: GrammarKind
    source: str


class Matcher(Protocol):
    """A reply that is being held against a grammar. Once it has ended, everything is allowed."""

    def allowed(self, width: int) -> npt.NDArray[np.bool_] | None:
        """Which of the ids below ``width`` may come next; None: any. Not to be modified.

        Raises UsageError when the grammar turns out to be too complex.
        """
        ...

    def forced(self) -> Sequence[int]:
        """Tokens that must follow, as far as there is no choice."""
        ...

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """How many of ``token_ids`` may follow, one after the other."""
        ...

    def push(self, token_id: int) -> None:
        """One token more. It has to be allowed."""
        ...

    def pop(self) -> None:
        """Take the last token away again."""
        ...


class Constraint(Protocol):
    """A grammar that is ready for use with one vocabulary."""

    def start(self) -> Matcher:
        """For a reply that has not begun."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Names and meaning are those of ``transformers``' ``GenerationConfig``.

    Order of the processors: logit_bias, repetition, presence and frequency penalties, ``logits_processors`` in their
    order, grammar, temperature, top_k, top_p, min_p. Defaults are the model card's recommended values.

    ``seed`` None means: the engine draws one and reports it. ``greedy`` ignores temperature, top_k, top_p, min_p and
    seed; temperature 0 means greedy. ``stop`` strings end the text and are not part of it. ``logprobs`` is the number
    of most likely alternatives to report with every token, None for no report at all. ``grammar``: the form of the
    reply, which ends when it can only end there, or with an end-of-text token where it may.

    Raises UsageError on construction when a value is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 50  # 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # over prompt and reply; 1: off
    presence_penalty: float = 0.0  # over the reply; 0: off
    frequency_penalty: float = 0.0  # over the reply; 0: off
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    seed: int | None = None
    greedy: bool = False
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature == 0:
            object.__setattr__(self, "greedy", True)
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        checks = (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0 (1 is off)"),
            ("presence_penalty", self.presence_penalty, abs(self.presence_penalty) <= 2, "from -2 to 2"),
            ("frequency_penalty", self.frequency_penalty, abs(self.frequency_penalty) <= 2, "from -2 to 2"),
            ("seed", self.seed, self.seed is None or 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}"),
            ("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= 100, "from 0 to 100"),
        )
        for name, value, good, wanted in checks:
            if not good or (isinstance(value, float) and not math.isfinite(value)):
                raise UsageError(f"{name} is {value!r}; it must be {wanted}")
        for token_id, bias in self.logit_bias.items():
            if token_id < 0 or math.isnan(bias) or bias == math.inf:
                raise UsageError(f"logit_bias has {token_id}: {bias}; give token ids of 0 or more and finite values")
        if any(not text for text in self.stop):
            raise UsageError("stop holds an empty string; leave it out")
        if self.grammar is not None and self.ignore_eos:
            raise UsageError("ignore_eos and a grammar contradict each other; a reply ends where its grammar does")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation to do: the prompt's ids and how to sample. ``sampling.seed`` is set (never None) here.

    ``constraint`` is ``sampling.grammar``, ready for use; the two are there together, or ValueError is raised.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if (self.sampling.grammar is None) != (self.constraint is None):
            raise ValueError("a request with a grammar needs the constraint that was made of it, and no other has one")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A sparse probability distribution over the vocabulary.

    ``token_ids``: int64 [S], strictly increasing. ``probs``: float64 [S], positive, summing to 1. Every id that is not
    listed has probability 0.
    """

    token_ids: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draft:
    """What a drafter proposes for one round: k >= 0 tokens that may follow the text so far.

    ``distributions`` holds, for every draft token, the distribution that it was drawn from (the q of the papers); None
    when the drafter is deterministic, which counts as probability 1 for each draft token. ``confidences`` [k] are the
    drafter's own estimates that each token will be accepted, for the length policy; empty when it has none. ``free``:
    the tokens cost no forward of a model, as those that are copied; ``num_copied``: so many at the end do not, after
    others that were drawn. ``forced``: a grammar leaves no choice, so there is nothing to learn from the verdict.
    """

    token_ids: tuple[int, ...]
    distributions: tuple[Distribution, ...] | None = None
    confidences: tuple[float, ...] = ()
    free: bool = False
    forced: bool = False
    num_copied: int = 0

    @property
    def num_drawn(self) -> int:
        """How many tokens a model was asked for."""
        return 0 if self.free else len(self.token_ids) - self.num_copied


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target makes of a draft.

    ``token_ids`` are the ``num_accepted`` draft tokens that were kept and then exactly one bonus token, which is the
    target's own (its correction if a draft token was rejected). ``num_draft_tokens`` is the length of the draft.
    """

    token_ids: tuple[int, ...]
    num_accepted: int
    num_draft_tokens: int

    def __post_init__(self) -> None:
        if len(self.token_ids) != self.num_accepted + 1 or self.num_accepted > self.num_draft_tokens:
            raise ValueError(f"inconsistent verdict: {self}")


@dataclass(frozen=True, slots=True)
class SpeculationStats:
    """Counters with vLLM's names and definitions; tokens beyond the end of the text are not counted.

    ``num_drafts``: verification rounds that had a draft token. ``num_accepted_tokens_per_pos[i]``: rounds whose draft
    token i was accepted. ``drafter``: its name.
    """

    drafter: str
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_pos: tuple[int, ...] = ()

    @property
    def acceptance_rate(self) -> float:
        """Accepted draft tokens / draft tokens; 0 when there were none."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted draft tokens / rounds with a draft: the bonus token is included."""
        return 1.0 + (self.num_accepted_tokens / self.num_drafts if self.num_drafts else 0.0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock seconds. ``decode_s`` runs from the first token of the reply to the last; ``draft_s`` of it went into
    drafting (0 where texts are written together, which share it).
    """

    load_s: float
    prefill_s: float
    decode_s: float
    num_decoded: int  # tokens written during decode_s
    draft_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed, reading the prompt left out; 0 when no time passed."""
        return self.num_decoded / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural, of the raw logits, before any option) of one written token and of the most likely."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One finished reply. ``from_draft[i]`` says whether token i was a draft token that the target accepted."""

    text: str
    token_ids: tuple[int, ...]
    from_draft: tuple[bool, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    seed: int | None
    timing: Timing
    speculation: SpeculationStats | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
