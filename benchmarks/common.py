"""What the benchmarks share: prompts, medians, tables, and a result that carries its provenance.

Every script prints a table for people and, as its last line on standard output, one JSON object for programs. With
``--record NAME`` it also writes ``docs/results/DATE-NAME.md`` with both, the command and the machine, so that no
published number is typed by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from draftsmith.errors import DraftsmithError
from draftsmith.provenance import collect

__all__ = [
    "PROMPTS",
    "ROOT",
    "PeerMissingError",
    "Prompt",
    "Reply",
    "add_record_option",
    "report",
    "run_script",
    "table",
]

ROOT = Path(__file__).resolve().parents[1]


class PeerMissingError(ImportError):
    """The package of a program to compare with is not there; the message is a sentence for the reader."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user's message; ``category`` names it in tables."""

    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a runner wrote. ``decode_s`` runs from the first token of the reply to the last, as in draftsmith.Timing."""

    token_ids: tuple[int, ...]
    prefill_s: float
    decode_s: float
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first / seconds after the first."""
        return (len(self.token_ids) - 1) / self.decode_s


PROMPTS = (
    Prompt(
        "function",
        "Write a Python function that merges overlapping intervals in a list, with type hints and a docstring.",
    ),
    Prompt("explanation", "Explain how a hash table works and why its lookups are fast on average."),
    Prompt("story", "Write a story about a lighthouse keeper who finds a letter in a bottle."),
)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns line up; floats get two decimals, what is not text goes to the right."""
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    right = [bool(rows) and not isinstance(rows[0][column], str) for column in range(len(header))]
    rule = ["-" * (width - 1) + ":" if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    return "\n".join([line(list(header)), line(rule), *(line(row) for row in cells)])


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """End the process with what ``main`` returns; what a user can mend, a wrong path for example, gets a sentence."""
    try:
        code = main() or 0
    except DraftsmithError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{error.filename} cannot be used: {error.strerror}; give another path", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def add_record_option(parser: argparse.ArgumentParser) -> None:
    """``--record NAME``: keep this result in docs/results/."""
    parser.add_argument("--record", metavar="NAME", help="also write docs/results/DATE-NAME.md")


def report(
    title: str,
    tables: Sequence[str],
    result: Mapping[str, Any],
    record: str | None,
    *,
    files: Sequence[Path] = (),
    packages: Sequence[str] = (),
) -> None:
    """Print ``tables`` and then ``result`` with provenance as one JSON line; write the page if ``record`` names it.

    ``files`` are the inputs whose hashes belong to the provenance, ``packages`` the distributions whose versions do, if
    they are installed, beside those that this process has imported.
    """
    # A machine that others use shows here: numbers taken under load say little.
    busy = {"load_average": [round(load, 2) for load in os.getloadavg()], "nice": os.nice(0)}
    provenance = {**collect(files).as_dict(), "packages": _packages(packages), **busy}
    line = json.dumps({**result, "provenance": provenance}, ensure_ascii=False)
    if record is not None:
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        path = ROOT / "docs" / "results" / f"{date}-{record}.md"
        path.write_text(_page(title, date, tables, result, provenance), encoding="utf-8")
        print(f"written: {path.relative_to(ROOT)}\n", file=sys.stderr)
    print("\n\n".join(tables), end="\n\n")
    print(line)


def _packages(named: Sequence[str]) -> dict[str, str]:
    """Versions of what took part, of our own dependencies and of peers."""
    imported = {"numpy": "numpy", "torch": "torch", "transformers": "transformers", "llama_cpp": "llama-cpp-python"}
    versions = {}
    for package in dict.fromkeys([*(name for module, name in imported.items() if module in sys.modules), *named]):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _page(
    title: str, date: str, tables: Sequence[str], result: Mapping[str, Any], provenance: Mapping[str, Any]
) -> str:
    # Paths of files say nothing to a reader and something about a home directory: only their names are kept.
    words = [Path(word).name if "/" in word and not word.startswith("-") else word for word in sys.argv[1:]]
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *words])
    parts = [f"# {title}", f"{date}, `{command}`", *tables]
    parts.append("## The result as JSON")
    parts.append("```json\n" + json.dumps(result, indent=1, ensure_ascii=False) + "\n```")
    parts.append("## Provenance")
    parts.append("```json\n" + json.dumps(provenance, indent=1, ensure_ascii=False) + "\n```")
    return "\n\n".join(parts) + "\n"
