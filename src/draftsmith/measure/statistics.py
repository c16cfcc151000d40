"""The statistics that results rest on: bootstrap intervals, chi-square tails, permutation tests. numpy only.

Shape legend: N observations, B resamples or shuffles, F cells (distinct values of a feature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "chi_square_tail", "homogeneity_p_value", "normal_tail", "ratio_interval", "wilson_interval"]

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

_RESAMPLES = 4000
_ENOUGH_EXCEEDANCES = 20  # shuffles at least as extreme as the data after which more shuffles say nothing new
_BATCH = 250


def ratio_interval(above: Sequence[float], below: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap percentile interval of sum(above) / sum(below), resampling the N >= 1 pairs (prompts).

    It tells how much the result depends on which prompts were asked. With one pair it is a point.
    """
    tops, bottoms = np.asarray(above, np.float64), np.asarray(below, np.float64)
    picks = np.random.default_rng(seed).integers(0, tops.size, (_RESAMPLES, tops.size))
    sums = bottoms[picks].sum(axis=1)
    ratios = tops[picks].sum(axis=1)[sums > 0] / sums[sums > 0]
    if ratios.size == 0:
        return (0.0, 0.0)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def wilson_interval(hits: int, trials: int, z: float = 1.959964) -> Interval:
    """Wilson's 95 % interval of a proportion; (0, 1) without trials."""
    if trials == 0:
        return (0.0, 1.0)
    share, weight = hits / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return (max(0.0, middle - half), min(1.0, middle + half))


def normal_tail(z: float) -> float:
    """P(|Z| >= |z|) of a standard normal Z."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_square_tail(statistic: float, degrees: int) -> float:
    """P(X >= statistic) of a chi-square with ``degrees`` >= 1: the regularised upper incomplete gamma function.

    Series below a + 1, continued fraction (modified Lentz) above: Abramowitz and Stegun 6.5.29 and 6.5.31.
    """
    a, x = degrees / 2, statistic / 2
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = a
        while term > total * 1e-16:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - scale * total)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for i in range(1, 10_000):
        factor = -i * (i - a)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return min(1.0, scale * fraction)


def homogeneity_p_value(
    groups: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]], shuffles: int, seed: int = 0
) -> float:
    """Whether two samples have one distribution: the p-value of a G-test, by shuffling, so valid at any sample size.

    Each group (a prompt) has two indicator matrices, one for each sample, [N, F] with the same F: entry (n, f) tells
    whether observation n shows feature f. Observations of one group are exchangeable if the samples have one
    distribution. The G statistics of all cells of all groups are added up and compared with the same sum when
    observations change sides at random, up to ``shuffles`` times. Shuffling ends early once the answer is clear
    (Besag, Clifford 1991, whose p-value stays valid).
    """
    rng = np.random.default_rng(seed)
    pools = [np.concatenate(pair).astype(np.float32) for pair in groups]
    sizes = [len(first) for first, _ in groups]
    observed = sum(
        float(_g(pool[:size].sum(axis=0)[None], pool.sum(axis=0), size, len(pool))[0])
        for pool, size in zip(pools, sizes, strict=True)
    )
    exceeded = done = 0
    while done < shuffles and exceeded < _ENOUGH_EXCEEDANCES:
        batch = min(_BATCH, shuffles - done)
        shuffled = np.zeros(batch)
        for pool, size in zip(pools, sizes, strict=True):
            order = rng.random((batch, len(pool))).argsort(axis=1)
            first = (order < size).astype(np.float32)
            shuffled += _g(first @ pool, pool.sum(axis=0), size, len(pool))
        extreme = np.flatnonzero(shuffled >= observed - 1e-9)
        if exceeded + extreme.size >= _ENOUGH_EXCEEDANCES:  # where the sequential test stops within this batch
            return _ENOUGH_EXCEEDANCES / (done + int(extreme[_ENOUGH_EXCEEDANCES - exceeded - 1]) + 1)
        exceeded += extreme.size
        done += batch
    return (exceeded + 1) / (done + 1)


def _g(first: npt.NDArray[np.float32], total: npt.NDArray[np.float32], size: int, whole: int) -> Floats:
    """G = 2 sum O log(O / E), [B], over two samples of F counts each: ``first`` [B, F] and the rest of ``total``."""
    counts = first.astype(np.float64)
    others = total - counts
    share = total.astype(np.float64) / whole
    value: Floats = 2 * (_entropy_terms(counts, share * size) + _entropy_terms(others, share * (whole - size))).sum(1)
    return value


def _entropy_terms(observed: Floats, expected: Floats) -> Floats:
    ratio = np.divide(observed, expected, out=np.ones_like(observed), where=observed > 0)
    terms: Floats = observed * np.log(ratio)
    return terms
