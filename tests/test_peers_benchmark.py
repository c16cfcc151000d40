"""The comparison with other engines: a process for each, the same order for all, ratios prompt by prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pytest

from benchmarks import peers
from benchmarks.common import PeerMissingError, Reply
from benchmarks.workers import Runner, Worker


def make_counting(step: int) -> Mapping[str, Runner]:
    """Runs in a child: counts on from the prompt's last token, and says in which process."""

    def run(prompt_ids: Sequence[int]) -> Reply:
        return Reply(tuple(prompt_ids[-1] + step * i for i in range(1, 4)), 0.5, os.getpid())

    return {"count": run}


def make_missing() -> Mapping[str, Runner]:
    raise PeerMissingError("the peer is not installed; leave it out")


def make_dying() -> Mapping[str, Runner]:
    os._exit(3)


def reply(*token_ids: int, seconds: float) -> Reply:
    return Reply(token_ids, 0.1, seconds)


def test_a_worker_answers_from_a_process_of_its_own() -> None:
    with Worker(make_counting, step=10) as worker:
        first = worker.runners["count"]([1, 2, 3])
        assert first.token_ids == (13, 23, 33)
        assert first.decode_s != os.getpid()
        assert worker.runners["count"]([5]).token_ids == (15, 25, 35)


def test_a_missing_or_dying_peer_is_a_sentence() -> None:
    with pytest.raises(PeerMissingError, match="the peer is not installed"):
        Worker(make_missing)
    with pytest.raises(PeerMissingError, match="ended without an answer"):
        Worker(make_dying)


def test_every_runner_answers_every_prompt_in_turn() -> None:
    asked: list[tuple[str, int]] = []

    def runner(name: str) -> Runner:
        def run(prompt_ids: Sequence[int]) -> Reply:
            asked.append((name, prompt_ids[0]))
            return reply(1, 2, seconds=1.0)

        return run

    prompts = [("code", [1]), ("code", [2]), ("talk", [3])]
    replies = peers.measure({"a": runner("a"), "b": runner("b")}, prompts, repeat=2)
    warm_up = [("a", 1), ("b", 1)]
    assert asked == warm_up + [(name, number) for _ in range(2) for number in (1, 2, 3) for name in "ab"]
    assert {category: len(by_name["b"]) for category, by_name in replies.items()} == {"code": 4, "talk": 2}


def test_speed_ups_are_means_of_ratios_and_a_changed_text_shows() -> None:
    plain = [reply(1, 2, 3, seconds=2.0), reply(1, 2, 3, seconds=4.0)]
    fast = [reply(1, 2, 3, seconds=1.0), reply(1, 2, 3, seconds=4.0)]
    other = [reply(1, 9, 3, seconds=4.0), reply(1, 2, 9, seconds=4.0)]
    by_name = {peers.OURS: plain, peers.OURS_DRAFT: fast, peers.THEIRS: other}
    row = peers.summary({"code": by_name})["code"]
    assert row["identical"] is True
    assert row["runners"][peers.OURS_DRAFT]["speedup"] == pytest.approx((2.0 + 1.0) / 2)
    assert row["runners"][peers.OURS_DRAFT]["worst_speedup"] == pytest.approx(1.0)
    assert row["runners"][peers.THEIRS]["speedup"] == pytest.approx((0.5 + 1.0) / 2)
    assert row["tokens_in_common_with_llama_cpp"] == 1.5
    changed = by_name | {peers.OURS_DRAFT: [fast[0], reply(1, 2, 4, seconds=4.0)]}
    result = peers.summary({"code": changed})
    assert result["code"]["identical"] is False
    assert "identical: NO" in "\n".join(peers.shown(result))
