"""Several processes: what two of them learn is what one learns, and either goes on where the other stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

import draftsmith
from draftsmith.cli import main
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.train import loop
from draftsmith.train.loop import Run, learning_rate_at, train
from draftsmith.train.models import pick_device
from draftsmith.train.schema import TrainingStage
from draftsmith.train.world import World, share_out, world
from tests.support.tiny import tiny_folder
from tests.support.training import sft_stage

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this PyTorch has no gloo"
)

RECIPE = """
output = "out"
[stage.sft]
model = "tiny"
data = "chat.jsonl"
eval_data = "chat.jsonl"
acceptance_target = "tiny"
max_length = 128
batch_tokens = 128
gradient_accumulation = 4
gradient_checkpointing = true
steps = 6
save_every = 2
eval_every = 3
log_every = 1
learning_rate = 1e-3
weight_decay = 0.1
z_loss = 1e-4
logits_chunk = 32
save_dtype = "float32"
[stage.dpo]
data = "pairs.jsonl"
max_length = 64
batch_tokens = 128
gradient_accumulation = 2
steps = 3
learning_rate = 1e-3
save_dtype = "float32"
"""
# Two runs in a row: from the beginning, and from where one process stopped; then one that stops in all processes.
PROGRAM = """
import sys
from draftsmith.cli import main
from draftsmith.train import loop
from draftsmith.train.world import joined
from tests.train.test_world import stopping

with joined():
    code = main(["train", "r.toml", "output=two", "--json"])
    code = code or main(["train", "r.toml", "output=three", "--stage", "sft"])
    loop.learning_rate_at = stopping
    main(["train", "r.toml", "output=four", "--stage", "sft"])
sys.exit(code)
"""


def stopping(stage: TrainingStage, step: int, steps: int) -> float:
    """In place of ``learning_rate_at``: the end of a run after its fourth step."""
    if step == 5:
        raise DraftsmithError("stopped")
    return learning_rate_at(stage, step, steps)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "tiny")
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"abc {i} def" * 2}]}
        for i in range(40)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": f"q{i}", "chosen": "yes a", "rejected": "no b"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


def run_two(place: Path) -> subprocess.CompletedProcess[str]:
    (place / "program.py").write_text(PROGRAM)
    paths = [str(Path(draftsmith.__file__).parents[1]), str(Path(__file__).parents[2])]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "program.py"],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=250,
    )


def metrics(place: Path, output: str, stage: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (place / output / stage / "metrics.jsonl").read_text().splitlines()]


def assert_close(place: Path, one: str, other: str, stage: str) -> None:
    for ours, theirs in zip(metrics(place, one, stage), metrics(place, other, stage), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    first, second = (load_file(place / output / stage / "model.safetensors") for output in (one, other))
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5


def test_two_processes_learn_what_one_does(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(["train", "r.toml", "output=one"]) == 0
    monkeypatch.setattr(loop, "learning_rate_at", stopping)
    assert main(["train", "r.toml", "output=three", "--stage", "sft"]) == 1
    monkeypatch.undo()
    monkeypatch.chdir(place)
    both = run_two(place)
    assert both.returncode == 0, both.stderr
    for stage in ("sft", "dpo"):
        assert_close(place, "one", "two", stage)
    assert len(metrics(place, "two", "sft")) == 6
    assert "eval_acceptance" in metrics(place, "two", "sft")[-1]
    # one of them speaks and writes
    assert both.stderr.count("sft: step 1 of 6") == 2  # of the runs two and four; three began with step 5
    assert len([line for line in both.stdout.splitlines() if line.startswith("{")]) == 1
    assert json.loads((place / "two/sft/stage.json").read_text())["processes"] == 2
    assert sorted(path.name for path in (place / "two").iterdir()) == ["dpo", "sft"]
    # two go on from what one left, and one from what two left
    assert_close(place, "one", "three", "sft")
    assert [path.name for path in (place / "four").iterdir()] == [".sft.work"]
    assert main(["train", "r.toml", "output=four", "--stage", "sft"]) == 0
    assert_close(place, "one", "four", "sft")


def test_the_environment_says_who_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert world() == World(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start the processes with torchrun"):
        world()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert world() == World(1, 2, 1)
    assert not world().first
    with pytest.raises(UsageError, match="device is 'cuda:0', but there are 2 processes"):
        pick_device("cuda:0")
    with pytest.raises(UsageError, match="is 3, and 2 processes share the micro-batches of a step; make it a multiple"):
        train(make_run(sft_stage(gradient_accumulation=3)))


def make_run(stage: TrainingStage) -> Run:
    nothing: Any = None
    return Run(
        stage=stage,
        model=nothing,
        objective=nothing,
        store=nothing,
        folder=Path(),
        settings_key="",
        evaluate=lambda _: {},
        tell=lambda _: None,
    )


def test_a_model_split_among_none_is_itself() -> None:
    model = torch.nn.Linear(2, 2)
    shared = share_out(model, torch.device("cpu"), 1)
    assert shared(lambda inner, number: (inner is model, number), 3) == (True, 3)
    shared.split_again()
