"""What reaches a terminal: colours only where wanted, and no control code that a model wrote."""

from __future__ import annotations

import io

import pytest

from draftsmith.cli.terminal import Terminal, is_terminal
from draftsmith.errors import UsageError


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_colours_on_a_terminal_only() -> None:
    assert Terminal.of(Tty()).color
    assert not Terminal.of(io.StringIO()).color


def test_dumb_terminals_and_no_color_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal.of(Tty()).color
    assert Terminal.of(Tty(), "always").color
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Tty())
    assert not Terminal.of(Tty()).color


def test_unknown_colour_choice_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"--color is 'blue'; it must be one of auto, always, never"):
        Terminal.of(Tty(), "blue")


def test_style_wraps_the_text() -> None:
    stream = Tty()
    Terminal.of(stream).write("hello", "36")
    assert stream.getvalue() == "\x1b[36mhello\x1b[0m"


def test_control_codes_do_not_reach_a_terminal() -> None:
    stream = Tty()
    Terminal.of(stream).write("a\x1b]0;title\x07b\x9bc\td\ne\r")
    assert stream.getvalue() == "a\ufffd]0;title\ufffdb\ufffdc\td\ne\ufffd"


def test_pipes_get_the_text_as_it_is() -> None:
    stream = io.StringIO()
    Terminal.of(stream).write("a\x1b[1mb")
    assert stream.getvalue() == "a\x1b[1mb"
