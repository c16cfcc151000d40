"""``draftsmith report``: results of the measuring commands as one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from draftsmith.cli.measuring import check_folder, read_json, write_text
from draftsmith.errors import UsageError

__all__ = ["report"]


def report(
    results: Annotated[list[str], typer.Argument(metavar="RESULT.json...", show_default=False)],
    *,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.html|FILE.md", help="Where to write the page; Markdown to standard output if not given."
        ),
    ] = None,
) -> None:
    """Make a page of results.

    RESULT.json are files that bench, certify, plan and eval wrote with --output. The HTML page holds its pictures,
    needs no network, and follows the reader's light or dark setting; Markdown has the numbers.
    """
    if output is not None:
        if not output.endswith((".html", ".md")):
            raise UsageError(f"--output is {output}; give a name that ends in .html or .md")
        check_folder("--output", output)
    values = [(Path(name).name, read_json(name)) for name in results]
    from draftsmith.measure.document import as_html, as_markdown
    from draftsmith.measure.report import report_page

    page = report_page(values)
    if output is None:
        sys.stdout.write(as_markdown(page))
    else:
        write_text(Path(output).expanduser(), as_html(page) if output.endswith(".html") else as_markdown(page))
