"""Processed distributions against the originals in ``transformers``, and the corners that those leave open."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from draftsmith.errors import CheckpointError, UsageError
from draftsmith.sampling import TokenHistory, process
from draftsmith.sampling.process import kth_largest
from draftsmith.types import Distribution, SamplingParams

Row = npt.NDArray[np.float32]
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}


def row(seed: int, size: int, scale: float = 3.0) -> Row:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def dense(distribution: Distribution, size: int) -> npt.NDArray[np.float64]:
    probs = np.zeros(size)
    probs[distribution.token_ids] = distribution.probs
    return probs


@pytest.fixture(scope="module")
def original() -> Callable[[Row, SamplingParams, list[int], list[int]], npt.NDArray[np.float64]]:
    """The distribution that ``transformers``' own processors and warpers give, in their order."""
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")

    def run(logits: Row, params: SamplingParams, prompt: list[int], reply: list[int]) -> npt.NDArray[np.float64]:
        chain: list[Any] = []
        if params.logit_bias:
            bias = {(i,): float(value) for i, value in params.logit_bias.items()}
            chain.append(processors.SequenceBiasLogitsProcessor(bias))
        if params.repetition_penalty != 1:
            chain.append(processors.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
        # presence and frequency penalties: not in transformers; they are a subtraction (OpenAI's definition)
        counts = torch.bincount(torch.tensor(reply, dtype=torch.long), minlength=logits.size)
        penalty = params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
        chain.append(lambda _, scores: scores - penalty)
        if not params.greedy:
            chain.append(processors.TemperatureLogitsWarper(float(params.temperature)))
            if params.top_k:
                chain.append(processors.TopKLogitsWarper(params.top_k))
            if params.top_p < 1:
                chain.append(processors.TopPLogitsWarper(params.top_p))
            if params.min_p:
                chain.append(processors.MinPLogitsWarper(params.min_p))
        ids, scores = torch.tensor([prompt + reply]), torch.tensor(logits)[None]
        for step in chain:
            scores = step(ids, scores)
        result: npt.NDArray[np.float64] = torch.softmax(scores[0].double(), -1).numpy()
        return result

    return run


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 100_000},
    {"top_p": 0.9},
    {"top_p": 0.01},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.8, "top_p": 0.5, "min_p": 0.2},
    {"temperature": 0.2, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "top_k": 3},
    {"presence_penalty": 0.6, "frequency_penalty": -0.4},
    {"logit_bias": {3: 4.5, 7: -math.inf, 0: -1.0}},
    {
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {1: 2.0, 2: 3.0},
    },
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("size", [40, 5_000])
def test_equals_transformers(options: dict[str, Any], size: int, original: Callable[..., Any]) -> None:
    params = SamplingParams(**(OFF | options))
    prompt, reply = [1, 2, 2, 9, 30], [2, 3, 3, 3, 8]
    history = TokenHistory(prompt)
    for token_id in reply:
        history.push(token_id)
    for seed in range(4):
        logits = row(seed, size)
        kept = logits.copy()
        ours = process(logits, params, history)
        np.testing.assert_allclose(dense(ours, size), original(logits, params, prompt, reply), rtol=2e-5, atol=1e-12)
        np.testing.assert_array_equal(logits, kept)
        assert (np.diff(ours.token_ids) > 0).all()
        assert abs(ours.probs.sum() - 1) < 1e-12
        assert (ours.probs > 0).all()


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.95, 0.999])
def test_nucleus_of_a_large_vocabulary_equals_a_full_sort(scale: float, top_p: float) -> None:
    logits = row(5, 60_000, scale)
    probs = np.exp(logits.astype(np.float64))
    probs /= probs.sum()
    falling = np.argsort(-probs, kind="stable")
    size = int(np.searchsorted(probs[falling].cumsum(), top_p)) + 1
    ours = process(logits, SamplingParams(**(OFF | {"top_p": top_p})))
    assert abs(ours.token_ids.size - size) <= 1  # the edge itself is a matter of rounding
    sure = falling[: size - 1]
    assert set(sure.tolist()) <= set(ours.token_ids.tolist())
    kept = probs[ours.token_ids]
    np.testing.assert_allclose(ours.probs, kept / kept.sum(), rtol=1e-9)


@pytest.mark.parametrize("history_on", [False, True])
def test_greedy_is_the_lowest_of_the_largest(history_on: bool) -> None:
    logits = np.array([0.0, 2.0, 5.0, 5.0, 1.0], np.float32)
    penalty: dict[str, Any] = {"repetition_penalty": 2.0} if history_on else {}
    best = process(logits, SamplingParams(greedy=True, **penalty), TokenHistory([2]) if history_on else None)
    assert (best.token_ids.tolist(), best.probs.tolist()) == ([3 if history_on else 2], [1.0])


def test_top_k_keeps_all_that_equal_the_last() -> None:
    logits = np.array([1.0, 3.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    assert process(logits, SamplingParams(**(OFF | {"top_k": 2}))).token_ids.tolist() == [1, 2, 3, 4]


def test_top_p_keeps_the_lower_of_equals() -> None:
    logits = np.zeros(4, np.float32)
    assert process(logits, SamplingParams(**(OFF | {"top_p": 0.5}))).token_ids.tolist() == [0, 1]
    assert process(logits, SamplingParams(**(OFF | {"top_p": 0.51}))).token_ids.tolist() == [0, 1, 2]


def test_ids_that_the_model_cannot_write_are_no_trouble_in_the_text() -> None:
    params = SamplingParams(**(OFF | {"repetition_penalty": 1.5}))
    logits = row(1, 8)
    inside, outside = process(logits, params, TokenHistory([3])), process(logits, params, TokenHistory([3, 8, 99]))
    np.testing.assert_array_equal(inside.probs, outside.probs)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([3e38, -3e38, 2.9e38], np.float32)
    assert process(logits, SamplingParams(**(OFF | {"temperature": 0.01}))).token_ids.tolist() == [0]


@settings(max_examples=200)
@given(arrays(np.float32, st.integers(1, 700), elements=st.integers(-4, 4).map(float)), st.integers(1, 700))
def test_kth_largest_equals_sorting(values: Row, k: int) -> None:
    k = min(k, values.size)
    assert kth_largest(values, k) == np.sort(values)[values.size - k]


def test_kth_largest_of_a_large_row() -> None:
    values = row(2, 49_155)
    values[-3:] = 40  # beyond the last whole group
    assert [kth_largest(values, k) for k in (1, 4, 50, 192)] == [np.sort(values)[-k] for k in (1, 4, 50, 192)]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_reported(bad: float, greedy: bool) -> None:
    logits = row(0, 10)
    logits[4] = bad
    with pytest.raises(CheckpointError, match="not finite"):
        process(logits, SamplingParams(greedy=greedy))


def test_bias_outside_the_vocabulary() -> None:
    with pytest.raises(UsageError, match="logit_bias names token id 10, but the model has 10"):
        process(row(0, 10), SamplingParams(logit_bias={10: 1.0}))


def test_bias_that_forbids_everything() -> None:
    with pytest.raises(UsageError, match="forbids every token"):
        process(row(0, 3), SamplingParams(logit_bias=dict.fromkeys(range(3), -math.inf)))
