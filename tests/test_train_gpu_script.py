"""The script for training on a GPU runs from end to end on a processor."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from benchmarks import train_gpu


def test_both_programs_are_timed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_gpu.py", "--tiny", "--card-tokens", "1000"])
    train_gpu.main()
    printed = capsys.readouterr().out
    rows = json.loads(printed.splitlines()[-1])["rows"]
    assert [(row["length"], row["program"]) for row in rows] == [
        (length, name) for length in (32, 128) for name in ("draftsmith", "transformers Trainer")
    ]
    for own, other in zip(rows[::2], rows[1::2], strict=True):
        assert own["times Trainer"] == pytest.approx(own["tokens/s"] / other["tokens/s"])
        assert own["hours"] == pytest.approx(3 * 1000 / own["tokens/s"] / 3600)
        # one model, counted one way: the shares stand to each other as the speeds do, but for the measured peak
        assert 0 < own["share"] < 1
    assert "Hours: of 3 epochs over 1,000 tokens." in printed


def test_without_a_gpu_it_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["train_gpu.py"])
    with pytest.raises(SystemExit) as ended:
        train_gpu.main()
    assert ended.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err
