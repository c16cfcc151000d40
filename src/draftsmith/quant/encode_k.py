"""The encoder for Q4_K: blocks of 256 values in 8 groups of 32, whose scales and minima are 6-bit numbers themselves.

A value stands for d * scale * level - m * minimum: d and m are f16 numbers of the block, scale and minimum (0 to 63)
belong to the group, the level (0 to 15) to the value. What loses least cannot be found one number at a time: scales are
rounded twice. So each group is first fitted by itself with free scales, then the numbers are rounded, then they
are moved against each other: every group tries the neighbours of its scale and minimum, d and m follow by least
squares, and what made a block worse is taken back. All errors are judged with the numbers as they will be stored.

Shape legend: N blocks; groups are [8 N, 32], their scales and minima [8 N, 1]; d and m are [N, 1].
"""

from __future__ import annotations

from typing import Final

import numpy as np

from draftsmith.quant.rounding import Bytes, Floats, as_stored, dot, half_bytes, levels, pack_halves, ratio

__all__ = ["encode_q4_k"]

GROUPS: Final = 8
TOP: Final = np.float32(63)
ROUNDS: Final = 2  # a third changes the error in the fourth digit
NEIGHBOURS: Final = tuple((scale, minimum) for scale in (0, -1, 1) for minimum in (0, -1, 1))


def encode_q4_k(values: Floats) -> Bytes:
    """uint8 [N, 144] from float32 [N, 256]."""
    groups = values.reshape(-1, 32)
    free_scale, free_minimum = _fit_groups(groups)
    d = as_stored(_largest(free_scale) / TOP)
    m = as_stored(_largest(free_minimum) / TOP)
    scale, minimum = levels(free_scale, _each(d), 0, 63), levels(free_minimum, _each(m), 0, 63)
    best_error = np.full_like(d, np.inf)
    for _ in range(ROUNDS):
        best_d, best_m, best_scale, best_minimum = d, m, scale, minimum
        scale, minimum = _best_neighbours(groups, d, m, scale, minimum)
        for new_d, new_m in ((d, m), _refit(groups, d, m, scale, minimum)):
            error = _of_blocks(_error(groups, _each(new_d), _each(new_m), scale, minimum))
            better = error < best_error
            each = np.repeat(better, GROUPS, axis=0)
            best_d, best_m = np.where(better, new_d, best_d), np.where(better, new_m, best_m)
            best_scale, best_minimum = np.where(each, scale, best_scale), np.where(each, minimum, best_minimum)
            best_error = np.where(better, error, best_error)
        d, m, scale, minimum = best_d, best_m, best_scale, best_minimum
    quants = _levels_of(groups, _each(d), _each(m), scale, minimum)
    pairs = pack_halves(quants.reshape(-1, 64)).reshape(-1, 128)
    return np.concatenate([half_bytes(d), half_bytes(m), _pack_six_bits(scale, minimum), pairs], axis=1)


def _each(of_blocks: Floats) -> Floats:
    """[N, 1] to [8 N, 1]."""
    return np.repeat(of_blocks, GROUPS, axis=0)


def _of_blocks(of_groups: Floats) -> Floats:
    """[8 N, 1] to [N, 1] sums."""
    return np.asarray(of_groups.reshape(-1, GROUPS).sum(axis=1, keepdims=True))


def _largest(of_groups: Floats) -> Floats:
    return np.asarray(of_groups.reshape(-1, GROUPS).max(axis=1, keepdims=True))


def _fit_groups(groups: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum (what is subtracted, from 0 on) of each group, as if they could be any numbers."""
    zero = np.float32(0)
    low = np.minimum(groups.min(axis=1, keepdims=True), zero)
    width = np.maximum(groups.max(axis=1, keepdims=True) - low, zero)
    mean = groups.mean(axis=1, keepdims=True)
    best_scale, best_minimum, best_error = np.zeros_like(low), -low, np.full_like(low, np.inf)
    for cut in (0.0, 0.04, 0.08):
        margin = width * np.float32(cut)
        scale, minimum = (width - 2 * margin) / np.float32(15), np.maximum(-low - margin, zero)
        for _ in range(2):
            quants = levels(groups + minimum, scale, 0, 15)
            rest = groups + minimum - scale * quants
            error = dot(rest, rest)
            better = error < best_error
            best_scale, best_minimum = np.where(better, scale, best_scale), np.where(better, minimum, best_minimum)
            best_error = np.where(better, error, best_error)
            centre = quants.mean(axis=1, keepdims=True)
            centred = quants - centre
            scale = ratio(dot(groups - mean, centred), dot(centred, centred))
            minimum = scale * centre - mean
            through_zero = ratio(dot(groups, quants), dot(quants, quants))  # the best when the minimum must be 0
            scale = np.maximum(np.where(minimum < 0, through_zero, scale), zero)
            minimum = np.maximum(minimum, zero)
    return best_scale, best_minimum


def _levels_of(groups: Floats, d: Floats, m: Floats, scale: Floats, minimum: Floats) -> Floats:
    return levels(groups + m * minimum, d * scale, 0, 15)


def _error(groups: Floats, d: Floats, m: Floats, scale: Floats, minimum: Floats) -> Floats:
    """[8 N, 1] squared errors; ``d`` and ``m`` are [8 N, 1] here."""
    offset = m * minimum
    rest = groups + offset
    rest -= d * scale * levels(rest, d * scale, 0, 15)
    return dot(rest, rest)


def _best_neighbours(groups: Floats, d: Floats, m: Floats, scale: Floats, minimum: Floats) -> tuple[Floats, Floats]:
    """For each group the best of its scale and minimum and the numbers next to them."""
    d, m = _each(d), _each(m)
    best_scale, best_minimum, best_error = scale, minimum, np.full_like(scale, np.inf)
    for step, shift in NEIGHBOURS:
        tried = np.clip(scale + np.float32(step), 0, TOP), np.clip(minimum + np.float32(shift), 0, TOP)
        error = _error(groups, d, m, *tried)
        better = error < best_error
        best_scale, best_minimum = np.where(better, tried[0], best_scale), np.where(better, tried[1], best_minimum)
        best_error = np.where(better, error, best_error)
    return best_scale, best_minimum


def _refit(groups: Floats, d: Floats, m: Floats, scale: Floats, minimum: Floats) -> tuple[Floats, Floats]:
    """The d and m of least squares for the levels that the present ones give: a 2 by 2 system for each block."""
    quants = scale * _levels_of(groups, _each(d), _each(m), scale, minimum)
    aa = _of_blocks(dot(quants, quants))
    ab = _of_blocks(quants.sum(axis=1, keepdims=True) * minimum)
    bb = _of_blocks(np.float32(32) * minimum * minimum)
    ax = _of_blocks(dot(quants, groups))
    bx = _of_blocks(groups.sum(axis=1, keepdims=True) * minimum)
    determinant = aa * bb - ab * ab
    solvable = determinant > np.float32(1e-6) * aa * bb
    new_d = np.where(solvable, ratio(ax * bb - ab * bx, determinant), ratio(ax, aa))
    new_m = np.where(solvable, ratio(ab * ax - aa * bx, determinant), m)
    zero = np.float32(0)
    return as_stored(np.maximum(new_d, zero)), as_stored(np.maximum(new_m, zero))


def _pack_six_bits(scale: Floats, minimum: Floats) -> Bytes:
    """[N, 12] bytes from 8 scales and 8 minima of 6 bits: see ``decode`` for where each bit stands."""
    scales, minima = scale.astype(np.uint8).reshape(-1, GROUPS), minimum.astype(np.uint8).reshape(-1, GROUPS)
    low, four = np.uint8(15), np.uint8(4)
    first = scales[:, :4] | scales[:, 4:] >> four << np.uint8(6)
    second = minima[:, :4] | minima[:, 4:] >> four << np.uint8(6)
    rest = (scales[:, 4:] & low) | (minima[:, 4:] & low) << four
    return np.concatenate([first, second, rest], axis=1)
