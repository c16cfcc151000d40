"""Whole drafts in one call (``protocol.DraftingModel``): on a GPU there, on a processor with the host's noise.

On a GPU a draft is written ahead: as many tokens as the text's last draft had are chosen before the host looks at any,
in one transfer of ids and probabilities; what turns out not to be wanted is forgotten. So with a fixed length a draft
waits for the device once. On a processor, where looking costs nothing, no token is written ahead.

There, sampled drafts bring a row of logits for each token to the code that also draws the target's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import numpy as np

from draftsmith.errors import CheckpointError
from draftsmith.model.protocol import DraftRun, Logits, TokenChoice
from draftsmith.model.torch_backend.cache import TorchCache
from draftsmith.model.torch_backend.chain import MOST
from draftsmith.sampling import Noise, probability_of, process
from draftsmith.types import SamplingParams

__all__ = ["Writer", "write_draft"]

LATER = 2  # tokens that are written ahead once a draft has become longer than the last one


class Writer(Protocol):
    """What is needed of the model. ``limit``: of each row, the first so many entries are looked at."""

    @property
    def writes_ahead(self) -> bool:
        """Whether tokens are chosen on the device before the host has seen those before them."""
        ...

    def chain(
        self, ids: list[int], cache: TorchCache, count: int, limit: int, choice: TokenChoice
    ) -> tuple[list[int], list[float]]:
        """Read ``ids``, choose ``count`` tokens; they, and their probabilities. All but the last are read."""
        ...

    def row(self, ids: list[int], cache: TorchCache, limit: int) -> Logits:
        """Read ``ids``; float32 [limit], what follows them."""
        ...


def write_draft(model: Writer, run: DraftRun, cache: TorchCache, limit: int) -> list[int]:
    """See ``protocol.DraftingModel``. Raises CheckpointError when logits are not finite numbers."""
    end = cache.length + len(run.token_ids)
    on_device = run.choice.greedy or model.writes_ahead
    drawn = _on_device(model, run, cache, limit) if on_device else _sampled(model, run, cache, limit)
    cache.truncate(end + len(drawn) - 1)
    cache.draft_length = len(drawn)
    return drawn


def _on_device(model: Writer, run: DraftRun, cache: TorchCache, limit: int) -> list[int]:
    drawn: list[int] = []
    ids, ahead = list(run.token_ids), cache.draft_length
    while True:
        room = run.max_tokens - len(drawn)
        count = min(ahead, room, MOST) if model.writes_ahead else 1
        choice = replace(run.choice, position=run.choice.position + len(drawn))
        for token_id, probability in zip(*model.chain(ids, cache, count, limit, choice), strict=True):
            if not math.isfinite(probability):
                raise _damaged()
            drawn.append(token_id)
            if not run.wants_more(probability) or len(drawn) == run.max_tokens:
                return drawn
        ids, ahead = drawn[-1:], LATER


def _sampled(model: Writer, run: DraftRun, cache: TorchCache, limit: int) -> list[int]:
    noise, params = Noise(run.choice.seed), _params(run.choice)
    drawn: list[int] = []
    ids = list(run.token_ids)
    while True:
        row = model.row(ids, cache, limit)
        if not np.isfinite(row.max()):
            raise _damaged()
        q = process(row, params)
        drawn.append(noise.sample(q, run.choice.position + len(drawn)))
        if not run.wants_more(probability_of(q, drawn[-1])) or len(drawn) == run.max_tokens:
            return drawn
        ids = drawn[-1:]


def _params(choice: TokenChoice) -> SamplingParams:
    return SamplingParams(
        temperature=choice.temperature, top_k=choice.top_k, top_p=choice.top_p, min_p=choice.min_p, seed=choice.seed
    )


def _damaged() -> CheckpointError:
    return CheckpointError(
        "The draft model's logits are not finite numbers; its files may be damaged, so fetch them again"
    )
