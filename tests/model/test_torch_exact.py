"""The exact mode: with a drafter the same tokens as without, in bfloat16, where the last bits decide often."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch

from draftsmith.errors import UsageError
from draftsmith.model.protocol import TokenRun
from draftsmith.model.torch_backend import TorchModel, TorchOptions, load_torch_model
from draftsmith.speculate import FixedLength, ModelDrafter, PromptLookupDrafter, generate
from draftsmith.types import Request, SamplingParams
from tests.support.torch_models import CONTEXT, VOCAB_SIZE, random_module, torch_folder

ARCHITECTURES = ("llama", "mistral", "gemma3_text", "olmo2")
PARAMS = (
    SamplingParams(greedy=True, max_new_tokens=24, ignore_eos=True, seed=0),
    SamplingParams(temperature=1.0, top_k=0, top_p=0.9, max_new_tokens=24, ignore_eos=True, seed=11),
    SamplingParams(greedy=True, repetition_penalty=1.3, max_new_tokens=24, ignore_eos=True, seed=0),
)


def twin_module(architecture: str = "llama", **changes: Any) -> Any:
    """Every id has a twin whose logit is nearly its own, so that the noise of bfloat16 decides often."""
    module = random_module(architecture, dtype=torch.bfloat16, **changes)
    with torch.no_grad():
        rows = module.get_output_embeddings().weight
        rows[1::2] = (rows[0:-1:2].float() * (1 + 0.02 * torch.randn(VOCAB_SIZE // 2, rows.shape[1]))).to(rows.dtype)
    return module


def written(model: TorchModel, params: SamplingParams, prompt: list[int], k: int | None, lookup: bool) -> list[int]:
    request = Request(prompt_ids=tuple(prompt), sampling=params)
    drafter = PromptLookupDrafter(2, 1) if lookup else ModelDrafter(model, target_vocab_size=VOCAB_SIZE)
    session = drafter.start(request, "coupled") if k is not None else None
    rounds = generate(model, model.new_cache(), request, session=session, policy=FixedLength(k or 1))
    return [token for written in rounds for token in written.token_ids]


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(4)
    return [[int(i) for i in rng.integers(0, VOCAB_SIZE, length)] for length in rng.integers(3, 70, count)]


def test_without_it_texts_differ_now_and_then_and_with_it_never() -> None:
    """The draft is the model itself, so all that can go wrong is arithmetic."""
    module = twin_module(num_hidden_layers=6)
    different = {None: 0, 8: 0}
    for width in different:
        model = TorchModel(module, max_context=CONTEXT, exact_width=width)
        for prompt in prompts(8):
            plain = written(model, PARAMS[0], prompt, None, lookup=False)
            different[width] += written(model, PARAMS[0], prompt, 4, lookup=False) != plain
    assert different[8] == 0
    if not different[None]:
        pytest.skip("on this processor bfloat16 gives the same bits without the mode, too")


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_text_at_every_draft_length(architecture: str, params: SamplingParams) -> None:
    """Sampled and with penalties, too; drafts longer than a step are checked in several."""
    model = TorchModel(twin_module(architecture), max_context=CONTEXT, exact_width=8)
    prompt = prompts(1)[0] * 2
    plain = written(model, params, prompt, None, lookup=False)
    for k, lookup in ((2, False), (7, False), (13, False), (20, True)):
        assert written(model, params, prompt, k, lookup) == plain, (k, lookup)


def test_the_bits_of_every_row_are_those_of_a_row_alone() -> None:
    model = TorchModel(twin_module(), max_context=CONTEXT, exact_width=8)
    assert model.find_difference() is None
    ids = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB_SIZE, 30)]
    one, several = model.new_cache(), model.new_cache()
    rows = [model.forward([TokenRun(one, [i])])[0][0].tobytes() for i in ids]
    for begin, end in ((0, 1), (1, 9), (9, 10), (10, 29), (29, 30)):
        [found] = model.forward([TokenRun(several, ids[begin:end], num_logits=end - begin)])
        assert [row.tobytes() for row in found] == rows[begin:end]
    assert one.length == several.length == 30


def test_a_cut_cache_has_forgotten_what_filled_a_step_up() -> None:
    model = TorchModel(twin_module("mistral"), max_context=CONTEXT, exact_width=8)
    cache, fresh = model.new_cache(), model.new_cache()
    model.forward([TokenRun(cache, [5, 6, 7, 8, 9], num_logits=5)])
    cache.truncate(2)
    model.forward([TokenRun(fresh, [5, 6], num_logits=2)])
    [again], [expected] = (model.forward([TokenRun(c, [4, 3], num_logits=2)]) for c in (cache, fresh))
    assert again.tobytes() == expected.tobytes()


def test_a_model_that_fails_the_check_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = torch_folder(tmp_path / "model", "llama")
    assert load_torch_model(folder, "model", TorchOptions(exact=True)).exact_width == 8
    monkeypatch.setattr(TorchModel, "find_difference", lambda _: 0.25)
    with pytest.raises(
        UsageError, match=r"exact is on, but model on cpu in float32 gives other logits \(by up to 0.25"
    ):
        load_torch_model(folder, "model", TorchOptions(exact=True))


def test_experts_are_refused(tmp_path: Any) -> None:
    folder = torch_folder(tmp_path / "model", "mixtral")
    with pytest.raises(UsageError, match="each expert of model sees as many tokens as happen to choose it"):
        load_torch_model(folder, "model", TorchOptions(exact=True))


def test_the_check_finds_what_the_mode_undoes() -> None:
    difference = TorchModel(twin_module(), max_context=CONTEXT).find_difference()
    if difference is None:
        pytest.skip("on this processor bfloat16 gives the same bits without the mode, too")
    assert 0 < difference < 1
