"""``draftsmith export``: models and pairs for other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftsmith.cli.exporting import ExportOptions, block_type_named, export_gguf, give, source_of
from draftsmith.cli.options import add_command
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.export.pair import Engine

__all__ = ["build"]

Src = Annotated[str, typer.Argument(metavar="SRC", show_default=False, help="A path, hub id or alias.")]
DstFolder = Annotated[Path, typer.Argument(metavar="DST", show_default=False, help="The folder to write.")]


def build() -> typer.Typer:
    """The group with one command for each kind of result."""
    group = typer.Typer(help="Write models, and pairs of them, for other programs.", rich_markup_mode=None)
    for function in (hf, gguf, vllm, sglang):
        add_command(group, function)
    add_command(group, llama_cpp, called="llama.cpp")
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """What every engine's export knows."""

    target: Annotated[str, typer.Option(metavar="REF", help="The model that the draft drafts for.", show_default=False)]
    num_draft_tokens: Annotated[int, typer.Option(metavar="K", help="Draft tokens a round.")] = 4
    pad_vocab: Annotated[
        bool, typer.Option("--pad-vocab", help="Give the draft's vocabulary the target's number of rows.")
    ] = False
    copy_target: Annotated[
        bool, typer.Option("--copy-target", help="Write the target too, in the engine's format.")
    ] = False
    deployed_at: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where DST will lie when it is used; DST itself if not given.")
    ] = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What engines on GPUs know besides."""

    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|bfloat16|float16", help="As stored if not given; bfloat16 for blocks."),
    ] = None
    tensor_parallel_size: Annotated[int, typer.Option(metavar="N", help="GPUs that share one model.")] = 1
    max_replicas: Annotated[int, typer.Option(metavar="N", help="Copies of the pair that a cluster may run.")] = 4


def vllm(source: Src, out: DstFolder, *, pair: PairOptions, cluster: ClusterOptions, options: ExportOptions) -> None:
    """Write a draft and what vLLM starts from, for one machine, Ray Serve and KServe.

    SRC is the draft. vLLM wants both vocabularies to have one size (--pad-vocab); when the tokens differ, it drafts
    with those that both models have.
    """
    _pair("vllm", source, out, pair, options, cluster=cluster)


def sglang(source: Src, out: DstFolder, *, pair: PairOptions, cluster: ClusterOptions, options: ExportOptions) -> None:
    """Write a draft and what SGLang starts from (STANDALONE), for one machine and KServe.

    SRC is the draft. SGLang wants the same tokens and one size of vocabulary (--pad-vocab).
    """
    _pair("sglang", source, out, pair, options, cluster=cluster)


def llama_cpp(
    source: Src,
    out: DstFolder,
    *,
    pair: PairOptions,
    block_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="f32, f16, bf16, q8_0, q4_0, q4_1, q4_k; as stored if not given."),
    ] = None,
    options: ExportOptions,
) -> None:
    """Write a draft as a GGUF file, and what llama-server starts from.

    SRC is the draft. llama.cpp wants the same tokens.
    """
    _pair("llama.cpp", source, out, pair, options, block_type=block_type)


def _pair(
    engine: Engine,
    draft: str,
    out: Path,
    pair: PairOptions,
    options: ExportOptions,
    *,
    cluster: ClusterOptions | None = None,
    block_type: str | None = None,
) -> None:
    from draftsmith.export.deploy import PairPlan, export_pair
    from draftsmith.export.hf import HF_DTYPES
    from draftsmith.export.source import check_destination

    more = {} if cluster is None else dataclasses.asdict(cluster)
    if more.get("dtype") not in (None, *HF_DTYPES):
        raise UsageError(f"--dtype is {more['dtype']!r}; it must be one of {', '.join(HF_DTYPES)}")
    plan = PairPlan(
        engine=engine,
        out=out,
        num_draft_tokens=pair.num_draft_tokens,
        pad_vocab=pair.pad_vocab,
        copy_target=pair.copy_target,
        deployed_at=pair.deployed_at,
        block_type=None if block_type is None else block_type_named(block_type),
        force=options.force,
        **more,
    )
    check_destination(out, None, force=options.force, folder=True)
    with (
        ProgressBars(quiet=options.quiet) as bars,
        source_of(pair.target, bars) as target,
        source_of(draft, bars) as opened,
    ):
        report = export_pair(plan, target, opened, lambda done, total: bars(f"Writing {out}", done, total))
    give(report, options)
