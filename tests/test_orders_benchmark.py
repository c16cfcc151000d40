"""``benchmarks.orders`` writes a reply again at the cost that its drafts have, and judges all orders."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from benchmarks import orders
from draftsmith.speculate import AutoLength, CostModel, FixedLength
from tests.support.tiny import tiny_folder

COSTS = CostModel(0.25, (1.0, 1.5, 1.75), draft_read=0.125, draft_start=0.5)
# Seven tokens; after the first, drafts of two: right and wrong, then both right, then wrong.
TEXT = orders.Text("file", "0", [5, 6], [1, 2, 3, 4, 1, 2, 3], [([2, 9], [0.9, 0.9])] * 6)
RECORDED = partial(orders.Recorded, TEXT)


def test_a_reply_costs_its_rounds_and_what_the_draft_model_missed() -> None:
    """Drafts of one token: right after the first token and after the second 1, wrong in between."""
    written = orders.write(TEXT, orders.Recorded(TEXT), FixedLength(1), COSTS)
    assert written.tokens == 6
    drawing = 0.5 + 0.25
    # A prompt that is read at once costs nothing; after a round of two tokens there is nothing more to read.
    assert written.cost == pytest.approx(4 * (1.5 + drawing))
    assert written.speed == pytest.approx(6 / written.cost)


@pytest.mark.parametrize(("questions", "cost"), [(1, 4 * 2.25 + 2 * 0.125), (2, 1 + 4 * 2.25 + 3 * 0.125)])
def test_what_was_missed_is_paid_for(questions: int, cost: float) -> None:
    """The prompt of two tokens, and one more where a round goes by without a draft."""

    class Late(FixedLength):
        """Does not begin with the prompt read, and drafts one token a round."""

        def wants_more(self, confidences, upcoming, *, instead=False, drawn=0):  # type: ignore[no-untyped-def]
            del upcoming, instead, drawn
            calls.append(1)
            return len(calls) > questions and not confidences

    calls: list[int] = []
    late = orders.write(TEXT, orders.Recorded(TEXT), Late(1), COSTS)
    assert late.cost == pytest.approx(cost)


def test_a_draft_that_is_never_right_only_costs() -> None:
    never = orders.write(TEXT, orders.drafter_of("never right", RECORDED), FixedLength(2), COSTS)
    assert never.cost == pytest.approx(4 * (1.75 + 1.0) + (1.5 + 0.75) + 1)  # room for 2, 2, 2, 2, 1 and 0


def test_copies_are_of_the_text_itself() -> None:
    """After the second 1 follows what followed the first: 2 and 3, at the cost of a check."""
    copying = orders.write(TEXT, orders.drafter_of("lookup", RECORDED), FixedLength(8), COSTS)
    assert copying.cost <= 6
    mixed = orders.write(TEXT, orders.drafter_of("mix", RECORDED), AutoLength(COSTS), COSTS)
    assert mixed.tokens == 6


def test_a_recording_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, prompts, saved = str(tiny_folder(tmp_path / "tiny")), tmp_path / "p.jsonl", tmp_path / "saved.json"
    rows = [{"id": f"{i}", "category": "any", "turns": ["abc " * (i + 3)]} for i in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--target", target, "--draft", target, "--prompts", str(prompts), "--max-new-tokens", "40"]
    options += ["--lengths", "40", "--orders", "2", "--verify", "1,1.1,1.2", "--saved", str(saved)]
    results = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["orders", *options])
        orders.main()
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1])["rows"])
    assert results[0] == results[1]
    assert [row["way"] for row in results[0]] == list(orders.WAYS)
    model, _, _, never = results[0]
    assert model["auto"] > 1.5  # the model drafts for itself
    assert 0.95 < never["auto"] <= 1.0
