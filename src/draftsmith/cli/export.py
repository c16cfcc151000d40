"""``draftsmith export``: models and pairs for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftsmith.cli.exporting import ExportOptions, block_type_named, export_gguf, give, source_of
from draftsmith.cli.options import add_command
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

__all__ = ["build"]

Src = Annotated[str, typer.Argument(metavar="SRC", show_default=False, help="A path, hub id or alias.")]
DstFolder = Annotated[Path, typer.Argument(metavar="DST", show_default=False, help="The folder to write.")]


def build() -> typer.Typer:
    """The group with one command for each kind of result."""
    group = typer.Typer(help="Write models, and pairs of them, for other programs.", rich_markup_mode=None)
    for function in (hf, gguf):
        add_command(group, function)
    return group


def hf(
    source: Src,
    out: DstFolder,
    *,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|bfloat16|float16", help="As stored if not given; bfloat16 for blocks."),
    ] = None,
    options: ExportOptions,
) -> None:
    """Write a Hugging Face folder, from a folder or a GGUF file.

    Loads in transformers from 4.34 on, in vLLM and in SGLang; with tokenizer and chat template. float32 holds the
    values of quantised blocks exactly.
    """
    from draftsmith.checkpoint.atomic_folder import atomic_folder
    from draftsmith.export.hf import HF_DTYPES, write_hf_export
    from draftsmith.export.record import write_record
    from draftsmith.export.source import check_destination

    if dtype is not None and dtype not in HF_DTYPES:
        raise UsageError(f"--dtype is {dtype!r}; it must be one of {', '.join(HF_DTYPES)}")
    check_destination(out, None, force=options.force, folder=True)
    with ProgressBars(quiet=options.quiet) as bars, source_of(source, bars) as opened:
        check_destination(out, opened.checkpoint.path, force=options.force, folder=True)
        with atomic_folder(out, replace=options.force) as place:
            report = write_hf_export(
                opened, place, dtype=dtype, progress=lambda done, total: bars(f"Writing {out}", done, total)
            )
            report["path"] = str(out)
            write_record(place, "hf", {"model": opened}, report)
    give(report, options)


def gguf(
    source: Src,
    out: Annotated[Path, typer.Argument(metavar="DST.gguf", show_default=False, help="The file to write.")],
    *,
    block_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="f32, f16, bf16, q8_0, q4_0, q4_1, q4_k; as stored if not given."),
    ] = None,
    options: ExportOptions,
) -> None:
    """Write a GGUF file for llama.cpp, from a folder or another GGUF file, with tokenizer and chat template."""
    export_gguf(source, out, None if block_type is None else block_type_named(block_type), options)
