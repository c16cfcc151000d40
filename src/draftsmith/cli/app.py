"""The commands put together, and what becomes of errors: one sentence on standard error and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from draftsmith.cli import (
    bench,
    card,
    certify,
    chat,
    evaluate,
    export,
    generate,
    models,
    plan,
    quantize,
    replay,
    report_page,
    serve,
    train,
)
from draftsmith.cli.options import add_command
from draftsmith.errors import DraftsmithError

__all__ = ["build", "run"]

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"draftsmith {version('draftsmith')}")
        except PackageNotFoundError:
            typer.echo("draftsmith, run from a source tree that was never installed")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Text from language models, faster: a drafter guesses ahead, the target checks, the text stays the same."""


def build() -> typer.Typer:
    """The program with all its commands."""
    app = typer.Typer(
        name="draftsmith",
        add_completion=False,
        rich_markup_mode=None,  # plain help: rich would cost a tenth of a second before the first letter
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(_root)
    add_command(app, generate.generate)
    add_command(app, chat.chat)
    add_command(app, bench.bench)
    add_command(app, certify.certify)
    add_command(app, evaluate.eval_)
    add_command(app, plan.plan)
    add_command(app, replay.replay)
    add_command(app, report_page.report)
    add_command(app, card.card)
    add_command(app, serve.serve, environment="DRAFTSMITH_SERVE")
    add_command(app, train.train)
    add_command(app, quantize.quantize)
    app.add_typer(export.build(), name="export")
    app.add_typer(models.build(), name="models")
    return app


def run(args: Sequence[str] | None = None) -> int:
    """Run a command line; see ``draftsmith.cli.main``."""
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        code = build()(args=args, prog_name="draftsmith", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except DraftsmithError as error:
        return _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        return _mistyped(error)
    except typer.Abort:
        return INTERRUPTED
    except (SystemExit, BrokenPipeError):
        # The reader has gone (``| head``). Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail("there is not enough memory; use a smaller model, --max-context N or --quantize 4bit", 1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(f"no space is left on the disk for {error.filename or 'the output'}; free some", 1)
        return _bug(error)
    except Exception as error:
        return _bug(error)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"draftsmith: {' '.join(message.split())}\n")
    return code


def _mistyped(error: typer.TyperException) -> int:
    """An unknown command or option, or a value of the wrong kind, as typer found it."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "draftsmith"
    message = error.format_message().partition(", unable to parse")[0].strip().rstrip(".")
    return _fail(f"{message[:1].lower()}{message[1:]}; `{command} --help` shows what can be given", 2)


def _bug(error: Exception) -> int:
    """An error that is ours: still one sentence, with the traceback for who asks for it."""
    if os.environ.get("DRAFTSMITH_DEBUG"):
        import traceback

        traceback.print_exc()
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return _fail(f"internal error, {what}; set DRAFTSMITH_DEBUG=1 to see where, and please report it", 1)
