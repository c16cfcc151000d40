"""Progress: silent when work is short, a bar at a terminal, one line elsewhere."""

from __future__ import annotations

import contextlib
import io

import pytest

from draftsmith.cli import progress
from draftsmith.cli.progress import ProgressBars


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
