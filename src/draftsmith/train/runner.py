"""Running a recipe: stage after stage, each into a folder of its own with a stage.json; nothing is done twice."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from draftsmith.checkpoint.atomic import atomic_file, explain_os_error
from draftsmith.errors import UsageError
from draftsmith.provenance import collect
from draftsmith.train.atomic_folder import atomic_folder, remove_leftovers
from draftsmith.train.curves import Artist
from draftsmith.train.models import Learner, load_learner, saved_folder
from draftsmith.train.pack import pack_draft, unpack_draft
from draftsmith.train.parts import HELDOUT
from draftsmith.train.prompts import read_prompts, that_fit, write_prompts
from draftsmith.train.ray_replies import write_replies_on_ray
from draftsmith.train.recipe import Recipe, stage_settings
from draftsmith.train.replies import load_writer, parts_of, write_replies, write_replies_together
from draftsmith.train.schema import GenerateStage, InitStage, PackStage, Stage, TrainingStage
from draftsmith.train.stages import Workplace, initialise, learn, stage_format
from draftsmith.train.world import World, joined

__all__ = ["STAGE_FILE", "Reporter", "run_recipe"]

STAGE_FILE = "stage.json"
_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """``tell`` takes a line for people, ``progress`` the name of a stage and a record of its metrics."""

    tell: Callable[[str], None]
    progress: Callable[[str, Mapping[str, float]], None]


def run_recipe(
    recipe: Recipe, reporter: Reporter, only: str | None = None, ray_workers: int | None = None
) -> dict[str, dict[str, Any]]:
    """Run every stage that is not done yet, or ``only`` one; the contents of each stage.json by name.

    ``ray_workers``: generate stages are done by so many workers of Ray (``ray_replies``).

    Under ``torchrun`` all processes must call this; they share the work of the stages that train, the first one writes
    and reports, and the output must lie where all of them can read it. Raises UsageError when a folder was made with
    other settings or is in use, and what the stages raise.
    """
    if only is not None and only not in [stage.name for stage in recipe.stages]:
        raise UsageError(f"the recipe has no stage {only!r}; it has {', '.join(s.name for s in recipe.stages)}")
    with joined() as own, _alone(recipe.output) if own.first else nullcontext():
        if not own.first:
            reporter = Reporter(tell=lambda _: None, progress=lambda *_: None)
        chosen = [stage for stage in recipe.stages if only is None or stage.name == only]
        return {stage.name: _run(recipe, stage, reporter, own, ray_workers) for stage in chosen}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second program out of the folder; however this one ends, the system lets go. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"another program is training in {folder}; wait for it or choose another output") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _run(recipe: Recipe, stage: Stage, reporter: Reporter, own: World, ray_workers: int | None) -> dict[str, Any]:
    folder, work = recipe.output / stage.name, recipe.output / f".{stage.name}.work"
    settings = json.loads(json.dumps(stage_settings(stage)))
    done = _finished(folder, stage, settings)
    own.wait()  # all have looked before anything is written
    if done is not None:
        reporter.tell(f"{stage.name}: done before, in {folder}")
        return done
    if own.first:
        work.mkdir(parents=True, exist_ok=True)
        remove_leftovers(recipe.output)
    place = Workplace(
        folder=work,
        find_data=lambda source: replace(source, path=recipe.locate(source.path)),
        find_model=recipe.locate,
        tell=lambda line: reporter.tell(f"{stage.name}: {line}"),
        progress=lambda record: reporter.progress(stage.name, record),
        saved=Artist(stage.name).draw_sometimes if own.first else lambda _: None,
        ray_workers=ray_workers,
    )
    began = time.perf_counter()
    model = recipe.model_of(stage)
    if own.first:
        with _working(stage, model, place, folder, own) as (target, details):
            record = {"name": stage.name, "kind": stage.kind, "settings": settings, **details}
            record |= {"seconds": round(time.perf_counter() - began, 3), **_origin()}
            with atomic_file(target / STAGE_FILE) as file:
                file.write((json.dumps(record, indent=1) + "\n").encode())
        shutil.rmtree(work, ignore_errors=True)
        reporter.tell(f"{stage.name}: done, in {folder}")
    elif isinstance(stage, TrainingStage):  # the other stages are the first process's alone
        _made(stage, model, place, own)
    own.wait()
    return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8")) if not own.first else record


@contextmanager
def _working(
    stage: Stage, model: str, place: Workplace, folder: Path, own: World
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Do the stage; a folder that appears whole when the block ends, and what to record."""
    if isinstance(stage, GenerateStage):
        details = _generate(stage, model, place)
        with atomic_folder(folder) as target:
            for path in sorted((*place.folder.glob("[!.]*.*"), *place.folder.glob(f"{HELDOUT}/[!.]*.*"))):
                copy = target / path.relative_to(place.folder)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
            yield target, details
        return
    if isinstance(stage, PackStage):
        learner = load_learner(model)
        with atomic_folder(folder) as target:
            packed = pack_draft(stage, learner, target)
            yield target, {"parent": {**learner.parent, "path": model}, **packed}
        return
    learner, details = _made(stage, model, place, own)
    assert isinstance(stage, InitStage | TrainingStage)  # noqa: S101 - all that is left
    with saved_folder(learner, stage_format(stage, learner), folder, stage.save_dtype) as target:
        metrics = place.folder / "metrics.jsonl"
        if metrics.exists():
            shutil.copyfile(metrics, target / metrics.name)
            Artist(stage.name).draw(target)
        yield target, {"parent": dict(learner.parent), **details}


def _made(stage: Stage, model: str, place: Workplace, own: World) -> tuple[Learner, dict[str, Any]]:
    """The model that the stage makes of ``model``, and what to record of it."""
    if isinstance(stage, InitStage) and stage.packed is not None:
        made, record = unpack_draft(stage, place.find_model(stage.packed), model)
        return replace(made, parent={**made.parent, "path": model}), record
    with own.in_turn() if isinstance(stage, TrainingStage) else nullcontext():
        learner = load_learner(model)
    learner = replace(learner, parent={**learner.parent, "path": model})
    if isinstance(stage, InitStage):
        return initialise(stage, learner, place)
    assert isinstance(stage, TrainingStage)  # noqa: S101 - the others make no model
    return learn(stage, learner, place)


def _generate(stage: GenerateStage, model: str, place: Workplace) -> dict[str, Any]:
    given, skip = stage.turns == "given", stage.bad_rows == "skip"
    prompts = read_prompts(map(place.find_data, stage.prompts), place.tell, given=given, skip=skip)
    writer = load_writer(stage, model)
    if stage.num_prompts:
        prompts += write_prompts(writer, stage, place.folder / "prompts.jsonl", place.tell)
    if not prompts:
        raise UsageError(f"stage.{stage.name} has no prompts; give prompts, num_prompts or both")
    asked, prompts = len(prompts), that_fit(prompts, writer, place.tell)
    if not prompts:
        raise UsageError(f"stage.{stage.name}: no prompt fits into the context of {writer.max_context} tokens")
    if stage.heldout_share and len({part.held_out for part in parts_of(prompts, stage)}) < 2:
        raise UsageError(
            f"stage.{stage.name}.heldout_share is {stage.heldout_share}, which draws none or all of {len(prompts)} "
            "prompts; change it, or give more prompts"
        )
    if stage.endpoint is not None:
        counts = write_replies(writer, stage, prompts, place.folder, place.tell)
    elif place.ray_workers is not None:
        counts = write_replies_on_ray(model, stage, prompts, place.folder, place.tell, place.ray_workers)
    elif stage.processes > 1:
        counts = write_replies_together(model, stage, prompts, place.folder, place.tell)
    else:
        counts = write_replies(writer, stage, prompts, place.folder, place.tell)
    left_out = {"too_long": asked - len(prompts)} if asked > len(prompts) else {}
    return {"target": writer.name, "data": counts | left_out}


def _finished(folder: Path, stage: Stage, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What stage.json says if the folder is there and was made with these settings; ones that it does not name, as
    they came later, had their defaults."""
    if not folder.exists():
        return None
    try:
        record: dict[str, Any] = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
        made_with = record["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{folder} is there already and is no finished stage; remove it") from None
    defaults = stage_settings(type(stage)(name=stage.name, kind=stage.kind))
    made_with = {**json.loads(json.dumps(defaults)), **made_with}
    other = [key for key in settings if made_with[key] != settings[key]]
    if other:
        raise UsageError(
            f"{folder} was made with {other[0]} = {made_with[other[0]]!r:.80}, the recipe says "
            f"{settings[other[0]]!r:.80}; remove the folder or choose another output"
        )
    return record


def _origin() -> dict[str, Any]:
    """Versions and hardware."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {"versions": versions, "gpu": gpu, "provenance": collect().as_dict()}
