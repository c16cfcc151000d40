"""Steps of fixed shapes on slabs, which a GPU replays as graphs: here the same code by plain calls."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch

from draftsmith.model.protocol import TokenRun
from draftsmith.model.torch_backend import TorchModel
from draftsmith.model.torch_backend.steps import slab_size
from draftsmith.speculate import FixedLength, ModelDrafter, generate
from draftsmith.types import Request, SamplingParams
from tests.support.torch_models import CONTEXT, VOCAB_SIZE, random_module

IDS = [int(i) for i in np.random.default_rng(3).integers(0, VOCAB_SIZE, 200)]


def stepped(architecture: str = "llama", **options: object) -> TorchModel:
    return TorchModel(random_module(architecture), max_context=CONTEXT, graphs=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo2", "gpt_neox", "qwen3_moe"])
def test_steps_give_the_logits_of_the_model_itself(architecture: str) -> None:
    """Across the sizes of slabs, with runs of all lengths, and after cuts."""
    model = stepped(architecture)
    assert model.has_graphs
    cache = model.new_cache()
    model.forward([TokenRun(cache, IDS[:50], num_logits=0)])
    plain = TorchModel(model.module, max_context=CONTEXT)
    [expected] = plain.forward([TokenRun(plain.new_cache(), IDS, num_logits=200)])
    begin = 50
    for size in [1, 2, 3, 5, 8, 7, 9, 20, 1, 1, 8, 30, 8, 8]:
        [rows] = model.forward([TokenRun(cache, IDS[begin : begin + size], num_logits=size)])
        np.testing.assert_allclose(rows, expected[begin : begin + size], atol=3e-4)
        begin += size
        cache.truncate(begin - size // 2)
        begin = cache.length
    assert begin > 100


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text", "bloom"])
def test_models_that_make_masks_of_their_own_run_without(architecture: str) -> None:
    assert not stepped(architecture).has_graphs


def test_speculation_writes_the_same() -> None:
    params = SamplingParams(greedy=True, max_new_tokens=60, ignore_eos=True, seed=0)
    request = Request(prompt_ids=tuple(IDS[:40]), sampling=params)
    texts = []
    for graphs in (False, True):
        model = TorchModel(random_module("llama"), max_context=CONTEXT, graphs=graphs)
        draft = stepped()
        draft.writes_ahead = graphs  # as on a GPU
        drafter = ModelDrafter(draft, target_vocab_size=VOCAB_SIZE)
        session = drafter.start(request, "coupled")
        rounds = generate(model, model.new_cache(), request, session=session, policy=FixedLength(5))
        texts.append([token for written in rounds for token in written.token_ids])
    assert texts[0] == texts[1]


def test_the_exact_mode_has_steps_too() -> None:
    module = random_module("llama", dtype=torch.bfloat16)
    model = TorchModel(module, max_context=CONTEXT, graphs=True, exact_width=8)
    assert model.has_graphs
    assert model.find_difference() is None


def test_a_slab_serves_the_next_text_with_the_steps_that_it_has() -> None:
    model = stepped()
    cache = model.new_cache()
    model.forward([TokenRun(cache, IDS[:10])])
    [first] = model.forward([TokenRun(cache, [5])])
    address = cache.buffers()[0][0].data_ptr()
    del cache
    gc.collect()
    again = model.new_cache()
    model.forward([TokenRun(again, IDS[:10])])
    [second] = model.forward([TokenRun(again, [5])])
    assert again.buffers()[0][0].data_ptr() == address
    assert first.tobytes() == second.tobytes()


def test_two_texts_have_two_slabs_and_a_fork_its_own() -> None:
    model = stepped()
    one, other = model.new_cache(), model.new_cache()
    model.forward([TokenRun(one, IDS[:10]), TokenRun(other, IDS[50:60])])
    fork = one.fork(5)
    a, b = model.forward([TokenRun(fork, [9]), TokenRun(one, [5])])
    fresh = TorchModel(model.module, max_context=CONTEXT)
    [expected_a] = fresh.forward([TokenRun(fresh.new_cache(), [*IDS[:5], 9])])
    [expected_b] = fresh.forward([TokenRun(fresh.new_cache(), [*IDS[:10], 5])])
    np.testing.assert_allclose(a, expected_a, atol=2e-4)
    np.testing.assert_allclose(b, expected_b, atol=2e-4)


def test_at_the_end_of_the_context_steps_are_not_filled_up() -> None:
    model = stepped("gpt_neox")
    cache = model.new_cache()
    model.forward([TokenRun(cache, IDS + IDS[: CONTEXT - 203])])
    [rows] = model.forward([TokenRun(cache, [1, 2, 3], num_logits=3)])
    assert cache.length == CONTEXT
    assert np.isfinite(rows).all()


def test_slab_sizes() -> None:
    assert [slab_size(n) for n in (1, 64, 65, 128, 129, 4096)] == [64, 64, 128, 128, 256, 4096]
