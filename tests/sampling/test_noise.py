"""Draws: what they depend on, how they are distributed, and how often two of them agree."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from draftsmith.sampling import Noise
from draftsmith.types import Distribution

P = np.array([0.5, 0.25, 0.125, 0.1, 0.025])
Q = np.array([0.2, 0.3, 0.05, 0.25, 0.2])


def distribution(probs: np.ndarray, first_id: int = 0) -> Distribution:
    return Distribution(np.arange(first_id, first_id + probs.size), probs)


def chi_square_p(counts: Counter[int], probs: np.ndarray, first_id: int = 0) -> float:
    observed = np.array([counts[first_id + i] for i in range(probs.size)])
    return float(stats.chisquare(observed, probs * observed.sum()).pvalue)


def test_a_draw_is_a_function_of_seed_and_position() -> None:
    p = distribution(P)
    draws = [[Noise(seed).sample(p, position) for position in range(200)] for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert Noise(1).sample(p, 7) == draws[0][7], "not of what was drawn before"


def test_seeds_use_all_their_bits() -> None:
    p = distribution(np.full(1000, 1e-3))
    assert len({Noise(1 << bit).sample(p, 0) for bit in range(63)}) > 50


def test_an_id_that_drops_out_changes_no_other_draw() -> None:
    """The race is between ids: without id 0, id 0's wins go to others and every other draw stays."""
    full, rest = distribution(P), distribution(P[1:] / P[1:].sum(), first_id=1)
    for position in range(500):
        drawn = Noise(3).sample(full, position)
        assert drawn in (0, Noise(3).sample(rest, position))


def test_certainties_need_no_noise() -> None:
    assert Noise(0).sample(distribution(np.ones(1), first_id=9), 4) == 9
    assert Noise(0).accepts(1.0, 4)
    assert not Noise(0).accepts(0.0, 4)


@pytest.mark.parametrize("size", [5, 50])
def test_draws_follow_the_distribution(size: int) -> None:
    probs = np.resize(P, size) / np.resize(P, size).sum()
    counts = Counter(Noise(11).sample(distribution(probs, 100), i) for i in range(20_000))
    assert chi_square_p(counts, probs, 100) > 1e-4


def many(num_likely: int, likely: float, num_others: int) -> Distribution:
    """Few ids that share ``likely``, among very many that share what is left; the likely ones lie in the middle."""
    probs = np.full(num_likely + num_others, (1 - likely) / num_others)
    probs[num_others // 2 : num_others // 2 + num_likely] = likely / num_likely
    return distribution(probs / probs.sum(), first_id=7)


@pytest.mark.parametrize("likely", [0.0, 0.6, 0.999])
def test_very_many_ids_follow_the_distribution_too(likely: float) -> None:
    """The improbable race as one; which of them it is follows their shares: counted in ten pieces of the vocabulary."""
    p = many(4, likely, 70_000)
    drawn = np.array([Noise(5).sample(p, i) for i in range(2_000)]) - 7
    edges = np.array([0, *range(7_000, 35_000, 7_000), *range(35_000, 35_005), 70_004])
    expected = np.add.reduceat(p.probs, edges[:-1])
    observed = np.histogram(drawn, edges)[0]
    kept = expected > 5 / drawn.size
    assert observed[~kept].sum() < 20
    assert stats.chisquare(observed[kept], expected[kept] * observed[kept].sum() / expected[kept].sum()).pvalue > 1e-4


def test_very_many_ids_that_are_all_probable_race_alone() -> None:
    """1,500 ids above the bound: the noise of each, as with few."""
    p = distribution(np.full(1500, 1 / 1500))
    for position in range(50):
        waiting = [
            Noise(2).sample(Distribution(ids, np.full(750, 1 / 750)), position)
            for ids in (p.token_ids[:750], p.token_ids[750:])
        ]
        assert Noise(2).sample(p, position) in waiting


def test_shared_noise_agrees_over_very_many_ids() -> None:
    """Likely ids race with their own noise however many others there are, so other numbers of these change little."""
    p, q = many(50, 0.99, 100_000), many(50, 0.98, 60_000)
    q = Distribution(q.token_ids + 20_000, q.probs)  # the same likely ids
    n = 2_000
    agreed = sum(Noise(3).sample(p, i) == Noise(3).sample(q, i) for i in range(n))
    assert agreed > 0.96 * n


def test_acceptance_has_its_probability() -> None:
    hits = sum(Noise(12).accepts(0.3, position) for position in range(20_000))
    assert stats.binomtest(hits, 20_000, 0.3).pvalue > 1e-4


def test_streams_are_independent_at_a_position() -> None:
    """Target, draft (of two rounds) and acceptance draws at the same positions: no pair is associated."""
    p, noise, n = distribution(np.full(3, 1 / 3)), Noise(13), 8_000
    columns = [
        [noise.sample(p, i) for i in range(n)],
        [noise.sample_draft(p, i, i) for i in range(n)],
        [noise.sample_draft(p, i, i - 1) for i in range(1, n + 1)],
        [int(noise.accepts(0.5, i)) for i in range(n)],
    ]
    for a in range(len(columns)):
        for b in range(a):
            table = np.zeros((3, 3))
            np.add.at(table, (columns[a], columns[b]), 1)
            table = table[:, table.sum(axis=0) > 0][table.sum(axis=1) > 0]
            assert stats.chi2_contingency(table).pvalue > 1e-4, (a, b)


def test_shared_noise_agrees_as_often_as_theory_says() -> None:
    """P(both draw i) = 1 / sum_j max(p_j / p_i, q_j / q_i): the exponential race of arXiv:2408.07978."""
    n = 20_000
    p, q = distribution(P), distribution(Q)
    expected = sum(1 / np.maximum(P / P[i], Q / Q[i]).sum() for i in range(P.size))
    agreed = sum(Noise(14).sample(p, i) == Noise(14).sample(q, i) for i in range(n))
    assert stats.binomtest(agreed, n, float(expected)).pvalue > 1e-4


@pytest.mark.slow
def test_100_000_draws_follow_the_distribution() -> None:
    counts = Counter(Noise(seed=position % 7).sample(distribution(P), position) for position in range(100_000))
    assert chi_square_p(counts, P) > 1e-4
