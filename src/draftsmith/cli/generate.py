"""``draftsmith generate``: one prompt, one reply."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftsmith.cli.form import FormOptions
from draftsmith.cli.options import ModelOptions, OutputOptions, SamplingOptions
from draftsmith.cli.progress import ProgressBars, PromptBar
from draftsmith.cli.report import completion_json, status_line
from draftsmith.cli.terminal import ACCEPTED, DIM, Terminal, tolerate_encodings
from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from draftsmith.engine import LLM, TextStream
    from draftsmith.speculate import TracedDrafter
    from draftsmith.types import SamplingParams

__all__ = ["generate"]


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT|-", help="What to answer; - reads standard input.", show_default=False),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system prompt.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT as it stands, without the model's prompt format.")
    ] = False,
    prompt_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="chat|alpaca|FILE.jinja", help="The prompt format; the model's own if not given."
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every round to FILE, for trace viewers and draftsmith replay."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    model: ModelOptions,
    sampling: SamplingOptions,
    form: FormOptions,
    output: OutputOptions,
) -> None:
    """Write one reply to PROMPT.

    PROMPT is a user's message, put into the model's own prompt format; --raw continues it as it stands. The text goes
    to standard output while it is written, everything else to standard error.
    """
    if raw and (system is not None or prompt_format is not None):
        given = "--system" if system is not None else "--format"
        raise UsageError(f"--raw and {given} contradict each other; a raw prompt holds its format itself")
    tolerate_encodings()
    terminal = Terminal.of(sys.stdout, output.color)
    params = dataclasses.replace(sampling.for_llm(), grammar=form.for_llm())
    text = read_prompt(prompt)
    with ProgressBars(quiet=output.quiet) as progress:
        from draftsmith.engine import LLM

        llm = LLM(**model.for_llm(), prompt_format=prompt_format, progress=progress)
    if llm.drafter_note is not None and not output.quiet:
        Terminal.of(sys.stderr).line(f"Note: {llm.drafter_note}.", DIM)
    recorder = llm.record() if trace is not None else None
    with PromptBar(quiet=output.quiet) as bar:
        stream = _begin(llm, text, system, params, bar, raw=raw)
        if json_output:
            sys.stdout.write(json.dumps(completion_json(stream.wait()), ensure_ascii=False) + "\n")
        else:
            _show(stream, terminal, bar)
    if trace is not None and recorder is not None:
        _write_trace(trace, llm, recorder)
    if not json_output and sys.stderr.isatty() and not output.quiet:
        Terminal.of(sys.stderr).line(status_line(stream.completion, llm.plain_step_s), DIM)


def read_prompt(prompt: str | None) -> str:
    """The prompt's text, from the command line or from standard input. Raises UsageError."""
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt; give it as an argument, or - to read it from standard input")
    if prompt is None or prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not UTF-8 text (byte {error.start}); convert it first") from None
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the prompt is not UTF-8 text; convert it first") from None
    if not prompt.strip():
        raise UsageError("the prompt is empty; write something to answer")
    return prompt


def _write_trace(path: Path, llm: LLM, recorder: TracedDrafter) -> None:
    from draftsmith.checkpoint.atomic import atomic_file
    from draftsmith.speculate import Trace, trace_json

    recorded = Trace(recorder.name, tuple(recorder.rounds), llm.step_costs.costs)
    with atomic_file(path) as file:
        file.write(json.dumps(trace_json(recorded, llm.tokenizer.text_of), ensure_ascii=False).encode())


def _begin(llm: LLM, text: str, system: str | None, params: SamplingParams, bar: PromptBar, *, raw: bool) -> TextStream:
    if raw:
        return llm.stream(text, params, bar.hear)
    from draftsmith.types import Message

    turns = [("system", system)] if system is not None else []
    return llm.stream_chat([Message(role, content) for role, content in [*turns, ("user", text)]], params, bar.hear)


def _show(stream: TextStream, terminal: Terminal, bar: PromptBar) -> None:
    """Write the reply as it comes; whatever ends it, the terminal is left at the beginning of a line."""
    at_line_start = False
    try:
        for piece in stream:
            bar.close()
            terminal.write(piece.text, ACCEPTED if piece.from_draft else "")
            at_line_start = piece.text.endswith("\n")
    finally:
        if not at_line_start:
            terminal.line()
