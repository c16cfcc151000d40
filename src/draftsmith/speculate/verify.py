"""Which tokens of a draft are kept. Pure functions: the same arguments give the same verdict.

Both rules are lossless: whatever the draft, the tokens written are distributed as the target's own.

- ``coupled``: at every position the target draws its own token, with noise that depends on (seed, position, id) only;
  draft tokens are kept while they equal it. The output is the plain output, token for token. Drafts drawn with the same
  noise agree often (Daliri, Musco, Suresh 2024, arXiv:2408.07978).
- ``rejection``: draft token x, drawn from q, is kept with probability min(1, p(x) / q(x)) and else replaced by a draw
  from max(p - q, 0) (Leviathan, Kalman, Matias 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318). A draft
  that is certain of x has q(x) = 1. Drafting may stop at any point, but a token that was drawn from q has to be handed
  in: to drop it because of what it is would favour some tokens.

Greedy needs no case of its own: p is 1 for one id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from draftsmith.sampling import NoiseSource, probability_of, residual, without
from draftsmith.types import Distribution, Draft, Verdict, VerificationRule

__all__ = ["acceptance_probability", "replacement", "verify"]

Judge = Callable[[int, Distribution, Distribution | None, NoiseSource, int], int]


def verify(
    draft: Draft, targets: Iterable[Distribution], rule: VerificationRule, noise: NoiseSource, position: int
) -> Verdict:
    """Judge the k tokens of ``draft``, the first of which stands at ``position`` (its index in prompt + reply).

    ``targets`` yields the target's distribution for each draft token given those before it, then the one that follows
    the whole draft: k + 1 at most, and none after the first rejection is asked for, so it may be lazy.
    """
    judge = _JUDGES[rule]
    distribution = iter(targets)
    written: list[int] = []
    for i, token_id in enumerate(draft.token_ids):
        q = draft.distributions[i] if draft.distributions else None
        written.append(judge(token_id, next(distribution), q, noise, position + i))
        if written[-1] != token_id:
            return Verdict(tuple(written), i, len(draft.token_ids))
    written.append(noise.sample(next(distribution), position + len(written)))
    return Verdict(tuple(written), len(draft.token_ids), len(draft.token_ids))


def _coupled(token_id: int, p: Distribution, q: Distribution | None, noise: NoiseSource, position: int) -> int:
    """The token to write at ``position``: the target's own draw, whatever the draft says."""
    del token_id, q
    return noise.sample(p, position)


def _rejection(token_id: int, p: Distribution, q: Distribution | None, noise: NoiseSource, position: int) -> int:
    """The token to write at ``position``: the draft's, or its replacement (which never equals it)."""
    if noise.accepts(acceptance_probability(token_id, p, q), position):
        return token_id
    return noise.sample(replacement(token_id, p, q), position)


_JUDGES: dict[VerificationRule, Judge] = {"coupled": _coupled, "rejection": _rejection}


def acceptance_probability(token_id: int, p: Distribution, q: Distribution | None) -> float:
    """min(1, p(x) / q(x)); q None means that the draft was certain of x."""
    target = probability_of(p, token_id)
    return min(1.0, target if q is None else target / probability_of(q, token_id))


def replacement(token_id: int, p: Distribution, q: Distribution | None) -> Distribution:
    """What a rejected x is replaced from; q None means that the draft was certain of x."""
    return without(p, token_id) if q is None else residual(p, q)
