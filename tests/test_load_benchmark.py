"""What ``benchmarks.load`` says about its waves, and that it says it of the right process."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import load
from draftsmith.measure.endpoint import Streamed

WAVE = load.Wave(tokens=100, seconds=1.0, firsts=(0.1, 0.2), texts=("a", "b"), every=100, processor_s=2.0)


def waves(*seconds: float, processor_s: float | None = 2.0) -> list[load.Wave]:
    return [replace(WAVE, seconds=each, processor_s=processor_s) for each in seconds]


def test_what_is_written_when_fewer_chats_are_left_is_not_counted() -> None:
    """Two clients, three prompts: when the first reply ends, at 4 s, its client asks the third; at 6 s the other one
    finds nothing to ask, and of the third reply, from 5 s to 9 s, a quarter is written."""

    def reply(first_s: float, rest_s: float, tokens: int) -> Streamed:
        return Streamed(text="x", num_tokens=tokens, counted="endpoint", first_s=first_s, rest_s=rest_s)

    answers = [(10.0, reply(1, 3, 30)), (10.0, reply(1, 5, 50)), (14.0, reply(1, 4, 40))]
    wave = load.as_wave(answers, 2)
    assert (wave.seconds, wave.every) == (6, 120)
    assert wave.tokens == pytest.approx(30 + 50 + 10)
    assert wave.firsts == (1, 1, 1)
    begun, empty = (10.0, reply(1, 2, 20)), (10.0, reply(5, 0, 1))
    assert load.as_wave([begun, empty], 2).tokens == pytest.approx(20)
    alone = load.as_wave(answers[:2], 1)
    assert (alone.seconds, alone.tokens) == (6, 80)


def test_the_median_of_the_waves_and_all_of_them_together_are_told() -> None:
    """One wave of three was disturbed: it moves the sum, not the median."""
    [row], same = load.compare({4: {load.PLAIN: waves(1, 1, 1), load.DRAFTED: waves(0.8, 0.8, 2.4)}})
    assert same
    assert row["tokens_per_s"] == {load.PLAIN: 100, load.DRAFTED: pytest.approx(125)}
    assert row["drafting_over_plain"] == pytest.approx(1.25)
    assert row["drafting_over_plain_all"] == pytest.approx(3 / 4)
    low, high = row["drafting_over_plain_interval"]
    assert low <= 3 / 4 <= high


def test_what_a_server_computed_is_told_beside_what_the_clock_says() -> None:
    """Drafting waited for others half of its time, and computed a tenth less for each token."""
    found = {8: {load.PLAIN: waves(1, 1), load.DRAFTED: waves(2, 2, processor_s=1.8)}}
    [row], _ = load.compare(found)
    assert row["drafting_over_plain"] == pytest.approx(0.5)
    assert row["by_processor_time"] == pytest.approx(2 / 1.8)
    speeds, _ = load.tables([row])
    assert speeds.splitlines()[0].split("|")[-2].strip() == "by processor time"
    assert "1.11 (1.11 to 1.11)" in speeds.splitlines()[-1]


def test_where_the_system_does_not_tell_what_was_computed_nothing_is_said_of_it() -> None:
    [row], _ = load.compare({8: {load.PLAIN: waves(1), load.DRAFTED: waves(1, processor_s=None)}})
    assert "by_processor_time" not in row
    assert load.tables([row])[0].splitlines()[-1].split("|")[-2].strip() == ""


def test_texts_that_differ_are_noticed() -> None:
    other = replace(WAVE, texts=("a", "c"))
    _, same = load.compare({1: {load.PLAIN: [WAVE], load.DRAFTED: [other]}})
    assert not same


def test_turns_in_which_others_had_the_machine_are_not_counted() -> None:
    """But half of them always are, and a text that differs counts wherever it was written."""
    found = {2: {load.PLAIN: waves(1, 1, 1), load.DRAFTED: waves(2, 1, 5)}}
    found[2][load.DRAFTED][2] = replace(found[2][load.DRAFTED][2], stolen=0.3, texts=("a", "c"))
    found[2][load.PLAIN][0] = replace(WAVE, stolen=0.05)
    [row], same = load.compare(found, 0.1)
    assert (row["waves_counted"], row["waves"], same) == (2, 3, False)
    assert row["drafting_over_plain_all"] == pytest.approx(2 / 3)
    [row], _ = load.compare(found, 0.01)
    assert row["waves_counted"] == 2
    assert load.quiet_turns({load.PLAIN: [replace(WAVE, stolen=each) for each in (0.5, 0.4, 0.3, 0.2)]}, 0.0) == [2, 3]
    assert "2 of 3" in load.tables([row])[0]


def test_time_that_others_had_is_read_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: "cpu  10 0 5 80 1 0 1 3 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert load.machine_ticks() == (3, 100)


def test_a_share_of_the_best_peer_is_taken_wave_by_wave() -> None:
    found = {1: {load.PLAIN: waves(1, 1), load.DRAFTED: waves(0.5, 0.5)}}
    found[1] |= {load.PEER_PLAIN: waves(1, 4), load.PEER_DRAFTED: waves(2, 2)}
    [row], _ = load.compare(found)
    assert row["over_llama_server"] == pytest.approx((2 + 4) / 2)


def test_processor_time_is_that_of_the_process() -> None:
    before = load.processor_s(os.getpid())
    if before is None:
        pytest.skip("this system has no /proc")
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    after = load.processor_s(os.getpid())
    assert after is not None
    assert after - before >= 0.05  # ticks of a hundredth of a second
    assert load.processor_s(2**22 + 1) is None  # no process has such a number


@pytest.mark.parametrize(("replies", "average"), [(4, 64), (16, 64), (96, 64), (5, 1)])
def test_replies_differ_in_length(replies: int, average: int) -> None:
    limits = load.limits_of(replies, average)
    assert len(limits) == replies
    assert all(max(1, average // 2) <= limit <= 1.5 * average + 1 for limit in limits)
    assert abs(sum(limits) / replies - average) <= average / 8 + 0.5
    assert average == 1 or all(abs(a - b) >= average / 4 for a, b in pairwise(limits))
