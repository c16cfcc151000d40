"""Losses from hidden states without the whole matrix of logits: chunk by chunk, computed again in the backward pass.

32,768 tokens of a vocabulary of 49,152 are 6.4 GB of logits in fp32, and as much again for their gradient. A chunk of
1,024 rows is 0.2 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["by_chunks", "cross_entropy"]


def by_chunks(
    rows: Callable[..., torch.Tensor], hidden: torch.Tensor, head: torch.Tensor, *others: torch.Tensor, chunk: int
) -> torch.Tensor:
    """[N]: ``rows(logits fp32 [n, V], *others [n, ...])`` for chunks of n rows, put together.

    ``hidden`` [N, H], ``head`` [V, H]. Gradients flow to both.
    """

    def part(states: torch.Tensor, weights: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        return rows((states @ weights.T).float(), *more)

    values = []
    for start in range(0, hidden.shape[0], chunk):
        span = slice(start, start + chunk)
        arguments = (hidden[span], head, *(other[span] for other in others))
        if torch.is_grad_enabled():
            values.append(checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            values.append(part(*arguments))
    return torch.cat(values) if values else hidden.new_zeros(0, dtype=torch.float32)


def cross_entropy(z_loss: float = 0.0) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A ``rows`` function: -log q(label) for labels [n], plus ``z_loss`` x logsumexp squared, which keeps logits small.

    A label of -1 (an id that the draft cannot write) adds nothing.
    """

    def rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = logits.logsumexp(-1)
        losses = total - logits.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
        if z_loss:
            losses = losses + z_loss * total.square()
        return torch.where(labels >= 0, losses, torch.zeros_like(losses))

    return rows
