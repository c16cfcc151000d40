"""The loop that all learning stages share.

A run is a function of the model, the data and the settings: on a CPU, a run that was killed and went on has the same
losses and weights, to the bit, as one that was not. Several processes (``world``) share the micro-batches of each step
and compute what one would, but for the order of the sums.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.train.flops import Speed, step_flops
from draftsmith.train.objectives import Objective
from draftsmith.train.packing import Bins, PackedBatch, pack, plan_bins, spread
from draftsmith.train.rounding import computing_once
from draftsmith.train.schema import TrainingStage
from draftsmith.train.snapshots import Position, load_newest, save_snapshot
from draftsmith.train.store import TokenStore
from draftsmith.train.world import Shared, World, share_out, whole, world

__all__ = ["Evaluate", "Run", "autocast", "learning_rate_at", "planned_steps", "train"]

CPU = torch.device("cpu")
Evaluate = Callable[[Any], Mapping[str, float]]
"""Measures the model; it is back in training mode afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run. ``folder`` holds checkpoints and metrics.jsonl; ``settings_key`` names settings and data.

    ``evaluate`` is called every ``eval_every`` steps and at the end. ``tell`` takes a metrics record for people, with
    speed and time left. ``saved`` is called after each checkpoint. ``spread_to``: a context over which positions are
    spread at random (``packing.spread``).
    """

    stage: TrainingStage
    model: Any
    objective: Objective
    store: TokenStore
    folder: Path
    settings_key: str
    evaluate: Evaluate
    tell: Callable[[Mapping[str, float]], None]
    device: torch.device = CPU
    saved: Callable[[], None] = lambda: None
    spread_to: int | None = None


def train(run: Run) -> dict[str, float]:
    """Train to the end, from the newest checkpoint if there is one; the metrics of the last step and evaluation.

    ``run.model`` is modified, and with several processes left split among them. Raises DiskFull, CheckpointError,
    UsageError when the processes cannot share a step evenly, and DraftsmithError when the loss is no number.
    """
    stage, model, own = run.stage, run.model, world()
    if stage.gradient_accumulation % own.size:
        raise UsageError(
            f"stage.{stage.name}.gradient_accumulation is {stage.gradient_accumulation}, and {own.size} processes "
            f"share the micro-batches of a step; make it a multiple of {own.size}"
        )
    steps = planned_steps(run.stage, run.store)
    shared = share_out(model, run.device, own.size)
    optimizer = _optimizer(model, stage, run.device)
    position = load_newest(run.folder, model, optimizer, run.settings_key)
    metrics = run.folder / "metrics.jsonl"
    own.wait()
    if own.first:
        run.folder.mkdir(parents=True, exist_ok=True)
        with metrics.open("ab") as file:  # what was written after the checkpoint will be written again
            file.truncate(position.metrics_bytes)
    if stage.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()  # the first is the name since transformers 5.20
    model.train()
    speed, last = Speed(run.device, stage.dtype, own.size), {}
    for batches, position in _steps(run, position, steps):  # noqa: B020 - the position moves on
        record = _step(run, shared, optimizer, batches, position.step, steps, own)
        speed.add(sum(batch.ids.size for batch in batches), sum(step_flops(model, batch.lengths) for batch in batches))
        record |= {"tokens": position.tokens, "epoch": position.epoch}
        done = position.step == steps
        if done or (stage.eval_every and position.step % stage.eval_every == 0):
            with torch.no_grad(), speed.paused():
                record |= shared(run.evaluate)
                shared.split_again()
            model.train()
        if own.first:
            position = replace(position, metrics_bytes=_append(metrics, record))
            if done or position.step % stage.log_every == 0:
                run.tell({**record, "steps": steps, **speed.told(steps - position.step)})
        if done or position.step % stage.save_every == 0:
            with speed.paused():
                _make_durable(metrics)
                save_snapshot(run.folder, position, model, optimizer, run.settings_key, stage.keep_checkpoints, own)
                run.saved()
        last = record
    own.wait()
    return last or _last_record(metrics)


def planned_steps(stage: TrainingStage, store: TokenStore) -> int:
    """How many steps the stage takes over this data."""
    if stage.steps is not None:
        return stage.steps
    whole = math.floor(stage.epochs)
    counts = [len(_bins(stage, store, epoch)) for epoch in range(math.ceil(stage.epochs))]
    bins = sum(counts[:whole]) + (math.ceil((stage.epochs - whole) * counts[-1]) if stage.epochs > whole else 0)
    return max(1, math.ceil(bins / stage.gradient_accumulation))


def learning_rate_at(stage: TrainingStage, step: int, steps: int) -> float:
    """The learning rate of step 1 to ``steps``: a linear rise over the warm-up, then constant or half a cosine."""
    if step <= stage.warmup_steps:
        return stage.learning_rate * step / stage.warmup_steps
    if stage.schedule == "constant":
        return stage.learning_rate
    share = (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
    low = stage.final_learning_rate
    return stage.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * share)) / 2)


def autocast(stage: TrainingStage, device: torch.device) -> Any:
    """bfloat16 for the matrix products, over fp32 weights; or nothing."""
    if stage.dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _bins(stage: TrainingStage, store: TokenStore, epoch: int) -> Bins:
    return plan_bins(store.group_lengths(), stage.batch_tokens, stage.seed, epoch)


def _steps(run: Run, position: Position, steps: int) -> Iterator[tuple[list[PackedBatch], Position]]:
    """For each step its micro-batches, and the position after it."""
    stage, store = run.stage, run.store
    epoch, place = position.epoch, position.bin
    bins = _bins(stage, store, epoch)
    tokens, learnt = position.tokens, position.learnt
    for step in range(position.step + 1, steps + 1):
        batches = []
        for _ in range(stage.gradient_accumulation):
            if place == len(bins):
                epoch, place = epoch + 1, 0
                bins = _bins(stage, store, epoch)
            batch = pack(store, bins[place])
            if run.spread_to is not None:
                batch = spread(batch, run.spread_to, (stage.seed, epoch, place))
            batches.append(batch)
            place += 1
        tokens += sum(batch.ids.size for batch in batches)
        learnt += sum(batch.labels.size for batch in batches)
        yield batches, Position(step=step, epoch=epoch, bin=place, tokens=tokens, learnt=learnt)


def _step(
    run: Run,
    shared: Shared,
    optimizer: torch.optim.Optimizer,
    batches: list[PackedBatch],
    step: int,
    steps: int,
    own: World,
) -> dict[str, float]:
    """One optimiser step: the mean of the losses over all terms of its micro-batches, of which this process does its
    share."""
    stage, parameters = run.stage, list(run.model.parameters())
    rate = learning_rate_at(stage, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    terms = sum(run.objective.terms(batch) for batch in batches)
    total = 0.0
    optimizer.zero_grad(set_to_none=True)
    for batch in batches[own.rank :: own.size]:
        with autocast(stage, run.device), computing_once():
            loss = shared(run.objective.loss_sum, batch) / terms
        torch.autograd.backward(loss)
        total += float(loss.detach())
    total = own.total(total)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(parameters, stage.clip_norm or math.inf, norm.to(run.device))
    if not math.isfinite(total) or not math.isfinite(float(norm)):
        raise DraftsmithError(
            f"step {step} has the loss {total} and the gradient {float(norm)}; lower learning_rate or look at the data"
        )
    optimizer.step()
    return {"step": step, "loss": total, "gradient_norm": float(norm), "learning_rate": rate}


def _optimizer(model: Any, stage: TrainingStage, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with fp32 state; no weight decay on vectors."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (stage.adam_beta1, stage.adam_beta2)
    fused = device.type == "cuda" or world().size == 1
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=betas, eps=stage.adam_eps, fused=fused or None)


def _append(path: Path, record: Mapping[str, float]) -> int:
    """Add one JSON line; the length of the file then. Floats are written so that they read back equal."""
    with path.open("ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
        return file.tell()


def _make_durable(path: Path) -> None:
    """A checkpoint counts on the metrics before it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _last_record(path: Path) -> dict[str, float]:
    lines = path.read_bytes().splitlines()
    record: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return record
