"""Sampled draft tokens, chosen on the device with the noise that they share with the target (``sampling.Noise``).

The noise is made of integers, so the device has the host's bits; distributions are computed on it in float64 like the
host's, but of the likeliest ids alone. Where the two differ after all, a draft token is another one: that costs its
acceptance and nothing else, since the target draws on the host.

Shape legend: V entries of a row of logits, S ids that are looked at.
"""

from __future__ import annotations

import torch

from draftsmith.model.protocol import TokenChoice
from draftsmith.model.torch_backend.chain import Chosen

__all__ = ["MOST_IDS", "Sampled", "uniforms"]

MOST_IDS = 512  # of a row; the others have next to no chance
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of Philox4x32-10, as in sampling.philox
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Sampled(Chosen):
    """Ids drawn with temperature, top_k, top_p and min_p, with the probabilities that these leave them."""

    def __init__(self, device: torch.device, limit: int) -> None:
        super().__init__(device, limit)
        self._count = min(limit, MOST_IDS)
        self._places = torch.arange(self._count, device=device)
        self._settings = torch.zeros(3, dtype=torch.float64, device=device)  # temperature, top_p, min_p
        self._numbers = torch.zeros(4, dtype=torch.int64, device=device)  # top_k, position, two words of the seed
        self.key_steps = torch.tensor(
            [[(r * step) & _MASK for step in _KEY_STEPS] for r in range(_ROUNDS)], dtype=torch.int64, device=device
        )
        self.multipliers = torch.tensor(_MULTIPLIERS, dtype=torch.int64, device=device)[:, None]

    def restart(self, choice: TokenChoice) -> None:
        """Begin a chain."""
        super().restart(choice)
        top_k = choice.top_k if choice.top_k > 0 else self._limit
        numbers = (top_k, choice.position, choice.seed & _MASK, choice.seed >> 32)
        self._numbers.copy_(torch.tensor(numbers), non_blocking=True)
        settings = (choice.temperature, choice.top_p, choice.min_p)
        self._settings.copy_(torch.tensor(settings, dtype=torch.float64), non_blocking=True)

    def _choose(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        temperature, top_p, min_p = self._settings
        top_k, position = self._numbers[0], self._numbers[1]
        values, ids = row.topk(self._count)
        weights = ((values - values[0]).double() / temperature).exp()
        whole = ((row - values[0]).double() / temperature).exp().sum()
        weights = torch.where(self._places < top_k, weights, 0.0)
        total = torch.where(top_k < self._limit, weights.sum(), whole)
        before = weights.cumsum(0) - weights
        kept = (before < top_p * total) & (weights >= min_p)
        weights = torch.where(kept, weights, 0.0)
        noise = uniforms(ids, position, self._numbers[2:], self.key_steps, self.multipliers)
        waiting = torch.where(weights > 0, (-noise).log1p() / weights, -torch.inf)  # the largest arrives first
        place = waiting.argmax()
        self._numbers[1] += 1
        return ids[place], (weights[place] / weights.sum()).float()


def uniforms(
    ids: torch.Tensor, position: torch.Tensor, seed: torch.Tensor, key_steps: torch.Tensor, multipliers: torch.Tensor
) -> torch.Tensor:
    """float64 [S] between 0 and 1: the bits of ``sampling.noise`` for the target's draw at ``position``.

    ``seed`` [2], ``key_steps`` [rounds, 2] and ``multipliers`` [2, 1] are words of 32 bits in int64; products wrap.
    """
    keys = (seed[None] + key_steps) & _MASK
    even = torch.stack((ids, torch.zeros_like(ids)))  # counters 0 and 2: the id, the stream
    odd = torch.stack((position.expand_as(ids), torch.zeros_like(ids)))  # 1 and 3: the position, the round
    for round_number in range(_ROUNDS):
        product = even * multipliers
        even = ((product >> 32) & _MASK).flip(0) ^ odd ^ keys[round_number][:, None]
        odd = (product & _MASK).flip(0)
    bits = (even[0] << 21) | (odd[0] >> 11)
    return (bits.double() + 0.5) * 2.0**-53
