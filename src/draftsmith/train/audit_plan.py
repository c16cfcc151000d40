"""Which stages of a recipe can be audited, and what each would read; without loading any model."""

from __future__ import annotations

from collections.abc import Iterator

from draftsmith.checkpoint import open_checkpoint, resolve
from draftsmith.errors import UsageError
from draftsmith.text import choose_format
from draftsmith.train.prepare import DataPlan
from draftsmith.train.recipe import Recipe
from draftsmith.train.schema import DpoStage, TrainingStage

__all__ = ["audited_stages"]


def audited_stages(recipe: Recipe, only: str | None) -> Iterator[tuple[str, DataPlan]]:
    """(name, what it trains on) for each stage that learns, or for ``only`` one.

    The tokenizer is that of the first model that is there along the way a stage's model comes from: training changes no
    tokenizer. Raises UsageError when there is no such stage, and what reading a model raises.
    """
    stages = [stage for stage in recipe.stages if isinstance(stage, TrainingStage) and only in (None, stage.name)]
    if not stages:
        raise UsageError(
            f"{recipe.path} has no stage{f' {only}' if only else ''} that learns; there is nothing to audit"
        )
    for stage in stages:
        checkpoint = open_checkpoint(resolve(recipe.origin_of(stage)).path)
        tokenizer = checkpoint.tokenizer()
        choice = stage.prompt_format or recipe.inherited_format(stage)
        yield (
            stage.name,
            DataPlan(
                sources=recipe.located(stage.data),
                tokenizer=tokenizer,
                prompt_format=choose_format(tokenizer, choice),
                max_length=stage.max_length,
                too_long=stage.too_long,
                bad_rows=stage.bad_rows,
                group=2 if isinstance(stage, DpoStage) else 1,
            ),
        )
