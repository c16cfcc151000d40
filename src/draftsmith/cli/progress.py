"""Progress bars on standard error for downloads, loading and long prompts, only where they take long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from draftsmith.cli.terminal import is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBars", "PromptBar"]

PATIENCE_S = 0.4  # work that is done sooner shows no bar, and does not pay for importing rich

PROMPT_PATIENCE_S = 1.5  # a prompt that is read sooner shows none


class ProgressBars:
    """A context that can be called with (what is being done, bytes done, bytes in all or 0 if unknown).

    On a terminal it draws a bar for each ``what``; elsewhere it writes one line when something long begins.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._draw = is_terminal(sys.stderr)
        self._began: dict[str, float] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far ``what`` is."""
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if self._quiet or (what not in self._tasks and now - began < PATIENCE_S):
            return
        if self._draw:
            self._update(what, done, total)
        elif what not in self._tasks:
            size = f" ({total / 1e6:.0f} MB)" if total else ""
            sys.stderr.write(f"{what}{size}\n")
            sys.stderr.flush()
            self._tasks[what] = 0  # type: ignore[assignment]  # told once; there is no bar

    def _update(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            name = TextColumn("{task.description}", markup=False)
            columns = (name, BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what)
        self._bars.update(self._tasks[what], completed=done, total=total or None)


class PromptBar:
    """How far the reading of one prompt is: tokens, rate, time left. Only on a terminal, only if reading takes long.

    A context, left when the reply begins or something ends it. ``hear`` is what ``LLM.stream`` wants as ``on_prompt``:
    None where there is nobody to see it.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.hear: Callable[[int, int], object] | None = self._hear if is_terminal(sys.stderr) and not quiet else None
        self._start: tuple[float, int] | None = None
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wipe the bar off the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _hear(self, done: int, total: int) -> None:
        now = time.monotonic()
        began, first = self._start = self._start or (now, done)
        if self._bars is None:
            # What the first part took is not known, so judge by those after it.
            if done == first or (now - began) * (total - first) / (done - first) < PROMPT_PATIENCE_S:
                return
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            rate = TextColumn("tokens, {task.fields[rate]:,.0f}/s,")
            columns = (TextColumn("Reading the prompt"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
            self._bars = Progress(*columns, TextColumn("left"), console=Console(stderr=True), transient=True)
            self._bars.start()
            self._bars.add_task("", total=total, completed=first, rate=0.0)
        rate_now = (done - first) / max(now - began, 1e-9)
        self._bars.update(self._bars.task_ids[0], completed=done, total=total, rate=rate_now)
