"""The scripts that start training on several machines: sound shell, known fields, commands that exist."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml  # type: ignore[import-untyped]


def test_slurm_script_starts_torchrun_once_a_node(repository: Path, tmp_path: Path) -> None:
    """Run with stand-ins for Slurm's commands: what torchrun would be given."""
    for name, body in (
        ("scontrol", "printf 'node-a\\nnode-b\\n'"),
        ("srun", 'exec "$@"'),
        ("torchrun", 'for word in "$@"; do printf "%s\\n" "$word"; done'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", str(repository / "examples" / "train.sbatch"), "recipe.toml", "sft.steps=5"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **slurm}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[words.index("--nnodes") + 1] == "2"
    assert words[words.index("--rdzv-endpoint") + 1] == "node-a:29500"
    assert words[words.index("-m") :] == ["-m", "draftsmith", "train", "recipe.toml", "sft.steps=5"]


def test_skypilot_task(repository: Path) -> None:
    """The fields are those of SkyPilot 0.14's task schema (sky/utils/schemas.py), the script is sound shell."""
    task = yaml.safe_load((repository / "examples" / "train.sky.yaml").read_text())
    assert task.keys() <= {"name", "workdir", "num_nodes", "resources", "file_mounts", "envs", "setup", "run"}
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)
    assert "-m draftsmith train" in task["run"]
    assert (repository / task["envs"]["RECIPE"]).is_file()
