"""``draftsmith quantize``: a model in fewer bits, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftsmith.cli.exporting import ExportOptions, block_type_named, export_gguf
from draftsmith.errors import UsageError

__all__ = ["quantize"]

_BITS = {4: "q4_1", 8: "q8_0"}  # what --quantize 4bit and 8bit mean


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A path, hub id or alias.")],
    out: Annotated[Path, typer.Argument(metavar="DST.gguf", help="The file to write.")],
    *,
    bits: Annotated[
        int | None, typer.Option(metavar="4|8", help="4 is the type q4_1, 8 is q8_0; 4 if neither is given.")
    ] = None,
    block_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="q4_0, q4_1, q4_k, q8_0, f16, bf16 or f32."),
    ] = None,
    options: ExportOptions,
) -> None:
    """Write a model in fewer bits, as a GGUF file for draftsmith and llama.cpp.

    4-bit types keep the embedding and the output layer in 8 bits. Matrices whose rows are no multiple of 256 become
    q4_1 where q4_k was asked for. The best source is a model in 16 or 32 bits.
    """
    if bits is not None and block_type is not None:
        raise UsageError(f"--bits {bits} and --type {block_type} both say how many bits; give one of them")
    if bits is not None and bits not in _BITS:
        raise UsageError(f"--bits is {bits}; it must be 4 or 8")
    export_gguf(source, out, block_type_named(block_type or _BITS[bits or 4]), options)
