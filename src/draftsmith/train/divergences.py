"""How far a draft's distribution q is from the target's p: the losses of distillation, position by position.

Shape legend: N positions, V entries of the vocabulary, k draft tokens in a round.

Acceptance at a position, of rejection sampling: the sum over x of min(p(x), q(x)), which is 1 - TV(p, q)
(arXiv:2211.17192). A round that drafts k tokens has an expected accepted length of 1 + the sum over i of the product of
the first i acceptances, the bonus token included.

All functions take log-probabilities in fp32 or better. An entry of p with probability 0 is -inf and adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from draftsmith.train.schema import DistillLoss

__all__ = ["DIVERGENCES", "acceptance", "accepted_lengths", "bucketed", "renormalised"]

TINY = 1e-30  # keeps the logarithm of an acceptance finite
FLOOR = 1e-6


def forward_kl(log_p: torch.Tensor, log_q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """[N]: sum of p (log p - log q)."""
    del beta
    return _expect(log_p, log_p - log_q)


def reverse_kl(log_p: torch.Tensor, log_q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """[N]: sum of q (log q - log p)."""
    del beta
    return _expect(log_q, log_q - log_p)


def jsd(log_p: torch.Tensor, log_q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """[N]: beta KL(p, m) + (1 - beta) KL(q, m) with m = beta p + (1 - beta) q (arXiv:2306.13649)."""
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * _expect(log_p, log_p - log_m) + (1 - beta) * _expect(log_q, log_q - log_m)


def tv(log_p: torch.Tensor, log_q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """[N]: 1 - the sum of min(p, q), half the sum of |p - q|: the probability that a draft token is rejected."""
    del beta
    return 1 - acceptance(log_p, log_q)


def log_acceptance(log_p: torch.Tensor, log_q: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """[N]: -log of the acceptance, which keeps a slope where p and q hardly meet."""
    del beta
    return -(acceptance(log_p, log_q) + TINY).log()


def acceptance(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """[N]: sum of min(p, q)."""
    return torch.minimum(log_p.exp(), log_q.exp()).sum(-1)


DIVERGENCES: Mapping[DistillLoss, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = MappingProxyType(
    {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": jsd,
        "tv": tv,
        "log_acceptance": log_acceptance,
        "accepted_length": tv,  # of which ``accepted_lengths`` makes the loss
    }
)


def accepted_lengths(rates: torch.Tensor, run: torch.Tensor, k: int) -> torch.Tensor:
    """[N]: the expected accepted length of a round of k draft tokens that begins at each position, bonus included.

    ``rates`` [N]: acceptance at each position. ``run`` int64 [N]: positions with the same number follow one another in
    one document; a round ends where the run does.
    """
    total = torch.ones_like(rates)
    product = torch.ones_like(rates)
    for ahead in range(min(k, len(rates))):
        same = torch.zeros_like(run, dtype=torch.bool)
        same[: len(run) - ahead] = run[ahead:] == run[: len(run) - ahead]
        later = torch.cat([rates[ahead:], rates.new_zeros(ahead)])
        product = product * torch.where(same, later, torch.zeros_like(later))
        total = total + product
    return total


def bucketed(log_q: torch.Tensor, top_ids: torch.Tensor) -> torch.Tensor:
    """[N, K + 1]: log q of the K ids [N, K] that p is known for, and of all others together.

    Divergences over such buckets are a lower bound of those over the vocabulary, and equal when p has nothing else.
    """
    known = log_q.gather(-1, top_ids)
    rest = 1 - known.exp().sum(-1, keepdim=True)
    return torch.cat([known, rest.clamp_min(TINY).log()], dim=-1)


def renormalised(top_logprobs: torch.Tensor) -> torch.Tensor:
    """[N, K + 1]: log p in the same buckets, from stored values [N, K] whose rounding may make them exceed 1 in all.

    "All others" get FLOOR at least: of what was rounded to nothing, reverse KL would make infinity.
    """
    rest = (1 - top_logprobs.exp().sum(-1, keepdim=True)).clamp_min(FLOOR).log()
    return torch.cat([top_logprobs, rest], dim=-1).log_softmax(-1)


def _expect(log_weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[N]: sum of weight x value; entries of weight 0 add nothing, whatever their value."""
    weights = log_weights.exp()
    return torch.where(weights > 0, weights * values, torch.zeros_like(values)).sum(-1)
