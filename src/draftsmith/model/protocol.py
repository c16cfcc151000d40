"""What the rest of draftsmith knows of a model, whichever backend runs it.

Shape legend: T tokens in a run, R rows of logits asked for, V vocabulary entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = [
    "GREEDY",
    "CheckRun",
    "Checked",
    "DeviceModel",
    "DraftRun",
    "DraftingModel",
    "KVCache",
    "Logits",
    "Model",
    "RepeatableCache",
    "TokenChoice",
    "TokenRun",
    "UnseenDraft",
    "UnseenRun",
]

Logits = npt.NDArray[np.float32]


class KVCache(Protocol):
    """Keys and values of the tokens that a model has read in one sequence. Modified only by forward and truncate."""

    @property
    def length(self) -> int:
        """Tokens held."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all tokens from position ``length`` on. Needs 0 <= length <= self.length, else ValueError."""
        ...


@runtime_checkable
class RepeatableCache(KVCache, Protocol):
    """A cache that can be lengthened without a forward, for measurements."""

    def repeat(self, length: int) -> None:
        """Hold ``length`` tokens: those that are there, over and over. Needs whole blocks of them, else ValueError."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Tokens to append to one sequence. ``token_ids`` has T >= 1 ids; logits are wanted of the last ``num_logits``
    (0: of none).

    ``vocab_limit``: of these rows, only the first so many entries are wanted (None: all). A small draft model spends a
    third of its time on the logits of ids that hardly ever come; a drafter may do without them.
    """

    cache: KVCache
    token_ids: Sequence[int]
    num_logits: int = 1
    vocab_limit: int | None = None


class Model(Protocol):
    """A causal language model that appends runs of tokens to sequences and tells the logits that follow them."""

    @property
    def vocab_size(self) -> int:
        """V: the width of the rows of logits; it may exceed the tokenizer's vocabulary (padding)."""
        ...

    @property
    def max_context(self) -> int:
        """The largest number of tokens that a cache can hold."""
        ...

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """An empty cache for one sequence; ``capacity`` defaults to ``max_context`` (memory is taken as it fills).

        Raises OutOfMemory when it cannot fit, UsageError when capacity exceeds max_context.
        """
        ...

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """Append every run to its cache (all different) and return, for each run, float32 [R, vocab_limit or V].

        Row j of a run belongs to its token T - R + j and tells what follows that token. On the native backend the bits
        of a row depend on the checkpoint and the tokens before it alone. Raises ValueError when a run does not fit its
        cache or holds an id outside the vocabulary; then no cache has changed.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """How a draft token is chosen from a row of logits alone: names and meaning of ``SamplingParams``.

    Sampled tokens are drawn with the target's noise (``sampling.Noise``) for ``seed`` and ``position``, the place of
    the draft's first token in prompt and reply. What has next to no chance may be left out: a draft decides nothing.
    """

    greedy: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int


GREEDY = TokenChoice(greedy=True, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0)


@dataclass(frozen=True, slots=True)
class DraftRun:
    """A draft to be written in one call: append ``token_ids`` (at least one) to ``cache``, then draw and append.

    At most ``max_tokens`` >= 1 tokens are drawn, from the first ``vocab_limit`` entries of the logits where one is
    given. ``wants_more(confidence)`` is called for each of them, and answers whether another is wanted. The confidence
    is the token's probability: by the softmax of the row for a greedy choice, else as the options leave it.
    """

    cache: KVCache
    token_ids: Sequence[int]
    max_tokens: int
    choice: TokenChoice
    wants_more: Callable[[float], bool]
    vocab_limit: int | None = None


@runtime_checkable
class DraftingModel(Model, Protocol):
    """A model that can write whole drafts, faster than by one forward after the other."""

    def draft(self, runs: Sequence[DraftRun]) -> list[list[int]]:
        """The tokens drawn, run by run. The last one of each is not in its cache, all others are.

        Raises what ``forward`` raises; CheckpointError when logits are not finite numbers.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnseenRun:
    """A draft to be written where nobody sees it: append ``token_ids`` (at least one) to ``cache``, then choose and
    append.

    ``max_tokens`` >= 1 tokens are chosen, or fewer where the model does no more at once, from the first ``vocab_limit``
    entries of the logits (None: from all).
    """

    cache: KVCache
    token_ids: Sequence[int]
    max_tokens: int
    vocab_limit: int | None = None
    choice: TokenChoice = GREEDY


class UnseenDraft(Protocol):
    """Tokens that a model has chosen on its device and that the host has not asked for."""

    def __len__(self) -> int:
        """How many."""
        ...


@dataclass(frozen=True, slots=True)
class CheckRun:
    """Append ``token_ids`` (at least one) and the draft to ``cache``; wanted are the likeliest ids after the last of
    ``token_ids`` and after each of the draft's, or all their logits.
    """

    cache: KVCache
    token_ids: Sequence[int]
    draft: UnseenDraft
    wants_logits: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What was in a draft of k tokens, and what the model says to it.

    ``confidences`` are the draft model's probabilities of its tokens. ``choices`` has k + 1 ids, the lowest ones of
    equals; where logits were wanted, it is empty and ``logits`` are float32 [k + 1, V].
    """

    draft_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    choices: tuple[int, ...]
    logits: Logits | None = None


@runtime_checkable
class DeviceModel(DraftingModel, Protocol):
    """A model on a device that the host has to wait for. A round of drafting and checking can do with one wait."""

    @property
    def place(self) -> str | None:
        """What it writes unseen, every model of the same place can check. None: there is nothing to wait for."""
        ...

    def draft_unseen(self, runs: Sequence[UnseenRun]) -> list[UnseenDraft]:
        """Begin to write drafts, and do not wait for them. The last token of each is not in its cache, all others are.

        Raises what ``forward`` raises.
        """
        ...

    def check(self, runs: Sequence[CheckRun]) -> list[Checked]:
        """Append every run to its cache, all different, and wait once for what has become of all of them.

        Raises what ``forward`` raises; CheckpointError when logits, the draft's or its own, are not finite numbers.
        """
        ...
