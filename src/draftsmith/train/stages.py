"""The stages that make a model: each takes a Learner and gives the metrics of what it did to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from draftsmith.errors import TokenizerError, UsageError
from draftsmith.text import PromptFormat, choose_format
from draftsmith.train.acceptance import HeldOut, as_evaluation
from draftsmith.train.loop import Run, autocast, train
from draftsmith.train.models import Learner, load_learner, new_model, pick_device
from draftsmith.train.objectives import CrossEntropy, Distillation, Objective, Preference
from draftsmith.train.prepare import DataPlan, Tell, prepare
from draftsmith.train.rounding import round_weights, stop_rounding
from draftsmith.train.schema import DataSource, DistillStage, DpoStage, ExtendStage, InitStage, TrainingStage
from draftsmith.train.shapes import extended, kept_layers, shrunk_config, shrunk_weights
from draftsmith.train.store import TokenStore
from draftsmith.train.vocabulary import most_frequent, prune, restore
from draftsmith.train.world import whole_weights, world

__all__ = ["Workplace", "data_plan", "initialise", "learn"]

STORED = "data"  # acceptance_target: the log-probabilities in eval_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """``folder`` for unfinished work. ``find_data`` and ``find_model`` turn a recipe's names into paths and
    references. ``tell`` takes a line for people, ``progress`` a metrics record, ``saved`` the folder, after each
    checkpoint. ``ray_workers``: how many of them write replies; None: this machine does, as the stage says."""

    folder: Path
    find_data: Callable[[DataSource], DataSource]
    find_model: Callable[[str], str]
    tell: Tell
    progress: Callable[[Mapping[str, float]], None]
    saved: Callable[[Path], None] = lambda _: None
    ray_workers: int | None = None


def initialise(stage: InitStage, parent: Learner, place: Workplace) -> tuple[Learner, dict[str, Any]]:
    """The smaller model that an init stage describes, and what is to be recorded of it."""
    config = shrunk_config(parent.config, stage)
    layers = kept_layers(stage, parent.config.num_layers)
    model = new_model(config, stage.seed)
    if not stage.from_scratch:
        weights = {name: tensor.detach() for name, tensor in parent.model.state_dict().items()}
        model.load_state_dict({**model.state_dict(), **shrunk_weights(weights, config, layers)}, strict=True)
        model.tie_weights()
    kept, report = parent.kept_ids, {}
    if stage.keep_vocabulary is not None:
        if not stage.data:
            raise UsageError(f"stage.{stage.name}.keep_vocabulary needs data, to count which ids are frequent")
        plan = DataPlan(
            sources=tuple(map(place.find_data, stage.data)),
            tokenizer=parent.tokenizer,
            prompt_format=choose_format(parent.tokenizer, stage.prompt_format),
            max_length=1 << 20,
            bad_rows=stage.bad_rows,
        )
        store = prepare(plan, place.folder / "data", place.tell)
        kept, report = most_frequent(store, parent.tokenizer, config.vocab_size, stage.keep_vocabulary), store.report
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = {"layers": None if stage.from_scratch else list(layers), "parameters": parameters, "data": report}
    return replace(parent, model=model, config=config, kept_ids=kept), record


def learn(stage: TrainingStage, learner: Learner, place: Workplace) -> tuple[Learner, dict[str, Any]]:
    """Train as the stage says; the learner (its model modified), and metrics and data reports.

    Of several processes (``world``) all must call this, and all get the whole model in the end.
    """
    if isinstance(stage, ExtendStage):
        config = extended(learner.config, stage)
        model = new_model(config)
        model.load_state_dict(learner.model.state_dict(), strict=True)
        learner = replace(learner, model=model, config=config)
        if stage.steps == 0:
            return learner, {"metrics": {}, "data": {}, "device": None}
    if stage.max_length > learner.config.max_context:
        raise UsageError(
            f"stage.{stage.name}.max_length is {stage.max_length}, but the model's context is "
            f"{learner.config.max_context}; extend it first, or give less"
        )
    plan = data_plan(stage, learner, place)
    with world().in_turn():
        store = prepare(plan, place.folder / "data", place.tell)
    device = pick_device(stage.device)
    whole = _pruned(stage, learner)
    unrounded = _rounded(stage, learner)
    objective = _objective(stage, learner, store, place)
    held_out = _held_out(stage, learner, plan, place)
    if held_out is not None and isinstance(objective, Preference):
        held_out = replace(held_out, preference=objective)
    told: dict[str, float] = {}

    def progress(record: Mapping[str, float]) -> None:
        told.update(record)
        place.progress(record)

    run = Run(
        stage=stage,
        model=learner.model,
        objective=objective,
        store=store,
        folder=place.folder,
        settings_key=_settings_key(stage, plan, learner),
        evaluate=as_evaluation(held_out),
        tell=progress,
        device=device,
        saved=lambda: place.saved(place.folder),
        spread_to=stage.max_context if isinstance(stage, ExtendStage) and stage.position_skips else None,
    )
    metrics = train(run)
    speed = {name: told[name] for name in ("tokens_per_s", "share_of_peak") if name in told}
    record = {"metrics": metrics, "speed": speed, "data": store.report, "device": str(device)}
    unrounded()
    whole()
    return _gathered(learner), {**record, "processes": world().size}


def _pruned(stage: TrainingStage, learner: Learner) -> Callable[[], None]:
    """Leave a draft only the rows that it may write while it learns; call what this returns to put all back.

    Not for preferences, whose replies hold any id, and not where the model is split among processes.
    """
    kept = learner.kept_ids
    if kept is None or isinstance(stage, DpoStage) or world().size > 1:
        return lambda: None
    head = learner.model.get_output_embeddings().weight.detach()
    prune(learner.model, kept)
    return lambda: restore(learner.model, kept, None if learner.config.tie_embeddings else head)


def _rounded(stage: TrainingStage, learner: Learner) -> Callable[[], None]:
    """Let the model compute with rounded weights if the stage says so; call what this returns to end that."""
    if not isinstance(stage, DistillStage) or stage.round_to is None:
        return lambda: None
    if world().size > 1:
        raise UsageError(f"stage.{stage.name}.round_to is for one process; leave it out, or start one")
    round_weights(learner.model, stage.round_to)
    return lambda: stop_rounding(learner.model)


def _gathered(learner: Learner) -> Learner:
    """The learner with its model in one piece again, if it was split among processes."""
    if world().size == 1:
        return learner
    weights = whole_weights(learner.model)
    model = new_model(learner.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return replace(learner, model=model)


def data_plan(stage: TrainingStage, learner: Learner, place: Workplace) -> DataPlan:
    """What the stage trains on."""
    return DataPlan(
        sources=tuple(map(place.find_data, stage.data)),
        tokenizer=learner.tokenizer,
        prompt_format=stage_format(stage, learner),
        max_length=stage.max_length,
        too_long=stage.too_long,
        bad_rows=stage.bad_rows,
        group=2 if isinstance(stage, DpoStage) else 1,
    )


def stage_format(stage: TrainingStage | InitStage, learner: Learner) -> PromptFormat:
    """The prompt format of a stage: the one it names, else the model's."""
    return choose_format(learner.tokenizer, stage.prompt_format)


def _objective(stage: TrainingStage, learner: Learner, store: TokenStore, place: Workplace) -> Objective:
    chunk, kept = stage.logits_chunk, learner.kept_ids
    if isinstance(stage, DpoStage):
        reference = _frozen(learner.parent["path"], stage)
        return Preference(reference, chunk, stage.beta, stage.label_smoothing, ipo=stage.loss == "ipo")
    if not isinstance(stage, DistillStage):
        return CrossEntropy(chunk, stage.z_loss, kept)
    target = None
    if stage.target is not None:
        target = _target(place.find_model(stage.target), learner, stage)
    elif not store.top_k:
        raise UsageError(
            f"stage.{stage.name} has no target, and its data no log-probabilities of one; "
            "give target, or the folder of a generate stage as data"
        )
    elif stage.target_temperature != 1:
        raise UsageError(
            f"stage.{stage.name}.target_temperature is {stage.target_temperature}, but stored log-probabilities "
            "are those of temperature 1; give target, or leave it out"
        )
    return Distillation(
        stage.loss,
        chunk,
        target,
        jsd_beta=stage.jsd_beta,
        ce_weight=stage.ce_weight,
        temperature=stage.target_temperature,
        draft_length=stage.draft_length,
        z_loss=stage.z_loss,
        kept_ids=kept,
    )


def _held_out(stage: TrainingStage, learner: Learner, plan: DataPlan, place: Workplace) -> HeldOut | None:
    if not stage.eval_data:
        if stage.acceptance_target is not None:
            raise UsageError(f"stage.{stage.name}.acceptance_target needs eval_data to be measured on")
        return None
    plan = replace(plan, sources=tuple(map(place.find_data, stage.eval_data)))
    with world().in_turn():
        store = prepare(plan, place.folder / "data", place.tell)
    target = None
    if stage.acceptance_target == STORED and not store.top_k:
        raise UsageError(
            f'stage.{stage.name}.acceptance_target is "data", but eval_data holds no log-probabilities; name the target'
        )
    if stage.acceptance_target not in (None, STORED):
        target = _target(place.find_model(str(stage.acceptance_target)), learner, stage)
    return HeldOut(
        store=store,
        limit=stage.eval_limit,
        batch_tokens=stage.batch_tokens,
        chunk=stage.logits_chunk,
        draft_length=stage.draft_length,
        context=partial(autocast, stage, pick_device(stage.device)),
        target=target,
        kept_ids=learner.kept_ids,
    )


def _target(reference: str, learner: Learner, stage: TrainingStage) -> Any:
    """The target's model, frozen. Raises TokenizerError when it has another vocabulary."""
    target = load_learner(reference)
    if target.tokenizer.fingerprint() != learner.tokenizer.fingerprint():
        raise TokenizerError(
            f"{reference} has another vocabulary than the model of stage.{stage.name} (its ids stand for other "
            "text); learn from a target with the same tokenizer"
        )
    return _eval_only(target.model, stage)


def _frozen(reference: str, stage: TrainingStage) -> Any:
    return _eval_only(load_learner(reference).model, stage)


def _eval_only(model: Any, stage: TrainingStage) -> Any:
    model.requires_grad_(False)
    model.eval()
    return model.to(pick_device(stage.device))


def _settings_key(stage: TrainingStage, plan: DataPlan, learner: Learner) -> str:
    """Digest of what the weights depend on; how often to log or save is not among it."""
    free = {"device", "eval_every", "eval_limit", "keep_checkpoints", "log_every", "save_dtype", "save_every"}
    if stage.schedule == "constant":
        free |= {"epochs", "steps"}  # a run may be told to go on, or to end here
    settings = {name: getattr(stage, name) for name in type(stage).__dataclass_fields__ if name not in free}
    text = json.dumps([settings, plan.key(), learner.parent["sha256"]], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
