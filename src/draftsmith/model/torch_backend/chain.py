"""Draft tokens chosen on the device: each one feeds the next step there, and all of them come to the host together.

A small model's step takes a GPU about a millisecond. To wait for its logits, choose on the host and send the choice
back takes a good part of that again, and the GPU idles meanwhile. Here the host only says "once more".

Shape legend: V entries of a row of logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from draftsmith.model.protocol import TokenChoice
from draftsmith.model.torch_backend import transfer
from draftsmith.model.torch_backend.replay import Replay
from draftsmith.model.torch_backend.steps import Slab, Step

__all__ = ["MOST", "CacheChain", "Chain", "Chosen", "SlabChain", "likeliest"]

MOST = 64  # tokens of a chain; longer drafts are several


def likeliest(rows: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows [..., V] the place of the largest logit, the lowest of equals, and that logit. ``ids`` counts to V.

    Rows that are no numbers give the last place, and no number.
    """
    best = rows.amax(-1)
    return torch.where(rows == best[..., None], ids, len(ids) - 1).amin(-1), best


class Chosen:
    """Ids with their probabilities, on the device until they are fetched: the likeliest, the lowest of equals."""

    def __init__(self, device: torch.device, limit: int) -> None:
        """``limit``: only the first so many entries of rows are looked at."""
        self.next_id = torch.zeros((1, 1), dtype=torch.int64, device=device)
        self._limit = limit
        self._ids = torch.arange(limit, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._taken = torch.zeros((2, MOST), dtype=torch.float32, device=device)  # ids are exact below 2**24

    def restart(self, choice: TokenChoice) -> None:
        """Begin a chain."""
        del choice
        self._slot.zero_()

    def take(self, row: torch.Tensor) -> None:
        """Choose from ``row`` [V]. Rows that are no numbers give some id, and no number as its probability."""
        token_id, probability = self._choose(row[: self._limit].float())
        self.next_id.copy_(token_id.view(1, 1))
        self._taken.index_copy_(1, self._slot, torch.stack((token_id.float(), probability)).view(2, 1))
        self._slot.add_(1)

    def _choose(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """An id and its probability; ``row`` is float32 and as long as is looked at."""
        token_id, best = likeliest(row, self._ids)
        return token_id, 1.0 / (row - best).exp().sum()

    def taken(self, count: int) -> torch.Tensor:
        """[2, count], of float32: the first ids of the chain and their probabilities, until the next chain begins."""
        return self._taken[:, :count]

    def fetch(self, count: int) -> tuple[list[int], list[float]]:
        """The same on the host, in one transfer."""
        ids, probabilities = transfer.fetch(self.taken(count))
        return [int(token_id) for token_id in ids], probabilities.tolist()


class Chain(Protocol):
    """Steps of one token on some cache. Nothing here waits for the device but ``chosen.fetch``."""

    @property
    def chosen(self) -> Chosen:
        """What was drawn so far."""
        ...

    def start(self, row: torch.Tensor, begin: int, choice: TokenChoice) -> None:
        """Begin with an id chosen from ``row`` [V]; the next step reads it at position ``begin`` of the cache."""
        ...

    def advance(self) -> None:
        """Read the id that was chosen last, and choose the next one."""
        ...


class SlabChain:
    """A chain on a slab: one graph on a GPU."""

    def __init__(self, slab: Slab, chosen: Chosen) -> None:
        self.chosen = chosen
        self._step = Step(slab.module, slab.buffers, 1, slab.device, ids=self.chosen.next_id)
        self._replay = Replay(self._advance, slab.device)

    @classmethod
    def on(cls, slab: Slab, limit: int, kind: type[Chosen]) -> SlabChain:
        """The slab's chain of that kind for the first ``limit`` entries of the vocabulary."""
        key = (limit, kind)
        if key not in slab.chains:
            slab.chains[key] = cls(slab, kind(slab.device, limit))
        chain: SlabChain = slab.chains[key]
        return chain

    def start(self, row: torch.Tensor, begin: int, choice: TokenChoice) -> None:
        """See ``Chain``."""
        self.chosen.restart(choice)
        self.chosen.take(row)
        self._step.cursor.fill_(begin)

    def advance(self) -> None:
        """See ``Chain``."""
        self._replay()

    def _advance(self) -> None:
        self.chosen.take(self._step.forward()[-1])
        self._step.cursor.add_(1)


class CacheChain:
    """A chain on any cache, by plain calls of the model."""

    def __init__(self, module: Any, states: Any, chosen: Chosen, options: Mapping[str, Any]) -> None:
        """``states``: the cache as the model takes it. ``options``: what else the model is called with."""
        self.chosen = chosen
        self._module, self._states, self._options = module, states, options

    def start(self, row: torch.Tensor, begin: int, choice: TokenChoice) -> None:
        """See ``Chain``; the cache knows the position."""
        del begin
        self.chosen.restart(choice)
        self.chosen.take(row)

    def advance(self) -> None:
        """See ``Chain``."""
        given = self.chosen.next_id
        output = self._module(input_ids=given, past_key_values=self._states, use_cache=True, **self._options)
        self.chosen.take(output.logits[0, -1])
