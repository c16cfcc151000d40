"""Work on two workers of Ray, started as a user starts it: the files and figures are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from draftsmith.cli import main
from draftsmith.engine import ray_workers
from draftsmith.errors import UsageError
from tests.support.tiny import tiny_folder

PROMPTS = ("hi", "so", "then", "hi", "what now", "else")  # one comes twice


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray's parts talk by the machine's address, which a test may not. Ray ends with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "draftsmith", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in PROMPTS))
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'output = "{tmp_path}/out"\n[stage.replies]\nkind = "generate"\nmodel = "{model}"\nprompts = "prompts.jsonl"\n'
        'temperature = 1.0\nmax_new_tokens = 9\ntop_logprobs = 5\nrows_per_part = 2\nthreads = 1\ndraft = "lookup"\n'
    )
    return path


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


@needs_ray
def test_replies_are_those_of_one_process_and_finished_parts_are_kept(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert run("train", str(recipe), f"output={tmp_path}/one").returncode == 0
    expected = parts(tmp_path / "one" / "replies")
    assert len(expected) == 3  # of five different prompts
    work = tmp_path / "out" / ".replies.work"
    work.mkdir(parents=True)
    kept = work / "part-00001.safetensors"
    kept.write_bytes(expected[kept.name])
    done = run("train", str(recipe), "--ray-workers", "2")
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "out" / "replies") == expected
    told = [line for line in done.stderr.splitlines() if "answered" in line]
    assert len(told) == 2  # the part that was there was not written again
    assert told[-1] == "replies: 5 of 5 written"


@needs_ray
def test_figures_are_those_of_one_process(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 9)
    rows = [{"id": str(i), "category": "toy", "turns": [text, "and"]} for i, text in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--target", str(model), "--draft", "lookup", "--num-draft-tokens", "3", "--threads", "1", "--json"]
    files = ["--text", str(tmp_path / "text.txt"), "--prompts", str(tmp_path / "prompts.jsonl")]
    limits = ["--context", "48", "--windows", "5", "--max-new-tokens", "9", "--temperatures", "0,1"]
    command = ["eval", "perplexity", "acceptance", *options, *files, *limits]
    results = [run(*command), run(*command, "--ray-workers", "2")]
    assert [done.returncode for done in results] == [0, 0], results[1].stderr
    alone, together = (json.loads(done.stdout.splitlines()[-1])["tasks"] for done in results)
    assert alone == together
    assert alone["perplexity"]["windows"] == 5
    assert sum(row["replies"] for row in alone["acceptance"]) == 2 * 2 * len(PROMPTS)


@needs_ray
def test_a_workers_error_is_told_in_its_own_sentence(tmp_path: Path) -> None:
    done = run("eval", "acceptance", "--target", str(tmp_path / "nothing"), "--ray-workers", "2", "--limit", "2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].count("nothing") == 1
    assert "Traceback" not in done.stderr


def test_without_ray_it_says_what_to_install(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_workers, "find_spec", lambda _: None)
        for command in (["train", str(recipe)], ["eval", "acceptance"]):
            assert main([*command, "--ray-workers", "2"]) == 2
            expected = "Ray workers need ray and pyarrow; run: pip install 'draftsmith[ray]'"
            assert expected in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="--ray-workers is 0; it must be 1 or more"):
        ray_workers.check_ray(0)


def test_tasks_that_are_not_shared_out_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "find_spec", lambda _: object())
    assert main(["eval", "needle", "--ray-workers", "2"]) == 2
    assert "leave out needle or --ray-workers" in " ".join(capsys.readouterr().err.split())
