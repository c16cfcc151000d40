"""``draftsmith serve`` whose engine asks for drafts in every other stretch of steps, and keeps a log of them.

    python -m benchmarks.switched_server LOG STRETCH serve --target ... (whatever ``draftsmith`` takes)

``benchmarks.switching`` starts it. At the end of the server, LOG has a row for each step, as ``Step`` says.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from draftsmith.cli import main as draftsmith
from draftsmith.engine.batch import Engine
from draftsmith.engine.drafting import BatchDrafter, nobody
from draftsmith.engine.task import Task
from draftsmith.model.protocol import Checked, Logits
from draftsmith.server import run

__all__ = ["Step", "read_log"]


class Step(NamedTuple):
    """One step of the engine. Times in seconds of the system's monotonic clock.

    ``stretch``: counts stretches from 0; drafts were asked for in the even ones. ``texts`` took part, ``reading`` rows
    were of prompts, ``drafted`` of drafts. ``asking_s``: seconds that asking for drafts and drafting took.
    """

    began: float
    ended: float
    stretch: int
    texts: int
    reading: int
    drafted: int
    tokens: int
    asking_s: float


class SwitchedEngine(Engine):
    """One engine for both ways of writing: whatever else differs between two servers is the same here."""

    stretch = 1
    log: ClassVar[list[Step]] = []

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._switched = SwitchedDrafter(self._drafter)
        self._drafter = self._switched
        self._written = 0

    def step(self, before_models: Callable[[], object] = nobody) -> None:
        """The engine's, with a row in the log."""
        said, number = self._switched, len(self.log) // self.stretch
        said.on = number % 2 == 0
        self._written, began = 0, time.monotonic()
        super().step(before_models)
        counts = (said.texts, said.reading, said.drafted, self._written)
        self.log.append(Step(began, time.monotonic(), number, *counts, said.asking_s))

    def _advance(self, task: Task, said: Logits | Checked) -> None:
        before = len(task.ids)
        super()._advance(task, said)
        self._written += len(task.ids) - before


class SwitchedDrafter(BatchDrafter):
    """Asks nobody while it is off."""

    def __init__(self, inner: BatchDrafter) -> None:
        self.__dict__.update(inner.__dict__)
        self.on = True
        self.texts = self.reading = self.drafted = 0
        self.asking_s = 0.0

    def draft(
        self, parts: Mapping[Task, int], running: int, before_models: Callable[[], object] = nobody
    ) -> list[tuple[Task, Exception]]:
        """The drafter's, or nothing."""
        began = time.monotonic()
        failed = super().draft(parts, running, before_models) if self.on else []
        self.asking_s = time.monotonic() - began
        if not self.on:
            self._step = None
        self.texts, writing = len(parts), sum(task.writing for task in parts)
        self.reading = sum(parts.values()) - writing
        self.drafted = sum(task.rows(0) for task in parts if task.has_draft)
        return failed


def read_log(path: Path) -> list[Step]:
    """The rows of a server that has ended."""
    return [Step(*row) for row in json.loads(path.read_text())]


def main() -> int:
    """Serve until told to end; then write the log."""
    log, stretch, *arguments = sys.argv[1:]
    SwitchedEngine.stretch = int(stretch)
    run.Engine = SwitchedEngine  # type: ignore[attr-defined]
    try:
        return draftsmith(arguments)
    finally:
        Path(log).write_text(json.dumps(SwitchedEngine.log))


if __name__ == "__main__":
    sys.exit(main())
