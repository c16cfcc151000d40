"""The script for GPUs runs from end to end on a processor, so that the day with a GPU is not spent on mending it."""

from __future__ import annotations

import json
import sys
import warnings

import pytest

pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

from benchmarks import backends, gpu
from benchmarks.gpu_shapes import Script


def test_every_table_comes_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes and what it brings along
        gpu.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [row["program"] for row in result["plain"]]
    assert names[:3] == ["draftsmith", "draftsmith, exact", "draftsmith, no graphs"]
    assert all(row["tokens/s"] > 0 for row in result["plain"])
    rows = result["speculative"]
    assert [(row["acceptance"], row["k"]) for row in rows] == [(a, k) for a in (0.6, 0.8, 0.9) for k in (2, 4, 7)]
    assert result["experts"][0]["v"] == 1
    assert [row["context"] for row in result["long"]] == [64, 128]
    assert len(result["memory"]) == 2


def test_without_a_gpu_it_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_a_script_is_right_as_often_as_it_is_told() -> None:
    reply = list(range(2000))
    said = Script.agreeing([1, 2, 3], reply, 0.8, 5000).next_ids
    assert len(said) == 2003
    assert 0.77 < sum(a == b for a, b in zip(said[3:], reply, strict=True)) / 2000 < 0.83


def test_backends_measures_all_ways(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["backends.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        backends.main()
    assert ended.value.code == 0
    assert "--target" in capsys.readouterr().out
    assert len({way.name for way in backends.WAYS}) == len(backends.WAYS) == 6
