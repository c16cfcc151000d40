"""Drafts that torch writes in one call: the tokens are those of one forward after the other, and so is the cache."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch

from draftsmith.errors import CheckpointError, OutOfMemory
from draftsmith.model.protocol import DraftingModel, DraftRun, TokenChoice, TokenRun
from draftsmith.model.torch_backend import TorchModel
from draftsmith.sampling import Noise, probability_of, process
from draftsmith.types import SamplingParams
from tests.support.torch_models import CONTEXT, VOCAB_SIZE, random_module

IDS = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB_SIZE, 90)]
GREEDY = TokenChoice(greedy=True, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0)


def made(architecture: str = "llama", *, ahead: bool, graphs: bool, **options: object) -> TorchModel:
    module = random_module(architecture)
    model = TorchModel(module, max_context=CONTEXT, graphs=graphs, **options)  # type: ignore[arg-type]
    model.writes_ahead = ahead
    assert model.has_graphs == graphs
    return model


class Wants:
    """Wants so many tokens, and remembers their confidences."""

    def __init__(self, count: int) -> None:
        self.count, self.confidences = count, list[float]()

    def __call__(self, confidence: float) -> bool:
        self.confidences.append(confidence)
        return len(self.confidences) < self.count


def step_by_step(
    model: TorchModel, ids: Sequence[int], count: int, choice: TokenChoice, limit: int | None
) -> tuple[list[int], list[float]]:
    """The draft and its confidences, by forwards alone, on a fresh cache."""
    cache, drawn, confidences = model.new_cache(), list[int](), list[float]()
    params = SamplingParams(
        greedy=choice.greedy, temperature=choice.temperature, top_k=choice.top_k, top_p=choice.top_p, seed=choice.seed
    )
    unread = list(ids)
    for _ in range(count):
        [[row]] = model.forward([TokenRun(cache, unread, vocab_limit=limit)])
        q = process(row, params)
        drawn.append(Noise(choice.seed).sample(q, choice.position + len(drawn)))
        soft = np.exp(row - row.max())
        confidences.append(float(soft[drawn[-1]] / soft.sum()) if choice.greedy else probability_of(q, drawn[-1]))
        unread = drawn[-1:]
    return drawn, confidences


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("limit", [None, 120])
def test_greedy_drafts_on_the_device_are_those_of_forwards(graphs: bool, limit: int | None) -> None:
    """Of all lengths, longer and shorter than the one before, across slabs, after one token and after many."""
    model, plain = made(ahead=True, graphs=graphs), made(ahead=False, graphs=False)
    assert isinstance(model, DraftingModel)
    cache = model.new_cache()
    text = IDS[:40]
    for count in (4, 7, 7, 1, 12, 2, 5, 3):
        wants = Wants(count)
        run = DraftRun(cache, text[cache.length :], 20, GREEDY, wants, limit)
        [drawn] = model.draft([run])
        expected, confidences = step_by_step(plain, text, count, GREEDY, limit)
        assert drawn == expected
        np.testing.assert_allclose(wants.confidences, confidences, rtol=2e-3)
        assert cache.length == len(text) + count - 1
        kept = count // 2
        text += [*drawn[:kept], IDS[len(text) % 80]]
        cache.truncate(min(cache.length, len(text) - 1))
    assert cache.length > 60  # another slab


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text", "gpt2", "mixtral", "deepseek_v3"])
def test_models_without_slabs_write_ahead_too(architecture: str) -> None:
    """Sliding windows, biases by position, experts: the ids never leave the device in between."""
    model, plain = (made(architecture, ahead=ahead, graphs=False) for ahead in (True, False))
    [drawn] = model.draft([DraftRun(model.new_cache(), IDS[:30], 6, GREEDY, Wants(6))])
    assert drawn == step_by_step(plain, IDS[:30], 6, GREEDY, None)[0]


def test_a_fixed_length_is_fetched_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(ahead=True, graphs=True)
    cache = model.new_cache()
    calls: list[int] = []
    chain = model.chain

    def counted(
        ids: list[int], cache: object, count: int, limit: int, choice: TokenChoice
    ) -> tuple[list[int], list[float]]:
        calls.append(count)
        return chain(ids, cache, count, limit, choice)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "chain", counted)
    text = IDS[:20]
    for _ in range(3):
        [drawn] = model.draft([DraftRun(cache, text[cache.length :], 50, GREEDY, Wants(7))])
        text += drawn[:2]
        cache.truncate(len(text) - 1)
    assert calls == [4, 2, 2, 7, 7]  # it learns the length in the first round


@pytest.mark.parametrize("graphs", [False, True])
def test_sampled_drafts_have_the_targets_noise(graphs: bool) -> None:
    choice = TokenChoice(greedy=False, temperature=0.9, top_k=40, top_p=0.95, min_p=0.0, seed=11, position=30)
    model = made(ahead=True, graphs=graphs)
    wants = Wants(9)
    [drawn] = model.draft([DraftRun(model.new_cache(), IDS[:30], 9, choice, wants)])
    expected, confidences = step_by_step(made(ahead=False, graphs=False), IDS[:30], 9, choice, None)
    assert drawn == expected
    np.testing.assert_allclose(wants.confidences, confidences, rtol=2e-3)
    assert drawn != step_by_step(model, IDS[:30], 9, GREEDY, None)[0]


@pytest.mark.parametrize("choice", [GREEDY, TokenChoice(False, 1.0, 0, 1.0, 0.0, 0, 0)])
def test_logits_that_are_no_numbers_are_told_and_leave_the_cache(choice: TokenChoice) -> None:
    model = made(ahead=True, graphs=True)
    cache = model.new_cache()
    model.forward([TokenRun(cache, IDS[:5])])
    with torch.no_grad():
        model.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="draft model's logits are not finite numbers"):
        model.draft([DraftRun(cache, IDS[5:9], 4, choice, Wants(4))])
    assert cache.length == 5


def test_a_draft_that_fails_or_does_not_fit_leaves_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(ahead=True, graphs=False)
    cache = model.new_cache(16)
    model.forward([TokenRun(cache, IDS[:5])])
    for run in (DraftRun(cache, IDS[:8], 5, GREEDY, Wants(1)), DraftRun(cache, [], 1, GREEDY, Wants(1))):
        with pytest.raises(ValueError, match="does not fit"):
            model.draft([run])
    [drawn] = model.draft([DraftRun(cache, IDS[:8], 4, GREEDY, Wants(9))])
    assert len(drawn) == 4
    cache.truncate(5)
    monkeypatch.setattr(model, "rows", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(OutOfMemory, match="not enough memory for a step"):
        model.draft([DraftRun(cache, IDS[:2], 3, GREEDY, Wants(3))])
    assert cache.length == 5
