"""Log-probabilities against torch's log_softmax."""

from __future__ import annotations

import numpy as np
import pytest

from draftsmith.sampling import logprobs_of


@pytest.mark.parametrize("size", [3, 3000])
def test_equals_log_softmax(size: int) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(0, 5, size).astype(np.float32)
    expected = torch.log_softmax(torch.tensor(logits).double(), -1).numpy()
    got = logprobs_of(logits, 2, 5)
    assert got.token_id == 2
    assert got.logprob == pytest.approx(expected[2], abs=1e-6)
    best = np.argsort(-expected)[:5]
    assert [i for i, _ in got.top] == best.tolist()
    np.testing.assert_allclose([value for _, value in got.top], expected[best], atol=1e-6)


def test_of_equals_the_lower_ids_come_first() -> None:
    top = logprobs_of(np.array([1, 2, 2, 2, 0], np.float32), 0, 2).top
    assert [i for i, _ in top] == [1, 2]


def test_no_alternatives_unless_asked_for() -> None:
    assert logprobs_of(np.zeros(4, np.float32), 1).top == ()
