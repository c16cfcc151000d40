"""The script for GPUs runs from end to end on a processor, so that the day with a GPU is not spent on mending it."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

import torch

from benchmarks import backends, gpu
from benchmarks.gpu_parts import Found, Setting
from benchmarks.gpu_shapes import Script, random_module


def run(*options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", *options])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes and what it brings along
        return gpu.main()


def test_every_table_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--out", str(tmp_path), monkeypatch=monkeypatch) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    rows = {name: [dict(zip(part["header"], row, strict=True)) for row in part["rows"]] for name, part in parts.items()}
    assert [row["program"] for row in rows["plain"]][:3] == ["draftsmith", "draftsmith, exact", "draftsmith, no graphs"]
    assert all(row["tokens/s"] > 0 for row in rows["plain"])
    pairs = [(row["acceptance"], row["draft length"]) for row in rows["speculative"]]
    assert pairs == [(a, k) for a in (0.6, 0.8, 0.9) for k in (2, 4, 7)]
    assert {row["same"] for row in rows["speculative"]} == {"yes"}
    assert [row["replies with the same text"] for row in rows["exact"]][1] == "2 of 2"
    assert [list(row.values()) for row in rows["waits"]] == [[k, 1, 1, 1] for k in (2, 4, 7)]
    assert rows["experts"][0]["v"] == 1
    assert [row["context"] for row in rows["long"]] == [64, 128]
    assert len(rows["memory"]) == 2
    assert sum(len(part["verdicts"]) for part in parts.values()) == 10
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("| promise ")
    assert all(f"### {name} " in page for name in gpu.PARTS)


def test_what_fails_or_comes_too_late_is_told_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(setting: Setting) -> Found:
        raise RuntimeError(f"no memory on {setting.device}\nand more")

    monkeypatch.setitem(gpu.PARTS, "plain", fail)
    assert run("--out", str(tmp_path), "--parts", "long", monkeypatch=monkeypatch) == 0
    assert run("--out", str(tmp_path), "--parts", "plain", monkeypatch=monkeypatch) == 1
    assert run("--out", str(tmp_path), "--parts", "waits", "--budget", "-1", monkeypatch=monkeypatch) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["long"]["rows"]
    assert parts["plain"]["error"] == "RuntimeError: no memory on cpu"
    assert parts["waits"]["error"].startswith("left out: -1 seconds were over")
    assert "| part plain " in (tmp_path / "gpu.md").read_text()


def test_without_a_gpu_it_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_a_script_is_right_as_often_as_it_is_told() -> None:
    reply = [i % 300 for i in range(2000)]
    module = random_module("1.1B", torch.device("cpu"), torch.float32, tiny=True)
    script = Script.agreeing([1, 2, 3], reply, 0.8, torch.device("cpu"))
    handle = script.attach(module)
    said = module(torch.tensor([[1, 2, 3, *reply[:400]]])).logits[0, 2:-1].argmax(-1).tolist()
    handle.remove()
    assert [a == b for a, b in zip(said, reply, strict=False)] == script.right[:400]
    assert 0.77 < sum(script.right) / 2000 < 0.83


def test_backends_measures_all_ways(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["backends.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        backends.main()
    assert ended.value.code == 0
    assert "--target" in capsys.readouterr().out
    assert len({way.name for way in backends.WAYS}) == len(backends.WAYS) == 6
