"""``draftsmith chat``: the command; the conversation itself is in ``shell``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from draftsmith.cli.options import ModelOptions, OutputOptions, SamplingOptions
from draftsmith.cli.progress import ProgressBars
from draftsmith.cli.terminal import Terminal, is_terminal, tolerate_encodings

__all__ = ["chat"]


def chat(
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None,
    prompt_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="chat|alpaca|FILE.jinja", help="The prompt format; the model's own if not given."
        ),
    ] = None,
    model: ModelOptions,
    sampling: SamplingOptions,
    output: OutputOptions,
) -> None:
    """Talk with a model; /help inside lists what can be typed.

    Tinted text was guessed by the drafter and confirmed by the target. Every line of a pipe is one message.
    """
    tolerate_encodings()
    terminal = Terminal.of(sys.stdout, output.color)
    params = sampling.for_llm()
    with ProgressBars(quiet=output.quiet) as progress:
        from draftsmith.engine import LLM

        llm = LLM(**model.for_llm(), prompt_format=prompt_format, progress=progress)

    from draftsmith.cli.shell import ChatShell, read_terminal_line

    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    shell = ChatShell(
        llm,
        terminal,
        params,
        system=system,
        interactive=interactive,
        quiet=output.quiet,
        read_line=read_terminal_line,
    )
    code = shell.run()
    if code:
        raise typer.Exit(code)
