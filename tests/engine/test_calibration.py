"""Costs on disk: found again by the same pair on the same machine only, and never trusted when they make no sense."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM
from draftsmith.engine import calibration as module
from draftsmith.engine.calibrate import MeasuredLength, StepCosts
from draftsmith.engine.calibration import Calibration, calibration_path, read_calibration, write_calibration
from draftsmith.engine.live import LiveCosts
from draftsmith.engine.loading import LoadedDrafter, LoadedModel
from draftsmith.model.protocol import Model
from draftsmith.speculate import CostModel, PromptLookupDrafter, RoundTimes
from draftsmith.text import Tokenizer
from draftsmith.types import SamplingParams
from tests.support.fakes import FakeModel
from tests.support.fakes import byte_tokenizer as make_tokenizer

GROWING = StepCosts(0.02, CostModel(0.3, (1.0, 1.1, 1.5), context_step=0.25, context_row=0.125))
STEPS = StepCosts(0.02, CostModel(0.3, tuple(1 + 0.05 * size for size in range(32)), 0.02))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTSMITH_CACHE", str(tmp_path / "cache"))


def path_of(*identities: str, threads: int | None = None) -> Path:
    path = calibration_path(identities, threads)
    assert path is not None
    return path


def test_a_pair_finds_its_costs_again() -> None:
    path = path_of("a", "b")
    assert read_calibration(path) is None
    for steps in (GROWING, STEPS):
        write_calibration(path, steps)
        assert read_calibration(path_of("a", "b")) == steps
    assert [other.name for other in path.parent.iterdir()] == [path.name]  # nothing half-written


def test_what_changes_the_costs_changes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [path_of("a", "b"), path_of("b", "a"), path_of("a", ""), path_of("a", "b", threads=7)]
    monkeypatch.setattr(module, "_build", lambda: "another build")
    paths.append(path_of("a", "b"))
    monkeypatch.setattr(module, "machine", lambda: ("another processor", (), 64))
    paths.append(path_of("a", "b"))
    assert len(set(paths)) == len(paths)
    assert calibration_path(("a", None), None) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("verify"),
        lambda value: value.update(format="draftsmith calibration 0"),
        lambda value: value.update(plain_s=0.0),
        lambda value: value.update(plain_s="nan"),
        lambda value: value.update(draft_step=-0.1),
        lambda value: value.update(draft_read=float("inf")),
        lambda value: value.update(verify=[]),
        lambda value: value.update(verify=[1.0, 2.0, 1.5]),
        lambda value: value.update(verify=[2.0, 3.0]),
        lambda value: value.update(verify="1.0"),
        lambda value: value.pop("context_row"),
        lambda value: value.update(context_step=-0.1),
        lambda value: value.update(context_row=float("nan")),
        lambda value: value.update(verify=["x" * 100_000]),
    ],
)
def test_numbers_that_make_no_sense_are_as_good_as_none(damage: object) -> None:
    path = path_of("a", "b")
    write_calibration(path, STEPS)
    value = json.loads(path.read_bytes())
    assert callable(damage)
    damage(value)
    path.write_text(json.dumps(value))
    assert read_calibration(path) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"[" * 5000, b"null", b"{"])
def test_files_that_are_no_calibration(content: bytes) -> None:
    path = path_of("a", "b")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_calibration(path) is None


class Measuring:
    """Stands for ``measure_steps``; counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, target: Model, draft: Model | None = None) -> StepCosts:
        del target, draft
        self.calls += 1
        return STEPS


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    measuring = Measuring()
    monkeypatch.setattr(module, "measure_steps", measuring)
    return measuring


def calibrate(byte_tokenizer: Tokenizer, identity: str | None = "target") -> Calibration:
    target = LoadedModel("target", FakeModel(), byte_tokenizer, identity)
    return Calibration(target, LoadedDrafter(PromptLookupDrafter()), None)


@pytest.fixture
def byte_tokenizer() -> Tokenizer:
    from tests.support.fakes import byte_tokenizer as make

    return make()


def test_measured_once_for_all_starts(byte_tokenizer: Tokenizer, measuring: Measuring) -> None:
    assert calibrate(byte_tokenizer).steps == calibrate(byte_tokenizer).steps == STEPS
    assert measuring.calls == 1
    path_of("target", "").write_text("damaged")
    assert calibrate(byte_tokenizer).steps == STEPS
    assert measuring.calls == 2
    assert read_calibration(path_of("target", "")) == STEPS  # and mended


def test_models_that_cannot_be_known_again_are_measured_every_time(
    byte_tokenizer: Tokenizer, measuring: Measuring
) -> None:
    calibrate(byte_tokenizer, None)
    calibrate(byte_tokenizer, None)
    assert measuring.calls == 2


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    byte_tokenizer: Tokenizer, measuring: Measuring, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert calibrate(byte_tokenizer).steps == STEPS
    assert measuring.calls == 1


def see(live: LiveCosts, rounds: Sequence[tuple[int, float, float]], free: bool = False) -> None:
    """``rounds``: draft tokens, and how many times as long as measured drafting and checking took."""
    for k, drafting, checking in rounds:
        drafts, check = k * STEPS.costs.draft_step, STEPS.costs.verify_cost(k + 1)
        live.see(RoundTimes(k, 0 if free else k, STEPS.plain_s * drafts * drafting, STEPS.plain_s * check * checking))


def test_live_costs_begin_as_measured_and_stay_so_when_all_is_as_expected() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1), (3, 1, 1), (7, 1, 1)] * 10)
    assert live.draft_step == pytest.approx(STEPS.costs.draft_step)
    assert [live.verify_cost(m) for m in (1, 4, 8, 40)] == pytest.approx(
        [STEPS.costs.verify_cost(m) for m in (1, 4, 8, 40)]
    )


def test_a_slower_machine_changes_nothing_and_a_dearer_draft_does() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 3, 3), (3, 3, 3)] * 10)
    assert (live.draft_step, live.verify_cost(4)) == pytest.approx((STEPS.costs.draft_step, STEPS.costs.verify_cost(4)))
    see(live, [(0, 2, 1), (3, 2, 1.5)] * 20)
    assert live.draft_step == pytest.approx(2 * STEPS.costs.draft_step)
    assert live.verify_cost(4) == pytest.approx(1.5 * STEPS.costs.verify_cost(4))
    assert live.verify_cost(1) == 1.0


def test_a_pause_of_the_machine_is_outvoted_and_corrections_are_bounded() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1), (3, 1, 1)] * 8 + [(3, 500, 500), (0, 1, 900)])
    assert live.draft_step == pytest.approx(STEPS.costs.draft_step)
    assert live.verify_cost(4) == pytest.approx(STEPS.costs.verify_cost(4))
    see(live, [(0, 1, 1), (3, 500, 1)] * 20)
    assert live.draft_step == pytest.approx(3 * STEPS.costs.draft_step)


def test_copies_say_nothing_about_the_draft_model() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1), (3, 9, 1)] * 20, free=True)
    assert live.draft_step == STEPS.costs.draft_step


def test_dearer_rows_are_corrected_for_all_sizes_and_pairs_by_themselves() -> None:
    live, costs = LiveCosts(STEPS), STEPS.costs
    above = costs.verify_cost(4) - 1
    twice = (1 + 2 * above) / costs.verify_cost(4)
    see(live, [(0, 1, 1), (3, 1, twice)] * 16)
    assert [live.verify_cost(m) for m in (3, 4, 8, 17, 20)] == pytest.approx(
        [1 + 2 * (costs.verify_cost(m) - 1) for m in (3, 4, 8, 17, 20)]
    )
    assert (live.verify_cost(1), live.verify_cost(2)) == (1.0, costs.verify_cost(2))
    see(live, [(0, 1, 1), (1, 1, 1.1)] * 16)
    assert live.verify_cost(2) == pytest.approx(1.1 * costs.verify_cost(2))
    assert live.verify_cost(4) == pytest.approx(1 + 2 * above)


def test_corrected_costs_never_fall_and_triple_at_most() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1), (3, 1, 90)] * 40)
    assert [live.verify_cost(m) for m in (8, 40)] == pytest.approx([3 * STEPS.costs.verify_cost(m) for m in (8, 40)])
    for pairs, rows in ((1.2, 0.1), (0.8, 0.1), (0.8, 1.5), (3, 0.9)):
        live = LiveCosts(STEPS)
        see(live, [(0, 1, 1), (3, 1, rows), (1, 1, pairs)] * 40)
        corrected = [live.verify_cost(m) for m in range(1, 40)]
        assert corrected == sorted(corrected)
        assert corrected[0] == 1.0


def test_costs_are_those_of_a_text_before_any_of_its_rounds_is_seen() -> None:
    live = LiveCosts(GROWING)
    live.follow(5000)
    assert [live.verify_cost(m) for m in (1, 2, 3)] == pytest.approx(GROWING.at(39 * 128).costs.verify)
    live.follow(10)
    assert [live.verify_cost(m) for m in (1, 2, 3)] == list(GROWING.costs.verify)


def test_live_costs_are_those_of_the_context() -> None:
    """Rounds that take what they were expected to there change nothing else."""
    live, far = LiveCosts(GROWING), GROWING.at(1024)
    assert live.verify_cost(3) == 1.5
    for _ in range(20):
        live.see(RoundTimes(0, 0, 0.0, far.plain_s, context=1030))
        live.see(RoundTimes(2, 0, 0.0, far.plain_s * far.costs.verify_cost(3), context=1130))
    assert [live.verify_cost(m) for m in (1, 2, 3)] == pytest.approx(far.costs.verify)
    live.see(RoundTimes(0, 0, 0.0, GROWING.plain_s, context=10))
    assert [live.verify_cost(m) for m in (1, 2, 3)] == pytest.approx(GROWING.costs.verify)
    for _ in range(100):
        live.see(RoundTimes(0, 0, 0.0, 3 * far.plain_s, context=1030))
    assert live.steps() == StepCosts(3 * GROWING.plain_s, GROWING.costs)


@pytest.mark.parametrize(("plain_rounds", "counts"), [(0, True), (1, True), (2, False), (5, False)])
def test_a_draft_all_by_itself_says_nothing_of_what_drafting_costs(plain_rounds: int, counts: bool) -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1)] * 5 + ([(1, 2, 1)] + [(0, 1, 1)] * plain_rounds) * 40)
    assert live.draft_step == pytest.approx(STEPS.costs.draft_step * (2 if counts else 1))


def test_what_was_measured_outweighs_a_few_rounds_and_counts_again_in_later_texts() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1)] * 4 + [(1, 1, 2)] * 5)
    assert live.verify_cost(2) == STEPS.costs.verify_cost(2)
    see(live, [(1, 1, 2)] * 10)
    assert live.verify_cost(2) == pytest.approx(2 * STEPS.costs.verify_cost(2))
    for _ in range(8):
        assert live.verify_cost(2) > STEPS.costs.verify_cost(2)
        live.end_text()
    live.end_text()
    assert live.verify_cost(2) == STEPS.costs.verify_cost(2)


@pytest.mark.parametrize("one_more", [False, True])
def test_plain_rounds_of_long_ago_do_not_tell_how_fast_the_machine_is_now(one_more: bool) -> None:
    """Nor do they together with one that is new."""
    live = LiveCosts(STEPS)
    see(live, [(0, 1, 1)] * 6 + [(1, 1, 1)] * 24 + [(1, 3, 3)] * 10 + [(0, 3, 3)] * one_more + [(1, 3, 3)] * 12)
    assert live.verify_cost(2) == pytest.approx(STEPS.costs.verify_cost(2))
    assert live.draft_step == pytest.approx(STEPS.costs.draft_step)


def test_only_many_rounds_are_held_against_what_was_measured_for_good() -> None:
    live = LiveCosts(STEPS)
    see(live, [(0, 3, 3), (3, 2, 1.5), (1, 2, 1.5)] * 30)
    assert live.steps() == STEPS
    see(live, [(0, 3, 3), (3, 6, 4.5), (1, 6, 4.5)] * 40)
    told = live.steps()
    assert told.plain_s == pytest.approx(3 * STEPS.plain_s)
    assert told.costs.draft_step == pytest.approx(2 * STEPS.costs.draft_step)
    assert [told.costs.verify_cost(m) for m in (2, 4)] == pytest.approx(
        [1.5 * STEPS.costs.verify_cost(m) for m in (2, 4)]
    )


def test_a_file_that_proved_wrong_is_written_anew(byte_tokenizer: Tokenizer, measuring: Measuring) -> None:
    known = calibrate(byte_tokenizer)
    see(known.live, [(0, 1, 1), (3, 1.1, 1.0)] * 40)
    known.refresh()
    assert read_calibration(path_of("target", "")) == STEPS  # near enough
    see(known.live, [(0, 1, 1), (3, 2, 1.0)] * 30)
    known.refresh()
    assert read_calibration(path_of("target", "")) == STEPS  # a disturbance lasts as long
    see(known.live, [(0, 1, 1), (3, 2, 1.0)] * 100)
    known.refresh()
    again = calibrate(byte_tokenizer).steps
    assert again.costs.draft_step == pytest.approx(2 * STEPS.costs.draft_step)
    assert known.steps == STEPS  # what sampled texts under the rejection rule go by stays
    assert measuring.calls == 1


def test_a_text_goes_by_the_costs_of_its_prompt_before_its_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[int] = []
    follow = LiveCosts.follow

    def heard(live: LiveCosts, context: int) -> None:
        contexts.append(context)
        follow(live, context)

    monkeypatch.setattr(LiveCosts, "follow", heard)
    llm = LLM(LoadedModel("target", FakeModel(), make_tokenizer(), None), "lookup")
    llm.generate([[97] * 300], SamplingParams(greedy=True, max_new_tokens=4))
    assert contexts[0] == 300
    assert contexts[1:] == sorted(contexts[1:])
    assert contexts[1] > 300


def test_sampled_texts_under_rejection_go_by_the_costs_of_their_prompts_length(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(LoadedModel("target", FakeModel(), make_tokenizer(), None), "lookup", rule="rejection")
    monkeypatch.setattr(llm, "_calibrated", lambda: SimpleNamespace(steps=GROWING))
    policy = llm._policy_for(SamplingParams(seed=1), 1088)
    assert isinstance(policy, MeasuredLength)
    assert policy.prepare()._costs == GROWING.at(1088).costs
