"""``draftsmith models``: what is here, fetching, looking into and removing it."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftsmith.cli.options import add_command
from draftsmith.cli.progress import ProgressBars

if TYPE_CHECKING:
    from draftsmith.checkpoint.store import ModelDetails

__all__ = ["build"]

Reference = Annotated[str, typer.Argument(metavar="REF", show_default=False, help="A path, hub id or alias.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def build() -> typer.Typer:
    """The group with its four commands; alone it lists."""
    group = typer.Typer(help="List, pull, show and remove models.", rich_markup_mode=None, invoke_without_command=True)
    group.callback()(_list_by_default)
    for function in (list_, pull, show, remove):
        add_command(group, function)
    return group


def _list_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_()


def list_(*, json_output: JsonOutput = False) -> None:
    """List the aliases and the models in the cache."""
    from draftsmith.checkpoint.store import list_models

    models = list_models()
    if json_output:
        entries = [dataclasses.asdict(model) | {"path": model.path and str(model.path)} for model in models]
        _print_json({"models": entries})
        return
    rows = [
        (model.reference, _size(model.num_bytes), "here" if model.path else "not fetched", model.description)
        for model in models
    ]
    _print_table([("REF", "SIZE", "STATE", ""), *rows])


def pull(
    reference: Reference, *, quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False
) -> None:
    """Fetch a model into the cache and check that it can be opened."""
    from draftsmith.checkpoint.store import pull as pull_model

    with ProgressBars(quiet=quiet) as progress:
        resolved = pull_model(reference, progress=lambda done, total: progress(f"Downloading {reference}", done, total))
    sys.stdout.write(f"{resolved.path}\n")


def show(reference: Reference, *, json_output: JsonOutput = False) -> None:
    """Show what a model is made of."""
    from draftsmith.checkpoint.store import show as show_model

    details = _describe(show_model(reference))
    if json_output:
        _print_json(details)
        return
    types = ", ".join(f"{name} {count / details['parameters']:.0%}" for name, count in details["block_types"].items())
    shown = details | {"parameters": f"{details['parameters'] / 1e6:.1f} M", "size": _size(details["num_bytes"])}
    shown |= {"block_types": types}
    _print_table([(name, str(value)) for name, value in shown.items() if value is not None and name != "num_bytes"])


def remove(reference: Reference) -> None:
    """Remove a fetched model from the cache."""
    from draftsmith.checkpoint.store import remove as remove_model

    freed = remove_model(reference)
    sys.stdout.write(f"removed {reference}, {_size(freed)} freed\n")


def _describe(details: ModelDetails) -> dict[str, Any]:
    config = details.config
    return {
        "path": str(details.resolved.path),
        "source": details.resolved.source,
        "revision": details.resolved.revision,
        "sha256": details.sha256,
        "architecture": config.architecture,
        "parameters": details.num_parameters,
        "num_bytes": details.num_bytes,
        "block_types": dict(details.block_types),
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "vocabulary": config.vocab_size,
        "max_context": config.max_context,
    }


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
