"""``benchmarks.orders_in_batches``: known replies, written by the real engine at the costs of its steps."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import orders_in_batches as batches
from benchmarks.orders import Text
from draftsmith.engine.batch import Engine
from draftsmith.engine.limits import EngineLimits
from draftsmith.speculate import CostModel

FREE = CostModel(0.25, (1.0, 1.0), draft_read=0.0)  # checking costs nothing


def text(file: str, number: int, right: int) -> Text:
    """A reply of 33 tokens, and drafts of eight of which the first ``right`` are."""
    reply = [100 * number + i for i in range(33)]
    drafts = [([*reply[i : i + right], *[7] * 8][:8], [0.9] * 8) for i in range(1, 33)]
    return Text(file, str(number), [1, 2, 3], reply, drafts)


def test_every_text_gets_a_number_of_its_own_and_small_ids() -> None:
    texts = [text("a", 9, 8), text("b", 8, 8)]
    numbered = batches.numbered(texts, 2)
    assert [(one.file, one.id) for one in numbered] == [("a", "9"), ("a", "9"), ("b", "8"), ("b", "8")]
    assert len({one.prompt_ids[0] for one in numbered}) == 4
    used = {i for one in numbered for i in [*one.prompt_ids, *one.reply_ids]}
    assert max(used) < 3 + 66 + 1 + 4
    assert all(one.prompt_ids[0] not in other.reply_ids for one in numbered for other in numbered)


@pytest.mark.parametrize("size", [1, 3])
def test_known_replies_are_written_and_right_drafts_save_steps(size: int) -> None:
    """With four right tokens of eight, a round writes five at the cost of four drafts and a check."""
    texts = batches.numbered([text("a", 9, 4), text("a", 8, 4), text("a", 7, 4)], 2)
    plain_engine = Engine(batches.KnownTarget(texts), limits=EngineLimits(max_running=size, share_prompts=False))
    plain = batches.write_files(plain_engine, texts, FREE, size)
    assert [list(reply) for reply in plain["a"].replies] == [one.reply_ids for one in texts]
    row = batches.judge(texts, FREE, size, "model", plain)
    assert row["best_length"]["a"] == 4
    assert 2.0 < row["best"]["a"] < 2.5
    assert row["auto_over_best"]["a"] > 0.8  # six short texts, and nothing known at first
    never = batches.judge(texts, FREE, size, "never right", plain)
    assert never["best"]["a"] == 1.0
    assert 0.9 < never["auto"]["a"] <= 1.0


def test_the_mix_is_compared_with_the_faster_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved.json"
    short = {**asdict(text("short", 3, 4)), "reply_ids": [1, 2, 3]}  # says little, and is left out
    saved.write_text(json.dumps({"costs": asdict(FREE), "texts": [asdict(text("a", 9, 4)), short]}))
    monkeypatch.setattr(sys, "argv", ["orders_in_batches", "--saved", str(saved), "--sizes", "1", "--repeat", "1"])
    assert batches.main() == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    by_way = {row["way"]: row for row in result["rows"]}
    assert list(by_way["mix"]["auto"]) == ["a"]
    assert by_way["mix"]["over_faster_part"]["a"] == by_way["mix"]["auto"]["a"] / by_way["model"]["auto"]["a"]
