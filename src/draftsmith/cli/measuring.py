"""What the measuring commands share: which prompts, where results go, how far the run is."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftsmith.cli.options import ModelOptions
from draftsmith.cli.terminal import is_terminal
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.measure import PromptItem

__all__ = ["MeasureOptions", "ResultOptions", "Ticker", "check_folder", "origin_of", "read_json", "write_text"]

MAX_FILE_BYTES = 64_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """Which prompts, and how much of them."""

    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON lines with id, category, turns; a set of our own if not given."),
    ] = None
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most N prompts, all categories in turn.")] = None
    per_category: Annotated[int | None, typer.Option(metavar="N", help="At most N prompts of each category.")] = None
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="The longest reply, in tokens.")] = 128

    @property
    def path(self) -> Path | None:
        """The file of prompts, if one was given."""
        return None if self.prompts is None else Path(self.prompts)

    def items(self) -> tuple[PromptItem, ...]:
        """The prompts that were asked for. Raises UsageError."""
        from draftsmith.measure import read_prompts, select_prompts

        return select_prompts(read_prompts(self.path), self.limit, self.per_category)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Where the result goes."""

    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tables.")] = False
    output: Annotated[
        str | None, typer.Option(metavar="FILE.json", help="Also write the result, with all details, to a file.")
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")] = False

    def check(self) -> None:
        """Raises UsageError before any work when the result could not be written."""
        if self.output is not None:
            check_folder("--output", self.output)

    def give(self, value: dict[str, Any], text: str, details: dict[str, Any] | None = None) -> None:
        """Write the result to the file, if one was named, and print it for people or for programs."""
        if self.output is not None:
            whole = value if details is None else {**value, "details": details}
            write_text(Path(self.output).expanduser(), json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
        sys.stdout.write((json.dumps(value, ensure_ascii=False) if self.json_output else text.rstrip("\n")) + "\n")


class Ticker:
    """One line on standard error that tells how far a run is: rewritten on a terminal, sparse elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._rewrite = is_terminal(sys.stderr)
        self._width = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show ``done`` of ``total``."""
        if self._quiet or not self._rewrite:
            return
        line = f"{done}/{total} {what}"[:78]
        sys.stderr.write("\r" + line.ljust(self._width))
        self._width = len(line)
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the terminal at the beginning of an empty line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0


def check_folder(option: str, name: str) -> None:
    """Raises UsageError when the file ``name`` of ``option`` has no folder to lie in, or is a folder itself."""
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        raise UsageError(f"{option} is {name}, which is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{option} is {name}, but that folder does not exist; make it first")


def origin_of(model: ModelOptions, prompts: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """The provenance of a result about the models that were asked for."""
    from draftsmith.measure.origin import measurement_origin

    shared = {name: value for name, value in model.for_llm().items() if name not in ("target", "draft")}
    return measurement_origin({"target": model.target, "draft": model.draft}, {**shared, **options}, prompts)


def read_json(name: str) -> Any:
    """The content of a file that a command wrote with ``--output``. Raises UsageError when it is none."""
    path = Path(name).expanduser()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{name} is too large for a result; give a file that draftsmith wrote")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror}); give a file that draftsmith wrote") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{name} is not JSON; give a file that draftsmith wrote") from None


def write_text(path: Path, text: str) -> None:
    """Write a file of which no half is ever seen. Raises DiskFull and ResourceError as ``atomic_file`` does."""
    from draftsmith.checkpoint.atomic import atomic_file

    with atomic_file(path) as file:
        file.write(text.encode())
