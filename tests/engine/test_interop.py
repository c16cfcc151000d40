"""draftsmith inside ``transformers``: its drafters in ``model.generate``, its draft models as ``assistant_model``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM

from draftsmith.engine.interop import speculative_generate
from draftsmith.engine.options import EngineOptions
from draftsmith.errors import UsageError
from tests.support.tiny import tiny_folder
from tests.support.torch_models import random_module

PROMPT = torch.tensor([[5, 9, 5, 9, 77, 5, 9, 5, 9, 77, 5]])


def loaded(folder: Path) -> Any:
    module: Any = AutoModelForCausalLM.from_pretrained(folder)
    return module.eval()


def generated(module: Any, **options: Any) -> list[int]:
    given = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 24, "pad_token_id": 0, "do_sample": False}
    ids: list[int] = module.generate(PROMPT, **{**given, **options})[0].tolist()
    return ids


@pytest.mark.parametrize("architecture", ["llama", "olmo2", "mistral"])
@pytest.mark.parametrize("draft", ["lookup", "suffix"])
def test_generate_writes_the_same_with_our_drafters(architecture: str, draft: str) -> None:
    module = random_module(architecture)
    for options in ({"repetition_penalty": 1.3}, {}):
        expected = generated(module, **options)
        assert generated(module, custom_generate=speculative_generate(draft), **options) == expected
    stop = expected[PROMPT.shape[1] + 6]
    cut = generated(module, eos_token_id=stop)
    assert generated(module, custom_generate=speculative_generate(draft), eos_token_id=stop) == cut
    assert cut[-1] == stop


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_draft_model_of_either_backend(backend: Any, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    module = loaded(folder)
    options = EngineOptions(backend=backend, dtype="float32")
    function = speculative_generate(folder, num_draft_tokens=5, options=options)
    assert generated(module, custom_generate=function) == generated(module)


def test_torch_seeds_govern_what_is_sampled() -> None:
    module = random_module("llama")
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 1.5, "top_k": 40, "top_p": 0.9}
        texts.append(generated(module, custom_generate=speculative_generate("lookup"), **options))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"min_length": 30, "eos_token_id": 3}, "MinLengthLogitsProcessor is not known to draftsmith"),
        ({"num_beams": 2}, "num_beams is 2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is on"),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        generated(random_module("llama"), custom_generate=speculative_generate("lookup"), **options)


def test_several_prompts_are_refused() -> None:
    with pytest.raises(UsageError, match="2 prompts at once"):
        random_module("llama").generate(
            PROMPT.repeat(2, 1), custom_generate=speculative_generate("lookup"), max_new_tokens=3, pad_token_id=0
        )


def test_our_drafts_are_folders_that_transformers_takes_as_assistant(tmp_path: Path) -> None:
    target, draft = (loaded(tiny_folder(tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert generated(target, assistant_model=draft) == generated(target)
