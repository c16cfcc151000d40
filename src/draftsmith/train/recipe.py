"""Reading a recipe: a TOML file of stages, and ``key=value`` overrides from the command line.

    output = "models/my-draft"          # every stage makes a folder below it

    [stage.sft]                         # kind = "sft", unless a key says otherwise
    model = "organisation/name"
    data = ["chats.jsonl", {path = "more.parquet", format = "sharegpt"}]
    learning_rate = 2e-5

Paths are relative to the recipe's folder where they exist there, else to the current one; ``stage:sft`` is what the
stage sft made, ``stage:replies/heldout`` what the generate stage replies kept apart. An override names a key by
its path, ``stage.sft.learning_rate=1e-5``, or shorter ``sft.learning_rate=1e-5``; its value is TOML, or else a text.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from draftsmith.checkpoint.hub_data import PREFIX, fetch_data
from draftsmith.errors import UsageError
from draftsmith.train.parts import HELDOUT
from draftsmith.train.schema import (
    STAGES,
    DataSource,
    ExtendStage,
    GenerateStage,
    InitStage,
    PackStage,
    Stage,
    TrainingStage,
)

__all__ = ["Recipe", "read_recipe", "stage_settings"]

MAX_BYTES = 1 << 20
STAGE_PREFIX = "stage:"  # "stage:sft" names the folder that the stage sft makes
_OF_THE_PARENT = ("layers", "num_layers", "hidden_size", "intermediate_size", "from_scratch", "keep_vocabulary", "data")
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """``path`` is the file, ``output`` the folder that everything is written to, ``stages`` come in order."""

    path: Path
    output: Path
    stages: tuple[Stage, ...]

    def locate(self, reference: str) -> str:
        """``stage:NAME`` is that stage's folder; files of a data set on the hub are fetched; a path is looked for
        beside the recipe; anything else stays.

        Raises UsageError when the recipe has no such stage, HubError.
        """
        if reference.startswith(PREFIX):
            return str(fetch_data(reference))
        if reference.startswith(STAGE_PREFIX):
            name, slash, part = reference.removeprefix(STAGE_PREFIX).partition("/")
            if name not in [stage.name for stage in self.stages]:
                raise UsageError(f"{self.path} names {reference}, but it has no stage {name!r}")
            if slash and part != HELDOUT:
                raise UsageError(f"{self.path} names {reference}; of a stage there is all, or its {HELDOUT}")
            return str(self.output / name / part)
        beside = self.path.parent / reference
        return str(beside) if beside.exists() or ("*" in beside.name and beside.parent.is_dir()) else reference

    def awaits(self, reference: str) -> bool:
        """Whether this is what a stage makes, and it has not made it yet. Raises what ``locate`` raises."""
        return reference.startswith(STAGE_PREFIX) and not Path(self.locate(reference)).exists()

    def model_of(self, stage: Stage) -> str:
        """The reference of the model that a stage starts from. Raises UsageError when there is none."""
        if stage.model is not None:
            return self.locate(stage.model)
        before = self.stages[: self.stages.index(stage)]
        makers = [earlier for earlier in before if not isinstance(earlier, GenerateStage | PackStage)]
        if not makers:
            raise UsageError(
                f"{self.path}: stage.{stage.name}.model is missing; expected a path, hub id or alias to start from"
            )
        return str(self.output / makers[-1].name)

    def located(self, sources: Iterable[DataSource]) -> tuple[DataSource, ...]:
        """The sources with paths that lead to the files."""
        return tuple(dataclasses.replace(source, path=self.locate(source.path)) for source in sources)

    def lineage(self, stage: Stage) -> tuple[Stage, ...]:
        """The stages that the stage's model comes from, nearest first."""
        made = {str(self.output / other.name): other for other in self.stages if other != stage}
        before: list[Stage] = []
        nearest: Stage | None = stage
        while nearest is not None and (nearest := made.pop(self.model_of(nearest), None)) is not None:
            before.append(nearest)
        return tuple(before)

    def origin_of(self, stage: Stage) -> str:
        """The nearest model on the stage's way that is there already: all have the same tokenizer."""
        way = (stage, *self.lineage(stage))
        finished = (self.model_of(step) for step in way)
        return next((model for model in finished if Path(model).exists()), self.model_of(way[-1]))

    def inherited_format(self, stage: Stage) -> str | None:
        """The prompt format that the stages before this one leave behind; None if that is the first model's own."""
        formats = (getattr(step, "prompt_format", None) for step in self.lineage(stage))
        return next((name for name in formats if name is not None), None)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Raises UsageError that names the file, the key and what was expected."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read ({error.strerror}); give a TOML file") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"the recipe {path} has {len(raw)} bytes; a recipe has at most {MAX_BYTES}")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError too
        raise UsageError(f"the recipe {path} is not TOML ({' '.join(str(error).split())}); mend it") from None
    for override in overrides:
        _override(tree, override)
    unknown = tree.keys() - {"output", "stage"}
    if unknown:
        raise UsageError(f"{path}: the key {min(unknown)!r} is unknown; expected output and [stage.NAME] tables")
    output, tables = tree.get("output"), tree.get("stage")
    if not isinstance(output, str) or not output:
        raise UsageError(f"{path}: output is {output!r}; expected the folder to write to, as a text")
    if not isinstance(tables, dict) or not tables:
        raise UsageError(f"{path}: there is no stage; expected at least one table such as [stage.sft]")
    stages = tuple(_stage(path, name, table) for name, table in tables.items())
    return Recipe(path, Path(output), stages)


def stage_settings(stage: Stage) -> dict[str, Any]:
    """The stage as plain values, for stage.json."""
    return dataclasses.asdict(stage)


def _override(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"the override {text!r} is not key=value; write for example sft.learning_rate=1e-5")
    if parts[0] not in ("stage", "output"):
        parts.insert(0, "stage")
    if parts[0] == "stage" and parts[1:2] and parts[1] not in tree.get("stage", {}):
        raise UsageError(f"the override {text!r} names no stage of the recipe; it has {_listed(tree.get('stage', {}))}")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        parsed = value.strip()
    table = tree
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"the override {text!r} goes through {part!r}, which is no table")
    table[parts[-1]] = parsed


def _stage(path: Path, name: str, table: Any) -> Stage:
    where = f"{path}: stage.{name}"
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {table!r:.60}; expected a table of settings")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{where}: a stage's name makes a folder; use letters, digits, - and _")
    kind = table.get("kind", name)
    if kind not in STAGES:
        raise UsageError(f"{where}.kind is {kind!r}; expected one of {_listed(STAGES)}")
    stage: Stage = _build(STAGES[kind], {**table, "kind": kind, "name": name}, where)
    if isinstance(stage, InitStage) and stage.packed is not None:
        others = [other for other in _OF_THE_PARENT if getattr(stage, other)]
        if others:
            raise UsageError(f"{where} has both packed and {others[0]}; a packed draft is taken as it is")
    if isinstance(stage, TrainingStage):
        untrained = stage.steps == 0
        if untrained and not isinstance(stage, ExtendStage):
            raise UsageError(
                f"{where}.steps is 0; it must be at least 1, as only extend does something without training"
            )
        if not stage.data and not untrained:
            raise UsageError(f"{where}.data is missing; expected a file of rows, or a list of files")
        if stage.max_length > stage.batch_tokens:
            raise UsageError(
                f"{where}.batch_tokens is {stage.batch_tokens}; expected at least max_length, {stage.max_length}"
            )
    return stage


def _build(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """A frozen settings object; every key known, every value of its type."""
    hints, known = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UsageError(f"{where}: the key {unknown[0]!r} is unknown; expected among {_listed(known)}")
    missing = [n for n, f in known.items() if n not in values and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise UsageError(f"{where}: the key {missing[0]!r} is missing")
    converted = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except UsageError as error:
        raise UsageError(f"{where}.{error}") from None


def _convert(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        [hint] = [choice for choice in get_args(hint) if choice is not type(None)]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where} is {value!r:.60}; expected one of {_listed(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        member = get_args(hint)[0]
        members = value if isinstance(value, list) else [value]
        return tuple(_convert(entry, member, f"{where}[{i}]") for i, entry in enumerate(members))
    if hint is DataSource:
        values = {"path": value} if isinstance(value, str) else value
        if not isinstance(values, dict):
            raise UsageError(f"{where} is {value!r:.60}; expected a path, or a table with path and format")
        return _build(DataSource, values, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if value.bit_length() < sys.float_info.max_exp else math.inf
    if type(value) is not hint:
        raise UsageError(f"{where} is {value!r:.60}; expected {_NAMES[hint]}")
    return value


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)
