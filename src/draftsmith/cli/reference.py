"""``python -m draftsmith.cli.reference`` writes docs/cli.md, the reference of the command line, from the program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from draftsmith.cli.app import build

__all__ = ["reference"]

WIDTH = 100
PREFACE = """\
# The command line

This page is generated: `python -m draftsmith.cli.reference > docs/cli.md`. A test compares it with the program.

A model REF is a path (a `.gguf` file or a Hugging Face folder), a hub id `org/name[@revision][:file]`, or an alias
(`draftsmith models` lists them). With no option at all the default pair runs: SmolLM2-135M-Instruct, fetched and
hash-checked on first use, and prompt lookup as its drafter.

## Exit codes

0: done. 1: failed (a file, the network, memory, the disk). 2: wrong usage. 130: interrupted. Whatever goes wrong is
told in one sentence on standard error; `DRAFTSMITH_DEBUG=1` adds the traceback of internal errors.

## Environment

`DRAFTSMITH_CACHE`: where fetched models are kept (default `~/.cache/draftsmith`). `NO_COLOR`: no colours.

## The JSON object of `generate --json`

The last line of standard output is one object:

    {"text", "token_ids", "finish_reason", "usage": {"prompt_tokens", "completion_tokens"},
     "timing": {"load_s", "prefill_s", "decode_s", "tokens_per_s"},
     "speculation": {"drafter", "num_drafts", "num_draft_tokens", "num_accepted_tokens",
                     "num_accepted_tokens_per_pos", "acceptance_rate", "mean_acceptance_length"} | null}

`finish_reason` is `stop` (end-of-text token or stop string) or `length`. `decode_s` runs from the first token of the
reply to the last, and `tokens_per_s` counts the tokens after the first. `num_drafts` are the rounds that had a draft
token, `acceptance_rate` is accepted / draft tokens, and `mean_acceptance_length` is 1 + accepted / drafts: the bonus
token that every check gives is included. `speculation` is null without a drafter.
"""


def reference() -> str:
    """The page, in Markdown."""
    command = typer.main.get_command(build())
    return "\n".join([PREFACE, *_sections(command, "draftsmith", None)])


def _sections(command: Any, name: str, parent: Any) -> Iterator[str]:
    """A section with the command's help, then those of the commands below. ``command`` and ``parent`` are click's."""
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True, terminal_width=WIDTH)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"## {name}\n\n```text\n{text}\n```\n"
    for below in getattr(command, "commands", {}).values():
        yield from _sections(below, f"{name} {below.name}", context)


if __name__ == "__main__":
    sys.stdout.write(reference())
