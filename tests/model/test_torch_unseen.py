"""Drafts that nobody sees before they are checked: the host waits once a round, and the text is what it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("transformers")

import numpy as np
import torch

from draftsmith.engine.batch import Engine
from draftsmith.engine.calibrate import StepCosts
from draftsmith.engine.handle import RequestOptions
from draftsmith.engine.live import LiveCosts
from draftsmith.errors import CheckpointError, OutOfMemory
from draftsmith.model.protocol import (
    Checked,
    CheckRun,
    DeviceModel,
    DraftRun,
    TokenChoice,
    TokenRun,
    UnseenDraft,
    UnseenRun,
)
from draftsmith.model.torch_backend import TorchModel, transfer
from draftsmith.model.torch_backend.sampled import Sampled, uniforms
from draftsmith.sampling.noise import philox_bits
from draftsmith.speculate import AutoLength, CostModel, FixedLength, LengthPolicy, ModelDrafter, RoundTimes, generate
from draftsmith.types import Request, SamplingParams, Verdict, VerificationRule
from tests.support.torch_models import CONTEXT, VOCAB_SIZE, random_module
from tests.support.waits import counted_fetches

IDS = [int(i) for i in np.random.default_rng(8).integers(0, VOCAB_SIZE, 120)]
GREEDY = TokenChoice(greedy=True, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, position=0)
PARAMS = SamplingParams(greedy=True, max_new_tokens=40, ignore_eos=True, seed=0)
ARCHITECTURES = ("llama", "mistral", "gemma3_text", "gpt2", "gpt_neox", "olmo2", "mixtral", "deepseek_v3")


def near(module: Any) -> Any:
    """Another model that mostly agrees with it."""
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return module


def device_model(module: Any, *, graphs: bool = False, **options: Any) -> TorchModel:
    """As on a GPU."""
    model = TorchModel(module, max_context=CONTEXT, graphs=graphs, **options)
    model.writes_ahead, model.place = options.get("exact_width") is None, "cpu"
    assert isinstance(model, DeviceModel)
    return model


def pair(architecture: str = "llama", *, graphs: bool = False) -> tuple[TorchModel, TorchModel]:
    """A target, and a draft that mostly agrees with it."""
    return (
        device_model(random_module(architecture), graphs=graphs),
        device_model(near(random_module(architecture)), graphs=graphs),
    )


def plain(target: TorchModel, prompt: Sequence[int], params: SamplingParams = PARAMS) -> list[int]:
    request = Request(prompt_ids=tuple(prompt), sampling=params)
    return [i for written in generate(target, target.new_cache(), request) for i in written.token_ids]


class Heard:
    """What rounds were like: their draft lengths, and whether they were waited for apart."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.apart: list[bool] = []

    def __call__(self, times: RoundTimes) -> None:
        self.lengths.append(times.num_draft_tokens)
        self.apart.append(times.apart)


def speculative(
    target: TorchModel,
    draft: TorchModel,
    policy: LengthPolicy,
    params: SamplingParams = PARAMS,
    *,
    rule: VerificationRule = "coupled",
    each: Callable[[], object] = lambda: None,
) -> tuple[list[int], Heard]:
    request, heard = Request(prompt_ids=tuple(IDS[:30]), sampling=params), Heard()
    session = ModelDrafter(draft, target_vocab_size=VOCAB_SIZE).start(request, rule)
    text: list[int] = []
    for written in generate(
        target, target.new_cache(), request, session=session, policy=policy, rule=rule, on_round=heard
    ):
        text += written.token_ids
        each()
    return text, heard


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_round_waits_once(architecture: str, graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third on: the prompt's round drafts nothing, and the first draft is seen, which tells its length."""
    target, draft = pair(architecture, graphs=graphs)
    if architecture in ("llama", "olmo2", "gpt_neox"):
        assert target.has_graphs == draft.has_graphs == graphs
    expected = plain(target, IDS[:30])
    with counted_fetches(monkeypatch) as fetches:
        counts: list[int] = []
        text, heard = speculative(target, draft, FixedLength(4), each=lambda: counts.append(fetches.count))
    assert text == expected
    assert heard.apart[0]
    assert not any(heard.apart[1:-1])  # the last round may have no room for a draft
    waits = np.diff(counts[1:])
    assert len(waits) > 5
    assert set(waits) == {1}


def test_a_batch_waits_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    target, draft = pair(graphs=True)
    prompts = [IDS[:20], IDS[20:55], IDS[60:90]]
    expected = [plain(target, prompt) for prompt in prompts]
    drafter = ModelDrafter(draft, target_vocab_size=VOCAB_SIZE)
    engine = Engine(target, drafter=drafter, draft_model=draft, num_draft_tokens=4)
    with counted_fetches(monkeypatch) as fetches:
        handles = [engine.submit(Request(prompt_ids=tuple(prompt), sampling=PARAMS)) for prompt in prompts]
        counts = []
        while not any(handle.finished for handle in handles):
            engine.step()
            counts.append(fetches.count)
    while not engine.idle:
        engine.step()
    assert [[i for written in handle.take() for i in written.token_ids] for handle in handles] == expected
    assert set(np.diff(counts[4:])) == {1}
    assert len(counts) > 8


@pytest.mark.parametrize("exact_width", [None, 8])
@pytest.mark.parametrize("limit", [None, 120])
def test_unseen_drafts_and_choices_are_those_of_drafts_and_forwards(limit: int | None, exact_width: int | None) -> None:
    """Ids, probabilities, choices and caches, whatever the lengths, with several texts at once."""
    draft, other = device_model(random_module("llama"), graphs=True), device_model(random_module("llama"))
    target = device_model(near(random_module("llama")), exact_width=exact_width)
    texts = [IDS[:40], IDS[40:49]]
    caches = [(draft.new_cache(), target.new_cache()) for _ in texts]
    for count in (3, 7, 1, 12):
        unseen = draft.draft_unseen(
            [UnseenRun(mine, text[mine.length :], count, limit) for text, (mine, _) in zip(texts, caches, strict=True)]
        )
        assert [len(each) for each in unseen] == [count, count]
        runs = [
            CheckRun(its, text[its.length :], each) for text, (_, its), each in zip(texts, caches, unseen, strict=True)
        ]
        for text, (mine, its), found in zip(texts, caches, target.check(runs), strict=True):
            expected, confidences = seen(other, text, count, limit)
            assert found.draft_ids == tuple(expected)
            np.testing.assert_allclose(found.confidences, confidences, rtol=2e-3)
            [rows] = target.forward([TokenRun(target.new_cache(), [*text, *expected], num_logits=count + 1)])
            assert found.choices == tuple(rows.argmax(1).tolist())
            assert (mine.length, its.length) == (len(text) + count - 1, len(text) + count)
            text += [*expected[: count // 2], IDS[len(text)]]
            for cache in (mine, its):
                cache.truncate(min(cache.length, len(text) - 1))


def seen(model: TorchModel, text: Sequence[int], count: int, limit: int | None) -> tuple[list[int], list[float]]:
    """The draft and its confidences, by the way on which the host sees every token."""
    model.writes_ahead = False
    confidences: list[float] = []

    def wants_more(confidence: float) -> bool:
        confidences.append(confidence)
        return True

    [drawn] = model.draft([DraftRun(model.new_cache(), text, count, GREEDY, wants_more, limit)])
    return drawn, confidences


SAMPLED = SamplingParams(temperature=0.8, top_k=0, top_p=0.95, max_new_tokens=40, ignore_eos=True, seed=3)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.3, "top_p": 1.0},
        {"top_k": 30, "min_p": 0.02},
        {"logprobs": 2},
        {"greedy": True, "logprobs": 2},
    ],
)
def test_sampled_rounds_wait_once_too(changes: dict[str, Any], graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's logits come with the draft; its draws are the host's, so the text is the plain one."""
    target, draft = pair(graphs=graphs)
    params = replace(SAMPLED, **changes)
    expected = plain(target, IDS[:30], params)
    with counted_fetches(monkeypatch) as fetches:
        counts: list[int] = []
        text, heard = speculative(target, draft, FixedLength(4), params, each=lambda: counts.append(fetches.count))
    assert text == expected
    assert not any(heard.apart[1:-1])
    assert set(np.diff(counts[1:])) == {1}
    assert len(text) / len(heard.apart) > 1.5  # drafts are accepted, as they share the target's noise


def test_what_drafts_cannot_know_is_drafted_in_sight() -> None:
    target, draft = pair()
    for changes in ({"repetition_penalty": 1.2}, {"logit_bias": {5: 2.0}}):
        params = replace(PARAMS, **changes)
        text, heard = speculative(target, draft, FixedLength(3), params)
        assert all(heard.apart)
        assert text == plain(target, IDS[:30], params)
    _, heard = speculative(target, draft, FixedLength(3), SAMPLED, rule="rejection")
    assert all(heard.apart)  # the rule asks what the draft was drawn from


def test_processors_of_the_target_get_its_logits() -> None:
    """They are not the draft's business, so drafts may go unseen."""

    def forbids_most(ids: Sequence[int], scores: Any) -> Any:
        return np.where(np.arange(len(scores)) % 5 == len(ids) % 5, scores, -np.inf)

    target, draft = pair()
    params = replace(PARAMS, logits_processors=(forbids_most,))
    text, heard = speculative(target, draft, FixedLength(3), params)
    assert not all(heard.apart)
    assert text == plain(target, IDS[:30], params) != plain(target, IDS[:30])


@pytest.mark.parametrize("seed", [0, 7, (1 << 62) + 12345])
def test_the_devices_noise_is_the_hosts(seed: int) -> None:
    ids = torch.randperm(150_000)[:2000]
    sampler = Sampled(torch.device("cpu"), 8)
    for position in (0, 5, 2**31 + 3):
        words = torch.tensor([seed & 0xFFFFFFFF, seed >> 32])
        found = uniforms(ids, torch.tensor(position), words, sampler.key_steps, sampler.multipliers)
        bits = philox_bits(ids.numpy(), seed, position, 0, 0)
        assert found.numpy().tobytes() == ((bits.astype(np.float64) + 0.5) * 2.0**-53).tobytes()


def test_a_target_that_is_elsewhere_gets_drafts_that_were_seen() -> None:
    target, draft = pair()
    for place in (None, "cuda"):
        draft.place = place
        text, heard = speculative(target, draft, FixedLength(4))
        assert all(heard.apart)
        assert text == plain(target, IDS[:30])
    stranger: Any = [1, 2]
    with pytest.raises(ValueError, match="is not one that a model on cpu has made for this one"):
        target.check([CheckRun(target.new_cache(), [1], stranger)])
    wide = device_model(random_module("llama", vocab_size=VOCAB_SIZE + 1))
    with pytest.raises(ValueError, match="is not one that"):
        target.check([CheckRun(target.new_cache(), [1], wide.draft_unseen([UnseenRun(wide.new_cache(), [1], 1)])[0])])


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_fixed_length_is_kept(length: int) -> None:
    target, draft = pair()
    text, heard = speculative(target, draft, FixedLength(length))
    assert text == plain(target, IDS[:30])
    assert set(heard.lengths[:3]) == {length}  # at the end of the reply there is less room
    assert max(heard.lengths) == length


class ByConfidence:
    """Wants more while every token so far had more confidence than ``least``; in the first rounds, one token."""

    def __init__(self, least: float) -> None:
        self.least = least
        self.rounds = 0

    def begin(self, unread: int, left: int | None = None) -> None:
        """Nothing depends on it."""

    def repays(self, unread: int, left: int) -> bool:
        del unread, left
        return True

    def wants_more(
        self, confidences: Sequence[float], upcoming: float | None, *, instead: bool = False, drawn: int = 0
    ) -> bool:
        del upcoming, instead, drawn
        return not confidences or (self.rounds >= 2 and min(confidences) > self.least)

    def learn(self, draft: Any, verdict: Any) -> None:
        del draft, verdict
        self.rounds += 1


def test_unseen_drafts_grow_and_shrink_with_what_was_wanted_of_the_last() -> None:
    target, draft = pair()
    text, heard = speculative(target, draft, ByConfidence(0.0))
    assert text == plain(target, IDS[:30])
    assert heard.lengths[:5] == [1, 1, 3, 5, 7]  # two more than the last one, which could have gone on
    text, heard = speculative(target, draft, ByConfidence(2.0))
    assert text == plain(target, IDS[:30])
    assert set(heard.lengths[:-1]) == {1}
    text, heard = speculative(target, draft, AutoLength(CostModel(0.05)))
    assert text == plain(target, IDS[:30])
    assert not all(heard.apart)


@pytest.mark.parametrize("whose", ["draft", "target"])
def test_logits_that_are_no_numbers_are_told(whose: str) -> None:
    target, draft = pair()
    unseen_cache, cache = draft.new_cache(), target.new_cache()
    target.forward([TokenRun(cache, IDS[:5])])
    with torch.no_grad():
        (draft if whose == "draft" else target).module.lm_head.weight.fill_(float("nan"))
    unseen = draft.draft_unseen([UnseenRun(unseen_cache, IDS[:6], 3)])
    message = "The draft model's logits" if whose == "draft" else "The model's logits"
    with pytest.raises(CheckpointError, match=f"{message} are not finite numbers"):
        target.check([CheckRun(cache, IDS[5:6], unseen[0])])
    assert cache.length == 5


def test_runs_that_do_not_fit_change_nothing() -> None:
    target, draft = pair()
    small, cache = draft.new_cache(8), target.new_cache(8)
    for run in (UnseenRun(small, IDS[:6], 4), UnseenRun(small, IDS[:6], 0), UnseenRun(small, [], 1)):
        with pytest.raises(ValueError, match="does not fit"):
            draft.draft_unseen([run])
    [unseen] = draft.draft_unseen([UnseenRun(small, IDS[:6], 3)])
    with pytest.raises(ValueError, match="a draft of 3 tokens does not fit"):
        target.check([CheckRun(cache, IDS[:6], unseen)])
    assert (small.length, cache.length) == (8, 0)


def test_a_batch_for_which_memory_is_short_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text that came last gives up its place, the drafts of the others are checked in the next step."""
    target, draft = pair()
    prompts = [IDS[:20], IDS[20:55]]
    expected = [plain(target, prompt) for prompt in prompts]
    engine = Engine(target, drafter=ModelDrafter(draft, target_vocab_size=VOCAB_SIZE), num_draft_tokens=4)
    handles = [engine.submit(Request(prompt_ids=tuple(prompt), sampling=PARAMS)) for prompt in prompts]
    check, calls = target.check, list[int]()

    def fails_at_first(runs: Sequence[CheckRun]) -> list[Checked]:
        calls.append(len(runs))
        if len(calls) == 1:
            raise OutOfMemory("cpu has not enough memory")
        return check(runs)

    monkeypatch.setattr(target, "check", fails_at_first)
    while not engine.idle:
        engine.step()
    assert engine.stats.num_preemptions == 1
    assert [[i for written in handle.take() for i in written.token_ids] for handle in handles] == expected
    assert calls[0] == 2


def test_a_draft_that_went_wrong_is_forgotten_by_the_next() -> None:
    """An error between drafting and seeing leaves a session that goes on."""
    draft = pair()[1]
    request = Request(prompt_ids=tuple(IDS[:30]), sampling=PARAMS)
    session = ModelDrafter(draft, target_vocab_size=VOCAB_SIZE).start(request, "coupled")
    wants_more, twin = FixedLength(4).wants_more, ModelDrafter(draft, target_vocab_size=VOCAB_SIZE)
    first = session.draft(IDS[:30], 10, wants_more)
    session.commit(verdict_of(first.token_ids))
    text = [*IDS[:30], *first.token_ids, 9]
    lost = session.draft_unseen("cpu", text, 10, wants_more)
    again = session.draft_unseen("cpu", text, 10, wants_more)
    fresh = twin.start(request, "coupled").draft(text, 10, wants_more)
    assert read(lost) == read(again) == fresh.token_ids
    assert session.draft(text, 10, wants_more).token_ids == fresh.token_ids


def verdict_of(token_ids: Sequence[int]) -> Any:
    """All of them are kept."""
    return Verdict((*token_ids, 9), len(token_ids), len(token_ids))


def read(draft: UnseenDraft | None) -> tuple[int, ...]:
    taken: Any = getattr(draft, "taken", None)
    return tuple(int(i) for i in transfer.fetch(taken)[0])


def test_a_request_that_shows_probabilities_has_them_in_a_batch_of_unseen_drafts() -> None:
    target, draft = pair()
    engine = Engine(target, drafter=ModelDrafter(draft, target_vocab_size=VOCAB_SIZE), num_draft_tokens=4)
    shown = SamplingParams(greedy=True, max_new_tokens=40, ignore_eos=True, seed=0, logprobs=1)
    handles = [
        engine.submit(Request(prompt_ids=tuple(IDS[:30]), sampling=params), RequestOptions())
        for params in (PARAMS, shown)
    ]
    while not engine.idle:
        engine.step()
    rounds = [handle.take() for handle in handles]
    texts = [[i for written in each for i in written.token_ids] for each in rounds]
    assert texts[0] == texts[1]
    assert sum(len(written.logprobs) for written in rounds[1]) == 40
    assert not any(written.logprobs for written in rounds[0])


def test_rounds_without_a_wait_in_between_change_no_costs() -> None:
    live = LiveCosts(StepCosts(0.01, CostModel(0.1, (1.0, 1.1, 1.2, 1.3, 1.4))))
    before = live.draft_step, live.verify_cost(5)
    for _ in range(20):
        live.see(RoundTimes(4, 4, draft_s=1e-5, check_s=0.1, apart=False))
    assert (live.draft_step, live.verify_cost(5)) == before
    for _ in range(20):
        live.see(RoundTimes(0, 0, draft_s=0, check_s=0.01))
        live.see(RoundTimes(4, 4, draft_s=1e-5, check_s=0.1))
    assert (live.draft_step, live.verify_cost(5)) != before
