"""The loop: schedules, accumulation, and runs that are killed anywhere and go on to the very same weights."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draftsmith.errors import CheckpointError, DraftsmithError
from draftsmith.train.loop import Run, learning_rate_at, planned_steps, train
from draftsmith.train.models import load_learner
from draftsmith.train.objectives import CrossEntropy
from draftsmith.train.store import TokenStore
from tests.support.tiny import tiny_folder
from tests.support.training import random_store, sft_stage

KILLS = int(os.environ.get("DRAFTSMITH_TEST_KILLS", "4"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return random_store(tmp_path_factory.mktemp("data") / "store", 30)


def make_run(folder: str, store: TokenStore, work: Path, **changes: Any) -> Run:
    stage = sft_stage(**changes)
    return Run(
        stage=stage,
        model=load_learner(folder).model,
        objective=CrossEntropy(stage.logits_chunk),
        store=store,
        folder=work,
        settings_key="key",
        evaluate=lambda _: {},
        tell=lambda _: None,
    )


def weights(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_learning_rates() -> None:
    stage = sft_stage(learning_rate=1.0, warmup_steps=4, final_learning_rate=0.1)
    assert [learning_rate_at(stage, step, 14) for step in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert learning_rate_at(stage, 9, 14) == pytest.approx(0.55)
    assert learning_rate_at(stage, 14, 14) == pytest.approx(0.1)
    constant = sft_stage(learning_rate=1.0, schedule="constant")
    assert {learning_rate_at(constant, step, 9) for step in range(1, 10)} == {1.0}


def test_steps_are_planned_from_epochs(store: TokenStore) -> None:
    one = planned_steps(sft_stage(steps=None, epochs=1.0), store)
    assert 6 <= one <= 12
    assert planned_steps(sft_stage(steps=None, epochs=2.0), store) in range(2 * one - 1, 2 * one + 2)
    assert planned_steps(sft_stage(steps=None, epochs=1.0, gradient_accumulation=2), store) == (one + 1) // 2
    assert planned_steps(sft_stage(steps=5), store) == 5


def test_the_loss_falls_and_every_step_is_recorded(folder: str, store: TokenStore, tmp_path: Path) -> None:
    run = make_run(folder, store, tmp_path, steps=40, save_every=40)
    train(run)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 41))
    losses = [record["loss"] for record in records]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_accumulation_is_one_large_batch(folder: str, store: TokenStore, tmp_path: Path) -> None:
    """The mean over all tokens of a step, not the mean of the micro-batches' means."""
    whole = make_run(folder, store, tmp_path / "a", steps=1, batch_tokens=100_000)
    parts = make_run(
        folder, store, tmp_path / "b", steps=1, gradient_accumulation=planned_steps(sft_stage(steps=None), store)
    )
    first, second = train(whole), train(parts)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert first["gradient_norm"] == pytest.approx(second["gradient_norm"], rel=1e-4)


def test_gradient_checkpointing_and_chunks_change_nothing(folder: str, store: TokenStore, tmp_path: Path) -> None:
    plain = train(make_run(folder, store, tmp_path / "a", steps=3))
    saved = train(make_run(folder, store, tmp_path / "b", steps=3, gradient_checkpointing=True, logits_chunk=5))
    assert plain["loss"] == pytest.approx(saved["loss"], rel=1e-5)


def test_bfloat16_keeps_fp32_weights(folder: str, store: TokenStore, tmp_path: Path) -> None:
    run = make_run(folder, store, tmp_path / "a", steps=3, dtype="bfloat16")
    low = train(run)
    full = train(make_run(folder, store, tmp_path / "b", steps=3))
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert low["loss"] != full["loss"]
    assert low["loss"] == pytest.approx(full["loss"], rel=2e-2)


def test_a_run_that_stops_goes_on_as_if_it_had_not(folder: str, store: TokenStore, tmp_path: Path) -> None:
    """Stopped by an error in the middle of step 6: the checkpoint of step 4 and a metrics file that ran ahead."""
    through = make_run(folder, store, tmp_path / "through")
    train(through)
    broken = make_run(folder, store, tmp_path / "broken", eval_every=6)

    class Power(Exception):
        pass

    def fail(_: Any) -> dict[str, float]:
        raise Power

    object.__setattr__(broken, "evaluate", fail)
    with pytest.raises(Power):
        train(broken)
    resumed = make_run(folder, store, tmp_path / "broken")
    train(resumed)
    assert same(weights(through), weights(resumed))
    assert (tmp_path / "through/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_a_damaged_checkpoint_is_passed_over(folder: str, store: TokenStore, tmp_path: Path) -> None:
    through = make_run(folder, store, tmp_path)
    train(through)
    newest = tmp_path / "step-00000008" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3] + b"abc")
    again = make_run(folder, store, tmp_path)
    train(again)
    assert same(weights(through), weights(again))


def test_other_settings_do_not_go_on(folder: str, store: TokenStore, tmp_path: Path) -> None:
    train(make_run(folder, store, tmp_path))
    other = make_run(folder, store, tmp_path)
    object.__setattr__(other, "settings_key", "other")
    with pytest.raises(CheckpointError, match="was made with other settings"):
        train(other)


def test_checkpoints_are_few_and_safetensors_only(folder: str, store: TokenStore, tmp_path: Path) -> None:
    train(make_run(folder, store, tmp_path, keep_checkpoints=2, save_every=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "step-00000006", "step-00000008"]
    files = sorted(path.name for path in (tmp_path / "step-00000008").iterdir())
    assert files == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert "random/cpu" in load_file(tmp_path / "step-00000008" / "optimizer.safetensors")


def test_a_loss_that_is_no_number_ends_the_run(folder: str, store: TokenStore, tmp_path: Path) -> None:
    run = make_run(folder, store, tmp_path)
    with torch.no_grad():
        run.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DraftsmithError, match="step 1 has the loss nan"):
        train(run)


RECIPE = """
output = "out"
[stage.sft]
model = "tiny"
data = "chat.jsonl"
max_length = 128
batch_tokens = 256
steps = 24
save_every = 5
log_every = 1000
learning_rate = 1e-3
save_dtype = "float32"
"""


# Imports once, then runs the recipe of each folder that it reads from standard input, in a child of its own.
RUNNER = """
import os, sys
from pathlib import Path
from draftsmith.train.recipe import read_recipe
from draftsmith.train.runner import Reporter, run_recipe

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.chdir(line.strip())
        run_recipe(read_recipe(Path("r.toml")), Reporter(tell=lambda _: None, progress=lambda *_: None))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Runs recipes in processes that can be killed, without importing PyTorch for each."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", RUNNER], stdin=pipe, stdout=pipe, text=True)

    def run(self, folder: Path, kill_after: float | None = None) -> int:
        """The exit code; ``-SIGKILL`` when it was killed after so many seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def forks() -> Iterator[Forks]:
    runner = Forks()
    yield runner
    runner.close()


def workplace(folder: Path) -> Path:
    tiny_folder(folder / "tiny")
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"it is {i}"}]}
        for i in range(50)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "r.toml").write_text(RECIPE)
    return folder


def test_killed_at_any_moment_the_result_is_the_same_to_the_bit(tmp_path: Path, forks: Forks) -> None:
    """SIGKILL at random moments, from reading the recipe to the last rename. The first killed run starts again, the
    next go on from its checkpoints, until one is through; then the folder is emptied and all begins anew."""
    calm, harried = workplace(tmp_path / "calm"), workplace(tmp_path / "harried")
    assert forks.run(calm) == 0
    began = time.monotonic()
    (calm / "out").rename(calm / "first")
    assert forks.run(calm) == 0
    whole = time.monotonic() - began
    rng, kills = random.Random(os.environ.get("DRAFTSMITH_TEST_SEED", "1")), 0  # noqa: S311
    while kills < KILLS:
        code = forks.run(harried, kill_after=rng.uniform(0, 0.6) * whole)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if code == 0:
            assert_equal(calm, harried)
            shutil.rmtree(harried / "out")
    assert forks.run(harried) == 0
    assert_equal(calm, harried)


def assert_equal(calm: Path, harried: Path) -> None:
    for name in ("model.safetensors", "metrics.jsonl", "config.json", "tokenizer.json"):
        assert (calm / "out/sft" / name).read_bytes() == (harried / "out/sft" / name).read_bytes(), name
    assert sorted(path.name for path in (harried / "out").iterdir()) == ["sft"]
