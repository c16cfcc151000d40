"""The conversation of ``draftsmith chat``: reads lines, obeys commands, shows replies as they are written."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.cli.progress import ProgressBars, PromptBar
from draftsmith.cli.report import status_line
from draftsmith.cli.terminal import ACCEPTED, BOLD, DIM, Terminal
from draftsmith.cli.wrap import WordWrapper
from draftsmith.engine import LLM, TextStream
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.types import Completion, Message, SamplingParams

__all__ = ["ChatShell", "read_terminal_line"]

PROMPT = "> "
CONTINUATION = ". "
FENCE = '"""'
INTERRUPTED = 130


class ChatShell:
    """One conversation. State: the messages so far, the system prompt, and the caches inside ``llm``.

    ``interactive``: a person types at a terminal; then errors are told and the conversation goes on. Otherwise lines
    come from a pipe, and the first error ends the program.
    """

    def __init__(
        self,
        llm: LLM,
        terminal: Terminal,
        sampling: SamplingParams,
        *,
        system: str | None = None,
        interactive: bool = True,
        quiet: bool = False,
        read_line: Callable[[str], str] = input,
    ) -> None:
        self._llm = llm
        self._terminal = terminal
        self._sampling = sampling
        self._system = system
        self._interactive = interactive
        self._quiet = quiet
        self._read_line = read_line
        self._messages: list[Message] = []
        self._commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "/help": ("", "show this list", self._help),
            "/system": ("TEXT", "set the system prompt; without TEXT show it, with - remove it", self._set_system),
            "/draft": ("REF", "change the drafter (lookup, none or a model); without REF show it", self._set_draft),
            "/reset": ("", "forget the conversation, keep the system prompt", self._reset),
            "/save": ("FILE", "write the conversation to FILE as JSON", self._save),
            "/quit": ("", "leave; so does Ctrl-D", self._help),
        }

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, without the system prompt."""
        return tuple(self._messages)

    def run(self) -> int:
        """Talk until the end of input or /quit. Returns the exit code."""
        if self._interactive:
            self._greet()
        interrupts = 0
        while True:
            try:
                line = self._read_message()
                interrupts = 0
                if line.strip() in ("/quit", "/exit", "/bye"):
                    return 0
                self._handle(line)
            except EOFError:
                if self._interactive:
                    self._terminal.line()
                return 0
            except KeyboardInterrupt:
                interrupts += 1
                self._terminal.line()
                if interrupts > 1 or not self._interactive:
                    return INTERRUPTED
                self._note("Ctrl-C again, Ctrl-D or /quit leaves.")
            except DraftsmithError as error:
                if not self._interactive:
                    raise
                self._note(f"{error}.")

    # Input

    def _read_message(self) -> str:
        '''One line, or everything between a line that starts with """ and one that ends with it.'''
        line = self._read_line(PROMPT if self._interactive else "")
        if not line.lstrip().startswith(FENCE):
            return line
        lines = [line.lstrip().removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            lines.append(self._read_line(CONTINUATION if self._interactive else ""))
        return "\n".join([*lines[:-1], lines[-1].rstrip().removesuffix(FENCE)]).strip("\n")

    def _handle(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self._reply(line)
            return
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise UsageError(f"{name} is not a command; /help lists them, and a space in front sends the line as it is")
        self._commands[name][2](argument.strip())

    # The reply

    def _reply(self, text: str) -> None:
        self._messages.append(Message("user", text))
        try:
            with PromptBar(quiet=self._quiet or not self._interactive) as bar:
                stream = self._llm.stream_chat(self._prompt(), self._sampling, bar.hear)
                with _first_interrupt_stops(stream):
                    completion = self._show(stream, bar)
        except BaseException:
            self._messages.pop()  # a turn without an answer would confuse the next one
            raise
        self._messages.append(Message("assistant", completion.text))
        self._status(completion, stream.stopped_early)

    def _prompt(self) -> list[Message]:
        return ([Message("system", self._system)] if self._system is not None else []) + self._messages

    def _show(self, stream: TextStream, bar: PromptBar) -> Completion:
        width = shutil.get_terminal_size().columns if self._interactive else 0
        wrapper = WordWrapper(self._terminal.write, width)
        for piece in stream:
            bar.close()
            wrapper.push(piece.text, ACCEPTED if piece.from_draft else "")
        wrapper.flush()
        self._terminal.line()
        return stream.completion

    def _status(self, completion: Completion, stopped_early: bool) -> None:
        if self._quiet or not self._interactive:
            return
        stopped = " · stopped" if stopped_early else ""
        self._note(status_line(completion, self._llm.plain_step_s) + stopped)
        self._terminal.line()

    # Commands

    def _greet(self) -> None:
        self._terminal.line(f"{self._llm.name}, drafter: {self._llm.drafter_name}", BOLD)
        self._note_drafter()
        legend = "Tinted text was guessed by the drafter. " if self._terminal.color else ""
        self._note(f"{legend}/help lists commands, Ctrl-C stops a reply.\n")

    def _note(self, text: str) -> None:
        self._terminal.line(text, DIM)

    def _note_drafter(self) -> None:
        if self._llm.drafter_note is not None:
            self._note(f"Note: {self._llm.drafter_note}.")

    def _help(self, _: str) -> None:
        for name, (argument, meaning, _action) in self._commands.items():
            self._terminal.line(f"  {name + ' ' + argument:<14} {meaning}")
        self._terminal.line(f"  {FENCE:<14} begins and ends a message of several lines")

    def _set_system(self, text: str) -> None:
        if text:
            self._system = None if text == "-" else text
        self._note(f"system prompt: {self._system if self._system is not None else 'none'}")

    def _set_draft(self, ref: str) -> None:
        if ref:
            with ProgressBars(quiet=self._quiet) as progress:
                self._llm.use_draft(ref, progress=progress)
        self._note(f"drafter: {self._llm.drafter_name}")
        self._note_drafter()

    def _reset(self, _: str) -> None:
        self._messages.clear()
        self._note("the conversation is forgotten")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a file, for example /save talk.json")
        record = {
            "target": self._llm.name,
            "drafter": self._llm.drafter_name,
            "messages": [{"role": message.role, "content": message.content} for message in self._prompt()],
        }
        path = Path(name).expanduser()
        with atomic_file(path) as file:
            file.write((json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode())
        self._note(f"saved to {path}")


@contextmanager
def _first_interrupt_stops(stream: TextStream) -> Iterator[None]:
    """Inside, the first Ctrl-C ends the reply after the round under way; the second raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if stream.stopped_early:
            raise KeyboardInterrupt
        stream.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_terminal_line(prompt: str) -> str:
    """``input`` with line editing and the arrow keys, where the platform has them."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # importing it is what switches it on
    return input(prompt)
