"""What ``draftsmith quantize`` and ``draftsmith export`` share: options, progress, and the end of each."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.export.source import Source
    from draftsmith.quant import BlockType

__all__ = ["ExportOptions", "block_type_named", "export_gguf", "give", "source_of"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What every command that writes a model knows."""

    force: Annotated[bool, typer.Option("--force", help="Replace DST if it is there.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes.")] = False
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False


def block_type_named(name: str) -> BlockType:
    """The block type of a name such as q8_0. Raises UsageError."""
    from draftsmith.export.gguf import GGUF_TYPES

    if name.lower() not in GGUF_TYPES:
        raise UsageError(f"the type is {name!r}; it must be one of {', '.join(sorted(GGUF_TYPES))}")
    return GGUF_TYPES[name.lower()]


@contextmanager
def source_of(reference: str, bars: ProgressBars) -> Iterator[Source]:
    """The model to be exported, with bars for its download."""
    from draftsmith.export.source import opened

    with opened(reference, lambda done, total: bars(f"Downloading {reference}", done, total)) as source:
        yield source


def export_gguf(reference: str, out: Path, block_type: BlockType | None, options: ExportOptions) -> None:
    """Write one GGUF file and tell of it."""
    from draftsmith.export.gguf import write_gguf_export
    from draftsmith.export.source import check_destination

    if out.suffix != ".gguf":
        raise UsageError(f"the file to write is {str(out)!r}; its name must end in .gguf")
    check_destination(out, None, force=options.force, folder=False)
    with ProgressBars(quiet=options.quiet) as bars, source_of(reference, bars) as source:
        check_destination(out, source.checkpoint.path, force=options.force, folder=False)
        report = write_gguf_export(source, out, block_type, lambda done, total: bars(f"Writing {out}", done, total))
    give(report, options)


def give(report: Mapping[str, Any], options: ExportOptions) -> None:
    """Tell what was made: notes on standard error, the rest on standard output."""
    for note in report["notes"] if not options.quiet else ():
        sys.stderr.write(f"note: {note}\n")
    if options.json_output:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    lines = [f"{report['path']}: {report['num_bytes'] / 1e6:.0f} MB"]
    if "parameters" in report:
        lines[0] += f", {report['parameters'] / 1e6:.1f} M parameters"
    if "block_types" in report:
        parts = [f"{kind} {count / report['parameters']:.0%}" for kind, count in report["block_types"].items()]
        lines[0] += f", {', '.join(parts)}"
    if "dtype" in report:
        lines[0] += f", {report['dtype']}"
    lines += [f"  {command}" for command in report.get("commands", ())]
    sys.stdout.write("\n".join(lines) + "\n")
