"""``benchmarks.load_by_costs`` counts what it says: rows, drafts, what drafts read, and tokens by the moment."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load_by_costs
from draftsmith.engine.batch import Engine
from draftsmith.speculate import CostModel, DraftSession, ModelDrafter, WantsMore
from draftsmith.types import Draft, Request, Verdict, VerificationRule
from tests.support.shared_fakes import SharedFakeModel
from tests.support.tiny import tiny_folder

COSTS = CostModel(0.25, (1.0, 1.1, 1.3, 1.6, 2.0), 0.125, 0.5)
WRONG = 1  # the fakes write letters
PROMPT = tuple(b"abc")


class WrongDrafter:
    name = "wrong"

    def start(self, request: Request, rule: VerificationRule) -> DraftSession:
        del request, rule
        return WrongSession()


class WrongSession:
    def restart(self, request: Request) -> None:
        del request

    def read(self, token_ids: Sequence[int]) -> None:
        del token_ids

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        del token_ids
        drawn: list[int] = []
        while len(drawn) < max_tokens and wants_more([0.5] * len(drawn), None):
            drawn.append(WRONG)
        return Draft(tuple(drawn), None, (0.5,) * len(drawn), free=True)

    def commit(self, verdict: Verdict) -> None:
        assert verdict.num_accepted == 0


def way(error: float, **options: object) -> load_by_costs.Way:
    return load_by_costs.Way(Engine(SharedFakeModel(), **options), COSTS, error)  # type: ignore[arg-type]


def test_rows_cost_what_they_cost_and_those_of_drafts_so_many_times_that() -> None:
    """Six tokens, drafts of two that are never right: after the prompt, 3, 3, 3, 2 and 1 rows."""
    error = 2.0
    plain = way(1.0).run([PROMPT], 1, [6])
    drafting = way(error, drafter=WrongDrafter(), num_draft_tokens=2).run([PROMPT], 1, [6])
    assert plain.clock.now == pytest.approx(load_by_costs.UNIT_S * 5)
    expected = 5 + error * (3 * 0.3 + 0.1)
    assert drafting.clock.now == pytest.approx(load_by_costs.UNIT_S * expected)
    assert drafting.drafts == 4
    assert load_by_costs.compare(plain, drafting, 1)["drafts"] == 4
    with pytest.raises(RuntimeError, match="texts of 1 at once are other texts"):
        load_by_costs.compare(plain, replace(drafting, replies=[(1,)]), 1)


def test_a_draft_model_is_paid_for_drawing_and_for_reading() -> None:
    """Four tokens, drafts of one of the target itself: the prompt and a draft that is right, with the bonus token."""
    model = SharedFakeModel()
    drafter = ModelDrafter(model, target_vocab_size=model.vocab_size)
    drafting = way(1.0, drafter=drafter, num_draft_tokens=1).run([PROMPT], 1, [3])
    assert [len(reply) for reply in drafting.replies] == [3]
    # A draft of one token, for which it reads 4, three of them besides; 2 rows.
    assert drafting.clock.now == pytest.approx(load_by_costs.UNIT_S * (0.5 + 0.25 + 3 * 0.125 + 1.1))


def test_counting_ends_when_a_place_stays_empty() -> None:
    """Three prompts, two places: when one of the first two has ended, all three are written or being so."""
    plain = way(1.0).run([PROMPT, tuple(b"xy"), tuple(b"hello")], 2, [4, 6, 5])
    assert [len(reply) for reply in plain.replies] == [4, 6, 5]
    assert plain.clock.written[-1] < 15


def test_the_time_to_a_number_of_tokens_lies_between_two_moments() -> None:
    clock = load_by_costs.Clock()
    for now, written in ((1.0, 2), (2.0, 6)):
        clock.now = now
        clock.note(written)
    assert [clock.time_to(tokens) for tokens in (1, 2, 3, 6, 7)] == [0.5, 1.0, 1.25, 2.0, 2.0]


def test_sizes_and_errors_are_gone_through_with_real_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tiny_folder(tmp_path / "tiny"))
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": f"{i}", "category": "any", "turns": ["abc abc"]} for i in range(2)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--target", target, "--prompts", str(prompts), "--draft", "lookup"]
    options += ["--sizes", "1,2", "--chats", "1", "--errors", "1,2"]
    monkeypatch.setattr(sys, "argv", ["load_by_costs", *options, "--verify", "1,1.1,1.2", "--max-new-tokens", "8"])
    assert load_by_costs.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["error"], row["size"]) for row in result["rows"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert result["target"] == "tiny"


def test_nobody_finds_a_prompt_read_that_another_way_has_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error twice is the same figure twice, and prompts that are alike are read each time."""
    target, prompts = str(tiny_folder(tmp_path / "tiny")), tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": "0", "category": "any", "turns": ["abc abc " * 9]}) + "\n")
    options = ["--target", target, "--prompts", str(prompts), "--draft", "lookup", "--sizes", "2", "--chats", "2"]
    reused: list[int] = []
    run = load_by_costs.Way.run

    def noted(self: load_by_costs.Way, *given: Any) -> load_by_costs.Written:
        written = run(self, *given)
        reused.append(self._engine.stats.num_reused_tokens)
        return written

    monkeypatch.setattr(load_by_costs.Way, "run", noted)
    monkeypatch.setattr(sys, "argv", ["load_by_costs", *options, "--errors", "1,1", "--max-new-tokens", "8"])
    assert load_by_costs.main() == 0
    first, second = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert first == second
    assert reused == [0, 0, 0]


def test_drafts_beside_a_prompt_cost_what_they_do_there() -> None:
    """Two places: while the third prompt is read, the second text writes, with a draft of two in vain."""
    prompts, limits = [PROMPT, tuple(b"def"), tuple(b"xyz")], [2, 4, 1]
    plain = way(1.0).run(prompts, 2, limits)
    drafting = way(1.0, drafter=WrongDrafter(), num_draft_tokens=2).run(prompts, 2, limits)
    # Plain: two that write, then one of them beside a prompt, then alone. With drafts: 2 + 2 rows, for the first text
    # has room for none; then 3 + 1 + 1 rows beside the prompt in place of 3 + 1; at the end there is room for none.
    assert plain.clock.now == pytest.approx(load_by_costs.UNIT_S * (1.1 + 1 + 1))
    assert drafting.clock.now == pytest.approx(load_by_costs.UNIT_S * (1.6 + (1 + 2.0 - 1.6) + 1))
