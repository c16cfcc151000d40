"""The batched engine over the native backend: the reference loop's tokens, to the last one, from real caches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.checkpoint import open_checkpoint
from draftsmith.engine import Engine, EngineLimits, Handle, RequestOptions
from draftsmith.model.native import NativeModel
from draftsmith.speculate import (
    CostModel,
    Drafter,
    ModelDrafter,
    PromptLookupDrafter,
    Round,
    generate,
)
from draftsmith.types import Request, SamplingParams, VerificationRule
from tests.support.fakes import EOS
from tests.support.tiny import tiny_folder

CONTEXT = 320
GREEDY = SamplingParams(greedy=True, max_new_tokens=60)
SEEDED = SamplingParams(seed=5, max_new_tokens=60, temperature=0.9, top_k=12, repetition_penalty=1.1, logprobs=1)


class Models:
    """A target and a draft model; the caches are float32, so a block takes 32 KiB."""

    def __init__(self, folder: Path) -> None:
        self.target, self.draft = (
            NativeModel.load(
                open_checkpoint(tiny_folder(folder / str(seed), seed=seed, max_context=CONTEXT)), threads=1
            )
            for seed in range(2)
        )
        width = self.target.vocab_size
        self.drafters: dict[str, Drafter | None] = {
            "none": None,
            "lookup": PromptLookupDrafter(3, 1),
            "stranger": ModelDrafter(self.draft, target_vocab_size=width),
            "itself": ModelDrafter(self.target, target_vocab_size=width),
        }

    def alone(self, request: Request) -> list[Round]:
        return list(generate(self.target, self.target.new_cache(), request, eos_ids=(EOS,)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRAFTSMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Models(tmp_path_factory.mktemp("models"))


def tokens(rounds: list[Round]) -> list[int]:
    return [token_id for written in rounds for token_id in written.token_ids]


def logprobs(rounds: list[Round]) -> list[object]:
    return [value for written in rounds for value in written.logprobs]


REQUESTS = st.lists(
    st.builds(
        lambda beginning, size, sampling, seed, k: (
            Request(
                prompt_ids=(*(beginning * 200)[:size].encode(), 97 + seed),
                sampling=SamplingParams(seed=seed) if sampling is None else sampling,
            ),
            RequestOptions(num_draft_tokens=k),
        ),
        st.sampled_from(["abc d", "e", "fgh\nij"]),
        st.integers(0, 200),
        st.sampled_from([GREEDY, SEEDED, None]),
        st.integers(0, 3),
        st.sampled_from([None, 0, 3, 9]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40)
@given(
    requests=REQUESTS,
    drafter=st.sampled_from(["none", "lookup", "stranger", "itself"]),
    blocks=st.integers(6, 30),
    prefill=st.integers(1, 256),
    kept=st.integers(0, 4),
)
def test_as_alone(
    models: Models,
    requests: list[tuple[Request, RequestOptions]],
    drafter: str,
    blocks: int,
    prefill: int,
    kept: int,
) -> None:
    limits = EngineLimits(
        max_running=4,
        prefill_tokens=prefill,
        prefill_tokens_beside=max(1, prefill // 4),
        kv_bytes=blocks * models.target.cache_bytes(1) * (2 if drafter in ("stranger", "itself") else 1),
        max_kept_texts=kept,
    )
    engine = Engine(
        models.target,
        eos_ids=(EOS,),
        drafter=models.drafters[drafter],
        draft_model=models.draft if drafter == "stranger" else None,
        costs=lambda: CostModel(0.2),
        limits=limits,
    )
    handles = [engine.submit(*request) for request in requests]
    while not engine.idle:
        engine.step()
    for handle in handles:
        rounds, expected = handle.take(), models.alone(handle.request)
        assert handle.error is None
        room = engine.capacity - len(handle.request.prompt_ids)
        assert tokens(rounds) == tokens(expected)[:room]
        assert logprobs(rounds) == logprobs(expected)[:room]
    del engine
    assert models.target.cache_bytes_in_use == models.draft.cache_bytes_in_use == 0


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_preemption_is_not_seen(models: Models, rule: VerificationRule) -> None:
    """Under the rejection rule too, as long as the draft's length is fixed and nothing is sampled."""
    block = models.target.cache_bytes(1)
    engine = Engine(
        models.target,
        drafter=models.drafters["stranger"],
        draft_model=models.draft,
        num_draft_tokens=3,
        rule=rule,
        limits=EngineLimits(kv_bytes=12 * block, max_kept_texts=0),
    )
    params = GREEDY if rule == "rejection" else SEEDED
    requests = [Request(prompt_ids=tuple(text.encode() * 25), sampling=params) for text in ("abcd", "efgh", "ijkl")]
    handles = [engine.submit(request) for request in requests]
    while not engine.idle:
        engine.step()
        assert models.target.cache_bytes_in_use + models.draft.cache_bytes_in_use <= 13 * block
    assert engine.stats.num_preemptions > 0
    for handle in handles:
        assert tokens(handle.take()) == tokens(models.alone(handle.request))


def test_samples_share_the_memory_of_their_prompt(models: Models) -> None:
    engine = Engine(models.target, limits=EngineLimits(max_kept_texts=0))
    ids = tuple(b"abcdefgh" * 30)
    handles: list[Handle] = []
    for seed in range(4):
        sampling = SamplingParams(seed=seed, max_new_tokens=10, temperature=1.2)
        handles.append(engine.submit(Request(prompt_ids=ids, sampling=sampling)))
    most = 0
    while not engine.idle:
        engine.step()
        most = max(most, models.target.cache_bytes_in_use)
    assert most <= models.target.cache_bytes(len(ids)) + 4 * models.target.cache_bytes(1)
    for handle in handles:
        assert tokens(handle.take()) == tokens(models.alone(handle.request))
