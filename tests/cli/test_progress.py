"""Progress: silent when work is short, a bar at a terminal, one line elsewhere."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from draftsmith.cli import progress
from draftsmith.cli.progress import ProgressBars, PromptBar


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(stream: io.StringIO, *, quiet: bool = False) -> str:
    """What a piece of work shows when ``stream`` is standard error."""
    with contextlib.redirect_stderr(stream), ProgressBars(quiet=quiet) as bars:
        for done in range(0, 101, 20):
            bars("Downloading x", done * 1_000_000, 100_000_000)
    return stream.getvalue()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("stream", [Tty(), io.StringIO()])
def test_short_work_is_silent(stream: io.StringIO) -> None:
    assert shown_on(stream) == ""


@pytest.mark.usefixtures("no_patience")
def test_long_work_is_one_line_in_a_log() -> None:
    assert shown_on(io.StringIO()) == "Downloading x (100 MB)\n"


@pytest.mark.usefixtures("no_patience")
def test_long_work_is_a_bar_at_a_terminal() -> None:
    shown = shown_on(Tty())
    assert "Downloading x" in shown
    assert "100.0/100.0 MB" in shown


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("stream", [Tty(), io.StringIO()])
def test_quiet_means_quiet(stream: io.StringIO) -> None:
    assert shown_on(stream, quiet=True) == ""


def prompt_shown_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, part_s: float, quiet: bool = False) -> str:
    """What the reading of 4,096 tokens in parts of 512 shows, each part taking ``part_s`` seconds."""
    now = [100.0]
    monkeypatch.setattr("draftsmith.cli.progress.time.monotonic", lambda: now[0])
    with contextlib.redirect_stderr(stream), PromptBar(quiet=quiet) as bar:
        for done in range(512, 4096, 512):
            if bar.hear is not None:
                bar.hear(done, 4096)
            now[0] += part_s
    return stream.getvalue()


def test_a_long_prompt_has_a_bar_with_tokens_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", prompt_shown_on(Tty(), monkeypatch, part_s=1.0))
    assert "Reading the prompt" in shown
    assert "3584/4096 tokens, 512/s, 0:00:01 left" in shown


@pytest.mark.parametrize(
    ("stream", "part_s", "quiet"), [(Tty(), 0.1, False), (Tty(), 1.0, True), (io.StringIO(), 1.0, False)]
)
def test_no_bar_for_short_prompts_nor_where_nobody_looks(
    stream: io.StringIO, part_s: float, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert prompt_shown_on(stream, monkeypatch, part_s=part_s, quiet=quiet) == ""
