"""The random function against the published test vectors, and its two ways of being called against each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.sampling.noise import philox_bits
from draftsmith.sampling.philox import philox4x32

F = 0xFFFFFFFF
VECTORS = [  # counter, key, result: kat_vectors of Random123, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

Counter = tuple[int, int, int, int]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter: Counter, key: tuple[int, int], expected: Counter) -> None:
    assert philox4x32(counter, key) == expected
    c0, c1, c2, c3 = (np.full(3, word, np.uint64) for word in counter)
    words = philox4x32((c0, c1, c2, c3), key)
    assert [set(word.tolist()) for word in words] == [{word} for word in expected]


@given(
    st.lists(st.integers(0, 2**31), min_size=1, max_size=40),
    st.integers(0, 2**63 - 1),
    st.integers(0, F),
    st.integers(0, F),
)
def test_bits_of_an_id_do_not_depend_on_the_others(ids: list[int], seed: int, position: int, nonce: int) -> None:
    together = philox_bits(np.array(ids * 17, np.int64), seed, position, 2, nonce)[: len(ids)]
    alone = [int(philox_bits(np.array([i], np.int64), seed, position, 2, nonce)[0]) for i in ids]
    assert together.tolist() == alone
    assert max(alone) < 2**53


def test_pieces_of_a_large_vocabulary_are_joined_in_order() -> None:
    ids = np.arange(40_000, dtype=np.int64)
    bits = philox_bits(ids, 5, 6, 0, 0)
    picks = [0, 16_383, 16_384, 32_767, 32_768, 39_999]
    assert bits[picks].tolist() == philox_bits(ids[picks], 5, 6, 0, 0).tolist()
