"""Real weights write the same tokens with any drafter and without: the same code as benchmarks/exactness.py, in small.

SmolLM2 is taken from the folder in $DRAFTSMITH_TEST_MODELS or from draftsmith's own cache, the Qwen pair only from that
folder. Nothing is downloaded here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.exactness import (
    DRAFT_LENGTHS,
    Comparison,
    Target,
    compare,
    load_target,
    random_draft,
    without_last_layer,
)
from draftsmith.checkpoint import resolve
from draftsmith.errors import HubError
from draftsmith.speculate import Drafter, ModelDrafter, PromptLookupDrafter

FOLDER_VARIABLE = "DRAFTSMITH_TEST_MODELS"
SMOLLM2 = "smollm2-135m-instruct-q4_1.gguf"
QWEN_TARGET = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
QWEN_DRAFT = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"

PROMPTS = {
    "list": "List the days of the week, each with one thing that people like to do on it.",
    "repeat": "Repeat this sentence five times: The tide comes in, the tide goes out, and the crab stays where it is.",
    "code": "Write a Python function that returns the greatest common divisor of two integers.",
    "edit": "Rename x to width: def area(x, height): return x * height if x > 0 and height > 0 else 0 * x",
    "explain": "Why does ice float on water? Answer in three sentences.",
    "translate": "Translate into French: The library opens at nine, and the reading room at ten.",
    "story": "Begin a story about a clockmaker whose clocks all run backwards.",
    "unicode": "What do these have in common: 猫, кот, gato, 🐈? Name the languages.",
    "sum": "A train leaves at 9:40 and arrives at 13:05. How long is the journey? Think step by step.",
}


def model_path(name: str, alias: str | None = None) -> Path:
    """The file, or the test is skipped."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None and (Path(folder) / name).is_file():
        return Path(folder) / name
    if alias is not None:
        try:
            return resolve(alias, local_only=True).path
        except HubError:
            pass
    where = f"${FOLDER_VARIABLE} names no folder with {name}"
    pytest.skip(f"{where}, and {alias} is not in the cache" if alias else where)


def check(results: Sequence[Comparison], helpful: set[str]) -> None:
    """All replies are identical, every draft length took part, and ``helpful`` drafters had tokens accepted."""
    assert [result for result in results if result.differs_at is not None] == []
    accepted = {result.drafter: 0 for result in results}
    for result in results:
        accepted[result.drafter] += result.stats.num_accepted_tokens
    assert {name for name, count in accepted.items() if count > 0} >= helpful
    assert accepted["random weights"] < 0.05 * sum(result.num_tokens for result in results)


@pytest.mark.slow
def test_smollm2_writes_the_same_with_any_drafter(tmp_path: Path) -> None:
    target = load_target(model_path(SMOLLM2, "smollm2-135m-instruct"))
    drafters: list[Drafter] = [PromptLookupDrafter(), without_last_layer(target), random_draft(target, tmp_path)]
    results = list(compare(target, drafters, PROMPTS, max_new_tokens=16))
    assert {(result.drafter, result.draft_length) for result in results} == {
        (drafter.name, length) for drafter in drafters for length in DRAFT_LENGTHS
    }
    check(results, {"lookup", "without last layer"})


@pytest.mark.slow
def test_smollm2_writes_the_same_as_its_own_draft_at_every_length() -> None:
    """A draft that is right nearly always: whole drafts are accepted, and EOS and the last token fall inside them."""
    target = load_target(model_path(SMOLLM2, "smollm2-135m-instruct"))
    twin = ModelDrafter(target.model, target_vocab_size=target.model.vocab_size, name="itself")
    some = {"repeat": PROMPTS["repeat"]}
    results = list(compare(target, [twin], some, max_new_tokens=24, every_length=True))
    assert [result for result in results if result.differs_at is not None] == []
    for result in results:
        assert result.stats.num_accepted_tokens == result.stats.num_draft_tokens, result


@pytest.mark.slow
def test_qwen_writes_the_same_with_its_small_brother(tmp_path: Path) -> None:
    path, draft_path = model_path(QWEN_TARGET), model_path(QWEN_DRAFT)
    target: Target = load_target(path)
    small = load_target(draft_path)
    drafters: list[Drafter] = [
        PromptLookupDrafter(),
        ModelDrafter(small.model, target_vocab_size=target.model.vocab_size, name="0.5B"),
        random_draft(target, tmp_path),
    ]
    some = {name: PROMPTS[name] for name in ("code", "edit")}
    results = list(compare(target, drafters, some, max_new_tokens=16, lengths=(3, 8, 16)))
    check(results, {"0.5B"})
