"""The torch backend writes what ``transformers``' own ``generate`` writes, with drafts and without, for many models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch

from draftsmith.errors import OutOfMemory, UnsupportedModel, UsageError
from draftsmith.model.protocol import TokenRun
from draftsmith.model.torch_backend import TorchModel
from draftsmith.speculate import Drafter, FixedLength, ModelDrafter, PromptLookupDrafter, generate
from draftsmith.types import Request, SamplingParams
from tests.support.torch_models import ARCHITECTURES, CONTEXT, VOCAB_SIZE, random_module, torch_model

PROMPT = tuple(int(i) for i in np.random.default_rng(0).integers(5, 190, 23))
NUM_NEW = 32


def written(model: TorchModel, drafter: Drafter | None = None, prompt: Sequence[int] = PROMPT) -> tuple[list[int], int]:
    """(tokens, accepted draft tokens), greedily, with 4 draft tokens a round."""
    params = SamplingParams(greedy=True, max_new_tokens=NUM_NEW, ignore_eos=True, seed=0)
    request = Request(prompt_ids=tuple(prompt), sampling=params)
    session = drafter.start(request, "coupled") if drafter is not None else None
    rounds = list(generate(model, model.new_cache(), request, session=session, policy=FixedLength(4)))
    return [i for r in rounds for i in r.token_ids], sum(r.num_accepted for r in rounds)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_that_of_transformers(architecture: str) -> None:
    """Plain, with a draft that is nearly the target, with one that is not, and with copies from the text."""
    module = random_module(architecture)
    prompt = [*PROMPT, *PROMPT[:9]]
    given = torch.tensor([prompt])
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, "pad_token_id": 0}
    expected = module.generate(given, attention_mask=torch.ones_like(given), **options)[0, len(prompt) :].tolist()
    model = TorchModel(module, max_context=CONTEXT)
    assert written(model, prompt=prompt)[0] == expected
    with torch.no_grad():
        near = random_module(architecture)
        for parameter in near.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    accepted = []
    for draft in (near, random_module(architecture, seed=1)):
        drafter = ModelDrafter(TorchModel(draft, max_context=CONTEXT), target_vocab_size=VOCAB_SIZE)
        tokens, count = written(model, drafter, prompt)
        assert tokens == expected
        accepted.append(count)
    assert written(model, PromptLookupDrafter(2, 1), prompt)[0] == expected
    assert 0 < accepted[0] < 4 * NUM_NEW  # or the caches were never cut in the middle of a draft
    assert accepted[0] > accepted[1]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text", "llama4_text"])
def test_a_cut_cache_is_as_if_the_tokens_had_never_been_read(architecture: str) -> None:
    """Beyond the sliding window, too: to any length, after which other tokens are read."""
    model = torch_model(architecture)
    ids = [int(i) for i in np.random.default_rng(1).integers(0, VOCAB_SIZE, 60)]
    cache = model.new_cache()
    model.forward([TokenRun(cache, ids)])
    for length in (45, 30, 13, 5, 0):
        cache.truncate(length)
        assert cache.length == length
        [rows] = model.forward([TokenRun(cache, [7, 8, 9], num_logits=3)])
        fresh = model.new_cache()
        [expected] = model.forward([TokenRun(fresh, [*ids[:length], 7, 8, 9], num_logits=3)])
        np.testing.assert_allclose(rows, expected, atol=2e-4)
        cache.truncate(length)


def test_a_fork_goes_its_own_way() -> None:
    model = torch_model("qwen2")
    cache = model.new_cache()
    model.forward([TokenRun(cache, list(range(40)))])
    fork = cache.fork(20)
    [left] = model.forward([TokenRun(cache, [5])])
    [right] = model.forward([TokenRun(fork, [6])])
    fresh = model.new_cache()
    [expected] = model.forward([TokenRun(fresh, [*range(20), 6])])
    np.testing.assert_allclose(right, expected, atol=2e-4)
    assert (cache.length, fork.length) == (41, 21)
    assert np.abs(left - right).max() > 0.1


def test_only_the_rows_and_entries_that_are_asked_for_come_back() -> None:
    model = torch_model("llama")
    whole = model.forward([TokenRun(model.new_cache(), [1, 2, 3], num_logits=3)])[0]
    runs = [
        TokenRun(model.new_cache(), [1, 2, 3], num_logits=2, vocab_limit=50),
        TokenRun(model.new_cache(), [1, 2, 3], num_logits=0),
        TokenRun(model.new_cache(), [1, 2, 3]),
    ]
    some, none, last = model.forward(runs)
    assert (some.shape, none.shape, last.shape) == ((2, 50), (0, VOCAB_SIZE), (1, VOCAB_SIZE))
    assert some.dtype == np.float32
    np.testing.assert_allclose(some, whole[1:, :50], atol=1e-5)
    np.testing.assert_allclose(last, whole[2:], atol=1e-5)


def test_a_long_run_goes_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch_model("mistral")
    ids = [int(i) for i in np.random.default_rng(2).integers(0, VOCAB_SIZE, 50)]
    [whole] = model.forward([TokenRun(model.new_cache(), ids, num_logits=20)])
    monkeypatch.setattr("draftsmith.model.torch_backend.model.MAX_ROWS", 8)
    cache = model.new_cache()
    [parts] = model.forward([TokenRun(cache, ids, num_logits=20)])
    assert cache.length == 50
    np.testing.assert_allclose(parts, whole, atol=2e-4)


@pytest.mark.parametrize(
    "run",
    [
        {"token_ids": []},
        {"token_ids": [VOCAB_SIZE]},
        {"token_ids": [-1]},
        {"token_ids": [1] * 9},
        {"token_ids": [1], "num_logits": 2},
        {"token_ids": [1], "vocab_limit": VOCAB_SIZE + 1},
    ],
)
def test_a_run_that_cannot_be_read_changes_no_cache(run: dict[str, object]) -> None:
    model = torch_model("llama")
    good, bad = model.new_cache(8), model.new_cache(8)
    with pytest.raises(ValueError, match=r"run of|rows of|token id"):
        model.forward([TokenRun(good, [1, 2]), TokenRun(bad, **run)])  # type: ignore[arg-type]
    assert (good.length, bad.length) == (0, 0)


def test_a_failed_step_leaves_all_caches_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch_model("llama")
    first, second = model.new_cache(), model.new_cache()
    model.forward([TokenRun(first, [1, 2]), TokenRun(second, [3])])
    real, calls = model.module.lm_head.forward, [0]

    def fail(hidden: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result: torch.Tensor = real(hidden)
        return result

    monkeypatch.setattr(model.module.lm_head, "forward", fail)
    with pytest.raises(OutOfMemory, match="not enough memory for a step of llama"):
        model.forward([TokenRun(first, [4]), TokenRun(second, [5])])
    assert (first.length, second.length) == (2, 1)


CONVOLUTION = {"layer_types": ["conv", "full_attention"]}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("mamba", {}), ("qwen3_next", {}), ("falcon_h1", {}), ("jamba", {}), ("lfm2", CONVOLUTION)],
)
def test_a_state_that_cannot_forget_is_refused(architecture: str, changes: dict[str, Any]) -> None:
    """Recurrent models, and hybrids of all kinds: states beside attention, inside its layers, convolutions."""
    module = random_module(architecture, **changes)
    with pytest.raises(UnsupportedModel, match="cannot forget single tokens") as caught:
        TorchModel(module, max_context=CONTEXT)
    assert "\n" not in str(caught.value)


def test_what_caches_take_is_counted() -> None:
    model = torch_model("llama")
    per_token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, size of a head, bytes
    assert model.cache_bytes(1) == 64 * per_token
    assert model.cache_bytes_in_use == 0
    cache = model.new_cache()
    model.forward([TokenRun(cache, list(range(100)))])
    assert model.cache_bytes_in_use == cache.num_bytes == 192 * per_token
    assert cache.growth(92) == 0
    assert cache.growth(93) == (256 - 192) * per_token
    del cache
    assert model.cache_bytes_in_use == 0


def test_a_cache_is_no_larger_than_the_context() -> None:
    model = torch_model("llama")
    with pytest.raises(UsageError, match=f"the model's context is {CONTEXT}"):
        model.new_cache(CONTEXT + 1)
    with pytest.raises(ValueError, match="cannot be cut"):
        model.new_cache().truncate(1)
