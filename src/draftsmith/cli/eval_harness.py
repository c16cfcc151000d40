"""``draftsmith eval --task``: the options of tasks that the Language Model Evaluation Harness has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from draftsmith.errors import UsageError

__all__ = ["HarnessOptions"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HarnessOptions:
    """Which tasks of lm-eval, and how they are asked."""

    task: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A task of lm-eval (extra lm-eval), by its name there; repeatable. --limit N: N questions of each.",
            show_default=False,
        ),
    ] = dataclasses.field(default_factory=list)
    task_folder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Further tasks for --task: lm-eval's YAML files.")
    ] = None
    fewshot: Annotated[
        int | None, typer.Option(metavar="N", help="Solved examples before each question; the task's own number.")
    ] = None
    task_chat: Annotated[
        bool, typer.Option("--task-chat", help="Ask questions of --task as messages, in the prompt format.")
    ] = False

    @property
    def folder(self) -> Path | None:
        """The folder of tasks."""
        return None if self.task_folder is None else Path(self.task_folder).expanduser()

    def check(self) -> None:
        """Raises UsageError when options do not go together, or lm-eval is missing."""
        if not self.task:
            if self.task_folder is not None or self.fewshot is not None or self.task_chat:
                raise UsageError(
                    "--task-folder, --fewshot and --task-chat are about a task of lm-eval; add --task NAME"
                )
            return
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"--task-folder {self.task_folder} is no folder; give one with lm-eval's YAML files")
        if self.fewshot is not None and self.fewshot < 0:
            raise UsageError(f"--fewshot is {self.fewshot}; it must be 0 or more")
        from draftsmith.measure.lm_eval_model import check_lm_eval

        check_lm_eval()
