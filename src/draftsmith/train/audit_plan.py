"""Which stages of a recipe can be audited, and what each would read; without loading any model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from draftsmith.checkpoint import open_checkpoint, resolve
from draftsmith.errors import UsageError
from draftsmith.text import choose_format
from draftsmith.train.prepare import DataPlan
from draftsmith.train.recipe import Recipe
from draftsmith.train.schema import DpoStage, ExtendStage, Stage, TrainingStage

__all__ = ["audited_stages"]


def audited_stages(recipe: Recipe, only: str | None) -> Iterator[tuple[str, DataPlan, tuple[str, ...]]]:
    """(name, what it trains on, what of that other stages have yet to make) for each stage that learns, or for ``only``
    one. What is yet to be made is not in the plan.

    The tokenizer is that of the first model that is there along the way a stage's model comes from: training changes no
    tokenizer. Raises UsageError when there is no such stage, or when its documents may be longer than the context
    that its model will have, and what reading a model raises.
    """
    stages = [stage for stage in recipe.stages if isinstance(stage, TrainingStage) and only in (None, stage.name)]
    if not stages:
        raise UsageError(
            f"{recipe.path} has no stage{f' {only}' if only else ''} that learns; there is nothing to audit"
        )
    for stage in stages:
        checkpoint = open_checkpoint(resolve(recipe.origin_of(stage)).path)
        context = _context(recipe, stage, checkpoint.config.max_context)
        if stage.max_length > context:
            raise UsageError(
                f"stage.{stage.name}.max_length is {stage.max_length}, but the model's context is {context}; "
                "extend it first, or give less"
            )
        tokenizer = checkpoint.tokenizer()
        choice = stage.prompt_format or recipe.inherited_format(stage)
        awaited = tuple(source.path for source in stage.data if recipe.awaits(source.path))
        yield (
            stage.name,
            DataPlan(
                sources=recipe.located(source for source in stage.data if source.path not in awaited),
                tokenizer=tokenizer,
                prompt_format=choose_format(tokenizer, choice),
                max_length=stage.max_length,
                too_long=stage.too_long,
                bad_rows=stage.bad_rows,
                group=2 if isinstance(stage, DpoStage) else 1,
            ),
            awaited,
        )


def _context(recipe: Recipe, stage: Stage, origin: int) -> int:
    """Tokens of context that the stage's model has when it learns; ``origin``: of the model that is there already."""
    for step in (stage, *recipe.lineage(stage)):
        if isinstance(step, ExtendStage):
            return step.max_context
        if Path(recipe.model_of(step)).exists():
            break
    return origin
