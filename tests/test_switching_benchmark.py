"""``benchmarks.switching``: who is asked when, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.switched_server import Step, SwitchedEngine, read_log
from benchmarks.switching import Span, compare, pairs, took
from draftsmith.speculate import ModelDrafter
from draftsmith.types import Request
from tests.support.batches import COSTS, GREEDY, prompt, run
from tests.support.fakes import VOCAB_SIZE
from tests.support.shared_fakes import SharedFakeModel


def step(began: float, took_s: float, stretch: int, *, texts: int = 2, reading: int = 0, tokens: int = 2) -> Step:
    return Step(began, began + took_s, stretch, texts, reading, 0, tokens, 0.25 * (1 - stretch % 2))


def test_drafts_are_asked_for_in_every_other_stretch_and_the_text_is_the_same(tmp_path: Path) -> None:
    def text(stretch: int | None) -> list[int]:
        SwitchedEngine.log, SwitchedEngine.stretch = [], stretch or 1
        drafter = ModelDrafter(SharedFakeModel(), target_vocab_size=VOCAB_SIZE) if stretch else None
        engine = SwitchedEngine(SharedFakeModel(), drafter=drafter, costs=lambda: COSTS)
        handle = engine.submit(Request(prompt_ids=prompt("abc"), sampling=GREEDY))
        run(engine, handle)
        return [token_id for one in handle.take() for token_id in one.token_ids]

    assert text(3) == text(None) or pytest.fail("drafts changed the text")
    text(3)
    (tmp_path / "log.json").write_text(json.dumps(SwitchedEngine.log))
    log = read_log(tmp_path / "log.json")
    assert [row.stretch for row in log] == [i // 3 for i in range(len(log))]
    assert any(row.drafted for row in log)
    assert all(row.stretch % 2 == 0 for row in log if row.drafted)
    assert log[0].reading == len(prompt("abc"))
    assert all(row.ended >= row.began for row in log)


def test_a_step_takes_the_time_since_the_one_before_unless_there_was_nothing_to_do() -> None:
    steps = [step(0.0, 1.0, 0), step(1.001, 1.0, 0), step(5.0, 1.0, 0)]
    assert took(steps) == pytest.approx([1.0, 1.001, 1.0])


def test_pairs_of_stretches_count_for_as_many_tokens_as_both_have_written() -> None:
    """A second a step with drafts, two without; what reads prompts, has too few chats or is not over does not count."""
    steps = [
        step(0.0, 1.0, 0), step(1.0, 1.0, 0), step(2.0, 9.0, 0, reading=5),
        step(11.0, 2.0, 1), step(13.0, 8.0, 1, texts=1),
        step(21.0, 1.0, 2), step(22.0, 7.0, 3, reading=1),
        step(29.0, 1.0, 4), step(30.0, 2.0, 5), step(32.0, 99.0, 5),
    ]  # fmt: skip
    plain, drafting, tokens = pairs(steps, [Span(2, 0.0, 40.0)])
    assert (plain, drafting, tokens) == ([2.0, 2.0], [1.0, 1.0], 4)
    (row,) = compare(steps, [Span(2, 0.0, 40.0)])
    assert (row["size"], row["pairs"], row["drafting_over_plain"], row["median"]) == (2, 2, 2.0, 2.0)
    assert (row["plain_s"], row["drafting_s"], row["asking_s"]) == (1.0, 0.5, 0.25)
    with pytest.raises(ValueError, match="no pair of stretches with 3 chats"):
        compare(steps, [Span(3, 0.0, 40.0)])
