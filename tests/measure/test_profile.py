"""bench --profile: the parts of a round, each where it was spent, adding up to the wall time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LoadedModel
from draftsmith.measure.pair import load_pair
from draftsmith.measure.profile import Part, Profile, measure_profile, profile_json, profile_text
from draftsmith.measure.prompts import PromptItem
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.types import SamplingParams
from tests.support.clock import Clock, SlowModel, clock_of_the_process
from tests.support.fakes import byte_tokenizer, fake_target
from tests.support.tiny import tiny_folder

ITEMS = (PromptItem("a", "letters", ("abc", "more abc")), PromptItem("b", "letters", ("gh gh gh",)))
GREEDY = SamplingParams(greedy=True, max_new_tokens=21)


class Clocked(SlowModel):
    """Takes ``seconds`` a forward and says that three quarters of it were one kernel."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__(clock, seconds)
        self._spent: float | None = None

    def profile(self, on: bool) -> dict[str, float]:
        spent, self._spent = self._spent or 0.0, 0.0 if on else None
        return {"attend": 0.75 * spent, "head": 0.0}

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        began = self.clock.seconds
        rows = super().forward(runs)
        if self._spent is not None:
            self._spent += self.clock.seconds - began
        return rows


def total(parts: Sequence[Part], part: str, kernel: str | None = None) -> float:
    return sum(one.seconds for one in parts if one.part == part and kernel in (None, one.kernel))


def profile_of(target: LoadedModel, draft: LoadedModel | str, k: int = 3) -> Profile:
    return measure_profile(load_pair(target, draft, num_draft_tokens=k), ITEMS, GREEDY)


def test_every_part_is_where_it_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target of 4 ms a forward, a draft of 2 ms a step, three steps a round; the prompts' reading does not count."""
    clock = clock_of_the_process(monkeypatch)
    draft = LoadedModel("d", Clocked(clock, 2e-3), byte_tokenizer())
    found = profile_of(LoadedModel("t", Clocked(clock, 4e-3), byte_tokenizer()), draft)
    assert found.rounds == 3 * 5
    assert (found.tokens, found.plain_steps) == (60, 60)
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.wall_s)
    assert sum(part.seconds for part in found.plain_parts) == pytest.approx(found.plain_wall_s)
    for parts, seconds in ((found.parts, 15 * 4e-3), (found.plain_parts, 60 * 4e-3)):
        assert total(parts, "target") == pytest.approx(seconds, rel=0.01)
        assert total(parts, "target", "attend") == pytest.approx(0.75 * total(parts, "target"), rel=0.01)
    assert total(found.parts, "draft") == pytest.approx(15 * 3 * 2e-3, rel=0.01)
    assert total(found.parts, "draft", "attend") == pytest.approx(0.75 * total(found.parts, "draft"), rel=0.01)
    assert 0 < total(found.parts, "sampling and verification") < 1e-3
    assert total(found.parts, "everything else") > 0
    assert not [part for part in found.parts if part.kernel == "head"]


def test_a_model_without_clocks_is_one_part() -> None:
    found = profile_of(fake_target(), "lookup")
    assert [(part.part, part.kernel) for part in found.parts] == [
        ("draft", ""), ("target", ""), ("sampling and verification", ""), ("everything else", ""),
    ]  # fmt: skip
    text = profile_text(profile_json(found))
    assert "| **all** |" in text
    assert "·" not in text


def test_the_native_engine_tells_its_kernels(tmp_path: Path) -> None:
    pair = load_pair(tiny_folder(tmp_path / "t"), tiny_folder(tmp_path / "d", seed=1), num_draft_tokens=2)
    found = measure_profile(pair, ITEMS[:1], replace(GREEDY, ignore_eos=True))
    for part in ("draft", "target"):
        kernels = {one.kernel for one in found.parts if one.part == part}
        assert kernels >= {"project", "attend", "output", "gate_up", "down", "head", "around the kernels"}
        assert all(one.seconds > 0 for one in found.parts if one.part == part)
    assert "| · attend |" in profile_text(profile_json(found))
