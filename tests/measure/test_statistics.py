"""The statistics against scipy, against theory, and against what they must do on data made for them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from draftsmith.measure.statistics import (
    chi_square_tail,
    homogeneity_p_value,
    normal_tail,
    ratio_interval,
    wilson_interval,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 15, 40, 333])
def test_chi_square_tail_is_that_of_scipy(degrees: int) -> None:
    for statistic in (0.0, 1e-6, 0.3, 1, degrees / 2, degrees, 1.5 * degrees, 3 * degrees, 10 * degrees + 20):
        assert chi_square_tail(statistic, degrees) == pytest.approx(stats.chi2.sf(statistic, degrees), rel=1e-9)


def test_normal_tail_is_two_sided() -> None:
    assert normal_tail(-1.959963984540054) == pytest.approx(0.05)
    assert normal_tail(6) == pytest.approx(2 * stats.norm.sf(6))


def test_wilson_interval() -> None:
    for hits, trials in ((0, 10), (3, 10), (10, 10), (500, 1000)):
        expected = stats.binomtest(hits, trials).proportion_ci(method="wilson")
        assert wilson_interval(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_ratio_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        below = rng.uniform(1, 2, 30)
        low, high = ratio_interval(list(below * rng.normal(1.7, 0.3, 30)), list(below), seed=seed)
        covered += low <= 1.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_ratio_interval_of_one_pair_is_a_point() -> None:
    assert ratio_interval([3.0], [2.0]) == (1.5, 1.5)


def indicators(rng: np.random.Generator, probs: list[float], size: int) -> npt.NDArray[np.bool_]:
    cells: npt.NDArray[np.bool_] = rng.choice(len(probs), size, p=probs)[:, None] == np.arange(len(probs))
    return cells


def test_shuffled_p_values_are_uniform_or_larger_without_a_difference() -> None:
    rng = np.random.default_rng(0)
    probs = [0.6, 0.3, 0.06, 0.03, 0.01]  # cells as rare as in real replies
    p_values = [
        homogeneity_p_value([(indicators(rng, probs, 30), indicators(rng, probs, 30)) for _ in range(2)], 199, seed)
        for seed in range(400)
    ]
    for level in (0.02, 0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 400)


def test_shuffling_finds_a_difference() -> None:
    rng = np.random.default_rng(0)
    pair = (indicators(rng, [0.5, 0.5], 300), indicators(rng, [0.7, 0.3], 300))
    assert homogeneity_p_value([pair], 999) == 1 / 1000
