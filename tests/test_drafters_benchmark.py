"""The side-by-side benchmark of drafters: what it computes, on a model that fits in a test."""

from __future__ import annotations

import json

import pytest

from benchmarks import drafters
from draftsmith.engine import LLM, LoadedModel
from draftsmith.speculate import CostModel, RoundRecord
from tests.support.fakes import fake_target


def test_copies_cost_only_their_check() -> None:
    def rounds(free: bool) -> list[RoundRecord]:
        return [RoundRecord(0, 0, (1, 2), (0.5, 0.5), free, (1, 2, 3), 2, 0.0, 0.0, 0.0)]

    costs = CostModel(0.4, (1.0, 1.1, 1.25))
    assert drafters.cost_of(rounds(free=True), costs) == pytest.approx(1.25)
    assert drafters.cost_of(rounds(free=False), costs) == pytest.approx(2.05)


def test_every_drafter_has_a_row_and_the_same_replies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(target: str, draft: str | None) -> LLM:
        assert (target, draft) == ("fake", None)
        return LLM(LoadedModel("fake", fake_target(max_context=2048).model, fake_target().tokenizer), None)

    monkeypatch.setattr(drafters, "LLM", small)
    arguments = ["--target", "fake", "--draft", "lookup", "--draft", "suffix", "--max-new-tokens", "12"]
    assert drafters.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["identical"]
    overall = [row for row in result["rows"] if row["category"] == "all"]
    assert [row["drafter"] for row in overall] == ["lookup", "suffix"]
    assert all(row["times plain"] > 0 for row in overall)
