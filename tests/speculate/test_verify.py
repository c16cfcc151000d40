"""The verdict on hand-made cases, and what verification must not do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest

from draftsmith.sampling import Noise, point, probability_of, residual, without
from draftsmith.speculate import verify
from draftsmith.speculate.verify import acceptance_probability, replacement
from draftsmith.types import Distribution, Draft, Verdict, VerificationRule

RULES: tuple[VerificationRule, ...] = ("coupled", "rejection")


def distribution(*probs: float) -> Distribution:
    weights = np.array(probs)
    ids = np.flatnonzero(weights)
    return Distribution(ids, weights[ids] / weights.sum())


@dataclass(frozen=True)
class Scripted:
    """The target draws ``script[position]``; every acceptance is certain or impossible."""

    script: tuple[int, ...]

    def sample(self, distribution: Distribution, position: int) -> int:
        assert probability_of(distribution, self.script[position]) > 0
        return self.script[position]

    def accepts(self, probability: float, position: int) -> bool:
        raise AssertionError((probability, position))

    def sample_draft(self, distribution: Distribution, position: int, round_start: int) -> int:
        raise AssertionError((distribution, position, round_start))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
def test_greedy_keeps_the_draft_up_to_the_first_difference(rule: VerificationRule, wrong: int | None) -> None:
    plain = (4, 5, 6, 7)
    draft = tuple(9 if i == wrong else token for i, token in enumerate(plain[:3]))
    accepted = 3 if wrong is None else wrong
    verdict = verify(Draft(draft), map(point, plain), rule, Noise(0), 10)
    assert verdict == Verdict(plain[: accepted + 1], accepted, 3)


@pytest.mark.parametrize("rule", RULES)
def test_no_draft_is_plain_decoding(rule: VerificationRule) -> None:
    p = distribution(0.2, 0.3, 0.5)
    for position in range(50):
        assert verify(Draft(()), [p], rule, Noise(3), position).token_ids == (Noise(3).sample(p, position),)


@pytest.mark.parametrize("rule", RULES)
def test_distributions_after_a_rejection_are_not_asked_for(rule: VerificationRule) -> None:
    asked: list[int] = []

    def targets() -> Iterator[Distribution]:
        for i, token in enumerate((1, 2, 3)):
            asked.append(i)
            yield point(token)

    assert verify(Draft((1, 9)), targets(), rule, Noise(0), 0).num_accepted == 1
    assert asked == [0, 1]


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_coupled_writes_the_targets_own_draws_whatever_the_draft(length: int) -> None:
    """For all drafts and all draws: the tokens written begin the plain text. So P(x | any draft) = p(x), exactly."""
    p = distribution(0.5, 0.3, 0.2)
    for script in product(range(3), repeat=length + 1):
        for draft in product(range(3), repeat=length):
            verdict = verify(Draft(draft), [p] * (length + 1), "coupled", Scripted(script), 0)
            agreed = next((i for i in range(length) if draft[i] != script[i]), length)
            assert verdict == Verdict(script[: agreed + 1], agreed, length)


def test_rejection_never_replaces_a_token_by_itself() -> None:
    p, q = distribution(0.1, 0.4, 0.5), distribution(0.6, 0.2, 0.2)
    assert replacement(0, p, q).token_ids.tolist() == [1, 2]
    assert replacement(1, p, None).token_ids.tolist() == [0, 2]


def test_a_token_that_the_target_excludes_is_always_rejected() -> None:
    p, q = distribution(0, 0.5, 0.5), distribution(0.9, 0.1, 0)
    assert acceptance_probability(0, p, q) == 0
    assert acceptance_probability(0, p, None) == 0


@pytest.mark.parametrize("q_probs", [None, (0.7, 0.1, 0.1, 0.1), (0.0, 0.0, 0.5, 0.5), (0.1, 0.2, 0.3, 0.4)])
def test_one_position_sums_to_the_targets_distribution(q_probs: tuple[float, ...] | None) -> None:
    """sum over x of q(x) (accept + reject x replacement) = p, to the last bits; and acceptance is sum min(p, q)."""
    p = distribution(0.4, 0.0, 0.35, 0.25)
    for certain in range(4):
        q = distribution(*q_probs) if q_probs else None
        drawn = q or point(certain)
        total, accepted = np.zeros(4), 0.0
        for token, weight in zip(drawn.token_ids.tolist(), drawn.probs.tolist(), strict=True):
            accept = acceptance_probability(token, p, q)
            total[token] += weight * accept
            accepted += weight * accept
            if accept < 1:
                other = replacement(token, p, q)
                total[other.token_ids] += weight * (1 - accept) * other.probs
        np.testing.assert_allclose(total, [0.4, 0, 0.35, 0.25], atol=1e-15)
        overlap = sum(min(probability_of(p, i), probability_of(drawn, i)) for i in range(4))
        assert accepted == pytest.approx(overlap, abs=1e-15)


def test_residuals_of_equals_fall_back_to_the_target() -> None:
    p = distribution(0.3, 0.7)
    assert residual(p, p) is p
    assert without(point(3), 3).token_ids.tolist() == [3]


def test_residual_of_disjoint_distributions_is_the_target() -> None:
    p, q = distribution(0.5, 0.5, 0, 0), distribution(0, 0, 0.5, 0.5)
    assert residual(p, q).probs.tolist() == [0.5, 0.5]
    assert residual(q, p).token_ids.tolist() == [2, 3]
