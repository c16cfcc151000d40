"""``draftsmith card``: a model card from facts, the stage that made the model, and measurements."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from draftsmith.cli.measuring import check_folder, read_json, write_text
from draftsmith.errors import UsageError

__all__ = ["card"]


def card(
    facts: Annotated[str, typer.Argument(metavar="FACTS.toml", show_default=False)],
    *,
    language: Annotated[str, typer.Option(metavar="en|es", help="The language of the card.")] = "en",
    stage: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The stage that made the model: its stage.json is told.")
    ] = None,
    result: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.json", help="A result of bench, certify or eval; repeatable.", show_default=False),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="README.md", help="Where to write it; standard output if not given.")
    ] = None,
) -> None:
    """Write a model card.

    FACTS.toml says what is known of the model; what it leaves out is marked unknown. Numbers come from results that
    bench, certify and eval wrote with --output. The metadata at the top is what the hub reads.
    """
    if output is not None:
        check_folder("--output", output)
    from draftsmith.measure.card import make_card, read_facts

    known = read_facts(Path(facts).expanduser())
    made_by = read_json(str(Path(stage) / "stage.json")) if stage is not None else None
    if made_by is not None and not isinstance(made_by, dict):
        raise UsageError(f"{stage}/stage.json is no object; give the folder of a finished stage")
    results = [(Path(name).name, read_json(name)) for name in result or []]
    text = make_card(known, language, results, made_by)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(Path(output).expanduser(), text)
