"""Training checkpoints: everything that the next step depends on, in safetensors and JSON, whole or not at all.

A checkpoint is a folder ``step-00000120`` with ``model.safetensors``, ``optimizer.safetensors`` and ``state.json``,
which names the SHA-256 of both. It is written under another name, synced and renamed. When training goes on, the newest
one that verifies is taken: a kill at any moment costs the steps since, and nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from draftsmith.errors import CheckpointError
from draftsmith.provenance import file_sha256
from draftsmith.train.atomic_folder import atomic_folder, remove_leftovers
from draftsmith.train.tensor_file import save_tensors
from draftsmith.train.world import World, put, whole, whole_weights

__all__ = ["Position", "load_newest", "save_snapshot"]

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where training stands after ``step`` steps: the next micro-batch is bin ``bin`` of ``epoch``.

    ``tokens`` read and ``learnt`` predicted so far. ``metrics_bytes``: the length of the metrics file at this point.
    """

    step: int = 0
    epoch: int = 0
    bin: int = 0
    tokens: int = 0
    learnt: int = 0
    metrics_bytes: int = 0


def save_snapshot(
    folder: Path,
    position: Position,
    model: Any,
    optimizer: torch.optim.Optimizer,
    settings_key: str,
    keep: int,
    world: World = World(),  # noqa: B008 - a frozen value
) -> None:
    """Write a checkpoint below ``folder`` and remove all but the newest ``keep``. Raises DiskFull, ResourceError.

    With several processes all must call this; the first one writes. It holds whole tensors, so that any number of
    processes can go on from it.
    """
    place = folder / f"step-{position.step:08d}"
    there = place.exists()
    world.wait()  # all have looked before the first begins to write
    if there:
        return
    weights, optimizer_tensors = whole_weights(model), _optimizer_tensors(model, optimizer)
    if world.first:
        remove_leftovers(folder)
        with atomic_folder(place) as temporary:
            save_tensors(temporary / "model.safetensors", weights)
            save_tensors(temporary / "optimizer.safetensors", optimizer_tensors)
            state = {
                "position": asdict(position),
                "settings": settings_key,
                "sha256": {path.name: file_sha256(path) for path in sorted(temporary.glob("*.safetensors"))},
            }
            (temporary / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for old in _found(folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    world.wait()


def load_newest(folder: Path, model: Any, optimizer: torch.optim.Optimizer, settings_key: str) -> Position:
    """Put the newest good checkpoint into ``model`` and ``optimizer``; without one, the beginning.

    Raises CheckpointError when a good one was made with other settings.
    """
    for place in _found(folder):
        try:
            state = _verified(place)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged after it was written; an older one will do
        if state["settings"] != settings_key:
            raise CheckpointError(
                f"{place} was made with other settings or other data; go on with those, or remove {folder.parent}"
            )
        try:
            weights = load_file(place / "model.safetensors")
            optimizer_tensors = load_file(place / "optimizer.safetensors")
        except SafetensorError as error:
            raise CheckpointError(f"{place} is damaged ({error}); remove it") from None
        _load_weights(model, weights)
        _load_optimizer(model, optimizer, optimizer_tensors)
        return Position(**state["position"])
    return Position()


def _found(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), reverse=True)


def _verified(place: Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = json.loads((place / "state.json").read_text(encoding="utf-8"))
    for name in ("model.safetensors", "optimizer.safetensors"):
        if file_sha256(place / name) != state["sha256"][name]:
            raise ValueError(f"{name} has another hash")
    return state


def _load_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(put(parameter, weights[name]))


def _optimizer_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """AdamW's state as ``<parameter>/<entry>``, and the state of the random generators."""
    tensors = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{entry}"] = whole(value)
    return tensors


def _load_optimizer(model: Any, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    for name, parameter in model.named_parameters():
        for entry in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"{name}/{entry}")
            if value is not None:
                optimizer.state[parameter][entry] = value if entry == "step" else put(parameter, value)
