"""The program as a process: start-up time, exit codes, signals, pipes and a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from tests.support.tiny import tiny_folder

COMMAND = (sys.executable, "-m", "draftsmith")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its context is long enough that a reply takes seconds, and its texts never end by themselves."""
    return str(tiny_folder(tmp_path_factory.mktemp("models") / "tiny", max_context=20_000))


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], input=stdin, capture_output=True, text=True, timeout=60, check=False)


def test_help_imports_nothing_heavy() -> None:
    """What makes help slow is what it imports (``python -m benchmarks.startup`` measures the seconds)."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"], capture_output=True, text=True, check=True
    )
    assert "generate" in done.stdout
    imported = {line.split("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "draftsmith.cli.generate" in imported
    heavy = {"numpy", "torch", "jinja2", "tokenizers", "asyncio", "ssl", "draftsmith.engine", "draftsmith.model"}
    assert not imported & heavy
    assert len(imported) < 300


def test_version() -> None:
    assert re.match(r"draftsmith\b", run("--version").stdout)


def test_the_text_and_only_the_text_is_on_standard_output(model: str) -> None:
    options = ("--target", model, "--raw", "--seed", "1", "--max-new-tokens", "20")
    first = run("generate", "abc", *options)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.endswith("\n")
    assert len(first.stdout) == 21
    assert run("generate", "-", *options, "--draft", "none", stdin="abc").stdout == first.stdout


def test_a_failure_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    done = run("generate", "hi", "--target", str(tmp_path / "none.gguf"))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"draftsmith: [^\n]+\n", done.stderr)


def test_wrong_usage_is_one_sentence_and_exit_code_2() -> None:
    done = run("generate", "hi", "--top-k", "-3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "draftsmith: top_k is -3; it must be 0 (off) or more\n"


def test_ctrl_c_ends_with_130(model: str) -> None:
    args = ("generate", "abc", "--target", model, "--raw", "--max-new-tokens", "19000", "--draft", "none")
    # A small pipe: else the whole reply may fit into it before this process runs again. And a shell that runs the tests
    # in the background has its children ignore the signal.
    with subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        assert first
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert err == b""


def test_a_reader_that_leaves_gets_no_traceback(model: str) -> None:
    args = ("generate", "abc", "--target", model, "--raw", "--max-new-tokens", "19000", "--draft", "none")
    with subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


def test_chat_in_a_pipe_answers_line_by_line(model: str) -> None:
    options = ("--target", model, "--greedy", "--max-new-tokens", "20")
    done = run("chat", *options, stdin="abc\ndef\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith(run("generate", "abc", *options).stdout)
    failed = run("chat", *options, stdin="/nope\n")
    assert failed.returncode == 2
    assert failed.stderr.startswith("draftsmith: /nope is not a command")


class Pty:
    """A program at a terminal: type, and wait for what it shows."""

    def __init__(self, *args: str) -> None:
        self.shown = ""
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.environ.pop("NO_COLOR", None)
            os.execv(COMMAND[0], [*COMMAND, *args])  # noqa: S606  # the child of a pty is started like this

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> str:
        """What was shown until ``text`` appeared, cut off what is returned next time."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            readable, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{text!r} did not appear in {self.shown!r}"
            try:
                self.shown += os.read(self._descriptor, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"the program ended before {text!r} appeared in {self.shown!r}")
        before, self.shown = self.shown.split(text, 1)
        return before

    def exit_code(self, seconds: float = 30) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                self._pid = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        pytest.fail(f"the program does not end; it shows {self.shown!r}")

    def close(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._descriptor)


@pytest.fixture
def chat(model: str) -> Iterator[Pty]:
    terminal = Pty("chat", "--target", model, "--max-new-tokens", "15000", "--greedy", "--draft", model)
    yield terminal
    terminal.close()


def test_chat_at_a_terminal(chat: Pty) -> None:
    """Ctrl-C stops a reply and the conversation goes on; the status line is there; Ctrl-D leaves with 0."""
    chat.wait_for("/help lists commands")
    chat.wait_for("> ")
    chat.type("/draft none\n")
    chat.wait_for("drafter: none")
    chat.wait_for("> ")
    chat.type("abc\n")
    chat.wait_for("\n")
    time.sleep(0.5)
    chat.type("\x03")
    status = chat.wait_for(" · stopped")
    assert re.search(r"\d+ tokens · \d+ tokens/s · no drafter", status)
    chat.wait_for("> ")
    chat.type("/system be brief\n")
    chat.wait_for("system prompt: be brief")
    chat.wait_for("> ")  # before that the terminal is not readline's, and would lose the key
    chat.type("\x04")
    assert chat.exit_code() == 0
