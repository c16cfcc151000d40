"""``draftsmith quantize`` and ``export`` as they are typed: results, refusals, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftsmith.checkpoint import open_checkpoint
from draftsmith.cli import main
from draftsmith.quant import BlockType
from tests.support.tiny import tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), BlockType.Q4_1), (("--bits", 8), BlockType.Q8_0), (("--type", "Q4_0"), BlockType.Q4_0)],
)
def test_quantize(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], expected: BlockType
) -> None:
    out = tmp_path / "m.gguf"
    code, said, _ = run(capsys, "quantize", model, out, "--json", *options)
    report = json.loads(said)
    assert code == 0
    assert report["num_bytes"] == out.stat().st_size
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].block_type is expected


def test_what_is_typed_wrong(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    for args, words in (
        (("quantize", model, out, "--bits", 5), "it must be 4 or 8"),
        (("quantize", model, out, "--bits", 4, "--type", "q8_0"), "give one of them"),
        (("quantize", model, out, "--type", "q3_k"), "it must be one of bf16"),
        (("quantize", model, tmp_path / "m.bin"), "must end in .gguf"),
        (("export", "hf", model, tmp_path / "m", "--dtype", "int8"), "it must be one of float32"),
    ):
        code, said, error = run(capsys, *args)
        assert (code, said) == (2, "")
        assert words in error
        assert error.count("\n") == 1
    code, _, error = run(capsys, "quantize", tmp_path / "nothing", out)
    assert code == 1
    assert "there is no" in error
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_without_force(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"precious")
    code, _, error = run(capsys, "export", "gguf", model, out)
    assert (code, out.read_bytes()) == (2, b"precious")
    assert "--force" in error
    assert run(capsys, "export", "gguf", model, out, "--force")[0] == 0
    assert out.read_bytes()[:4] == b"GGUF"
    code, _, error = run(capsys, "export", "gguf", out, out, "--force")
    assert code == 2
    assert "is the model itself" in error


def test_force_replaces_exports_only(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    code, _, error = run(capsys, "export", "hf", model, home, "--force")
    assert (code, (home / "letter.txt").read_text()) == (2, "dear")
    assert "was not made by draftsmith export" in error
    assert run(capsys, "export", "hf", model, out)[0] == 0
    assert run(capsys, "export", "hf", model, out)[0] == 2
    assert run(capsys, "export", "hf", model, out, "--force", "--dtype", "bfloat16")[0] == 0
    record = json.loads((out / "export.json").read_text())
    assert record["result"]["dtype"] == "bfloat16"
    assert record["sources"]["model"]["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


def test_a_failure_leaves_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old export stays whole when the new one cannot be finished."""
    out = tmp_path / "out"
    assert run(capsys, "export", "hf", model, out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("draftsmith.export.hf._write", full)
    code, _, error = run(capsys, "export", "hf", model, out, "--force")
    assert code == 1
    assert "no space left" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
