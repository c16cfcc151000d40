"""Random draws that are functions of (seed, position, token id) and of nothing else.

A token is drawn by an exponential race (the Gumbel-max trick, written with exponentials): every id i that has a
probability p_i gets a waiting time E_i / p_i, where E_i is exponential noise, and the first to arrive wins. P(i wins)
is p_i exactly, and two distributions that race with the same noise mostly agree, which is what the ``coupled``
verification rule lives on (Daliri, Musco, Suresh 2024, arXiv:2408.07978).

Where there are very many ids (no top_k, top_p or min_p), those that are next to impossible race as one, with the noise
of an id that no token has; should they win, one of them is drawn by its share. Every probability stays what it is, and
a draw costs noise for hundreds of ids, not for the whole vocabulary.

A *stream* tag keeps draws with different purposes independent of one another at the same position.

Shape legend: S ids with non-zero probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from draftsmith.sampling.philox import Words, philox4x32
from draftsmith.types import Distribution

__all__ = ["Noise", "NoiseSource", "philox_bits"]

_TARGET = 0  # which token the target draws; under the coupled rule the draft draws with it too
_ACCEPT = 1  # whether the rejection rule accepts a draft token
_DRAFT = 2  # which token a draft draws under the rejection rule
_MASK = 0xFFFFFFFF
_FEW = 16
_PIECE = 16384
_MANY = 1024  # ids that race one by one, however improbable they are
_LEAST = 2.0**-16  # where there are more: the probability from which an id races for itself
_OTHERS, _WHICH = _MASK, _MASK - 1  # ids that no token has: whose noise the others race with, and which of them it is


class NoiseSource(Protocol):
    """Where draws come from: ``Noise`` in earnest; tests put in a source that walks through every outcome."""

    def sample(self, distribution: Distribution, position: int) -> int:
        """The token that the target's noise draws for ``position`` (the token's index in prompt + reply)."""
        ...

    def accepts(self, probability: float, position: int) -> bool:
        """True with the given probability, independently of what ``sample`` and ``sample_draft`` draw."""
        ...

    def sample_draft(self, distribution: Distribution, position: int, round_start: int) -> int:
        """A draw for the rejection rule's draft, independent of all others: also of other rounds' at ``position``."""
        ...


@dataclass(frozen=True, slots=True)
class Noise:
    """Philox noise for one request. ``seed`` is from 0 to 2**63 - 1; positions must be below 2**32."""

    seed: int

    def sample(self, distribution: Distribution, position: int) -> int:
        """The token drawn for ``position``."""
        return self._race(distribution, position, _TARGET, 0)

    def accepts(self, probability: float, position: int) -> bool:
        """True with the given probability; no noise is spent on certainties."""
        if probability >= 1.0:
            return True
        if probability <= 0.0:
            return False
        return bool(self._uniforms(np.zeros(1, np.int64), position, _ACCEPT, 0)[0] < probability)

    def sample_draft(self, distribution: Distribution, position: int, round_start: int) -> int:
        """A draft token for ``position`` in the round whose first draft token is at ``round_start``.

        A position can be drafted again in a later round. Fresh noise per round matters: the length policy may have
        learnt from the earlier draft, and its choice must not be tied to the noise of the draft to come.
        """
        return self._race(distribution, position, _DRAFT, round_start)

    def _race(self, distribution: Distribution, position: int, stream: int, nonce: int) -> int:
        ids, probs = distribution.token_ids, distribution.probs
        if ids.size == 1:
            return int(ids[0])
        if ids.size <= _MANY:
            return int(ids[self._first(ids, probs, position, stream, nonce)])
        slots = np.flatnonzero(probs >= _LEAST)
        alone, racing = ids[slots], probs[slots]
        others = 1.0 - racing.sum()
        if others > 0.0 and slots.size < ids.size:
            alone, racing = np.append(alone, _OTHERS), np.append(racing, others)
        first = int(alone[self._first(alone, racing, position, stream, nonce)])
        if first != _OTHERS:
            return first
        slots = np.flatnonzero(probs < _LEAST)
        heaped = probs[slots].cumsum()
        drawn = self._uniforms(np.array([_WHICH]), position, stream, nonce)[0] * heaped[-1]
        return int(ids[slots[min(int(heaped.searchsorted(drawn, side="right")), slots.size - 1)]])

    def _first(
        self, ids: npt.NDArray[np.int64], probs: npt.NDArray[np.float64], position: int, stream: int, nonce: int
    ) -> int:
        """Which of ``ids`` [S], with these probabilities, arrives first."""
        waiting = np.log1p(-self._uniforms(ids, position, stream, nonce))
        waiting /= probs  # negative waiting times, so that the largest arrives first
        return int(waiting.argmax())

    def _uniforms(
        self, token_ids: npt.NDArray[np.int64], position: int, stream: int, nonce: int
    ) -> npt.NDArray[np.float64]:
        """float64 [S] strictly between 0 and 1, with a resolution of 2**-53."""
        bits = philox_bits(token_ids, self.seed, position, stream, nonce)
        return (bits.astype(np.float64) + 0.5) * 2.0**-53


def philox_bits(
    token_ids: npt.NDArray[np.int64], seed: int, position: int, stream: int, nonce: int
) -> npt.NDArray[np.uint64]:
    """uint64 [S]: 53 random bits for every id, from the counter (id, position, stream, nonce) and the key ``seed``.

    Integers throughout, so every way to compute them gives the same bits: few ids go one by one (an array operation
    costs more than a few ids do), many in pieces that stay in the processor's cache.
    """
    key = (seed & _MASK, seed >> 32)
    if token_ids.size <= _FEW:
        return np.array([_join(philox4x32((i, position, stream, nonce), key)) for i in token_ids.tolist()], np.uint64)
    c1, c2, c3 = (np.full(1, word, np.uint64) for word in (position, stream, nonce))
    bits = np.empty(token_ids.size, np.uint64)
    for i in range(0, token_ids.size, _PIECE):
        words = philox4x32((token_ids[i : i + _PIECE].astype(np.uint64), c1, c2, c3), key)
        bits[i : i + _PIECE] = _join(words)
    return bits


def _join(words: tuple[Words, Words, Words, Words]) -> Words:
    """The first 53 bits of a block."""
    return (words[0] << 21) | (words[1] >> 11)
