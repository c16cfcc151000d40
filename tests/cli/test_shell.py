"""The conversation of ``draftsmith chat`` with a fake model: commands, errors, several turns, interruptions."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli.shell import ChatShell
from draftsmith.cli.terminal import Terminal
from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import PromptTooLong, UsageError
from draftsmith.types import Message, SamplingParams
from tests.support.fakes import FakeModel, byte_tokenizer

SAMPLING = SamplingParams(max_new_tokens=30, greedy=True)


def typed(lines: list[str | BaseException]) -> Callable[[str], str]:
    """What a person types, line by line; then the end of input."""
    rest: Iterator[str | BaseException] = iter(lines)

    def read_line(_prompt: str) -> str:
        line = next(rest, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    return read_line


def talk(
    *lines: str | BaseException,
    llm: LLM | None = None,
    interactive: bool = True,
    system: str | None = None,
    sampling: SamplingParams = SAMPLING,
    color: bool = False,
) -> tuple[int, str]:
    out = io.StringIO()
    shell = ChatShell(
        llm or fake_llm(),
        Terminal(out, color=color, safe=True),
        sampling,
        system=system,
        interactive=interactive,
        read_line=typed(list(lines)),
    )
    return shell.run(), out.getvalue()


def fake_llm(max_context: int = 2000) -> LLM:
    return LLM(LoadedModel("fake", FakeModel(max_context=max_context), byte_tokenizer()), "lookup")


def reply_to(*turns: str, sampling: SamplingParams = SAMPLING) -> str:
    """What the model answers to the last of user, assistant, user ..., with no shell around it."""
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return fake_llm().chat(messages, sampling).text


def test_replies_remember_the_conversation() -> None:
    first = reply_to("abc")
    second = reply_to("abc", first, "def")
    code, out = talk("abc", "", "def", interactive=False)
    assert code == 0
    assert out == f"{first}\n{second}\n"


def test_a_person_is_greeted_and_told_speed_and_acceptance() -> None:
    code, out = talk("abc")
    assert code == 0
    assert out.startswith("fake, drafter: lookup\n/help lists commands, Ctrl-C stops a reply.\n")
    assert "30 tokens · " in out
    assert " tokens/s · lookup: " in out


def test_tokens_of_the_drafter_are_tinted() -> None:
    llm = LLM(fake_llm().target, fake_llm().target, num_draft_tokens=4)
    _, out = talk("abc", llm=llm, color=True)
    assert "Tinted text was guessed by the drafter." in out
    assert "\x1b[36m" in out


def test_commands(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "talk.json"
    code, out = talk(
        "/help", "/system be brief", "/draft none", "/draft", "abc", f"/save {file}", "/reset", "/quit", "x"
    )
    assert code == 0
    for word in ("/help", "/system", "/draft", "/reset", "/save", "/quit", '"""'):
        assert f"  {word}" in out
    assert "system prompt: be brief\n" in out
    assert out.count("drafter: none\n") == 2
    assert "no drafter" in out
    saved = json.loads(file.read_text())
    assert saved["target"] == "fake"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert "the conversation is forgotten" in out
    assert [path.name for path in file.parent.iterdir()] == ["talk.json"]


def test_reset_forgets_and_the_system_prompt_stays() -> None:
    with_system = fake_llm().chat([Message("system", "sys"), Message("user", "abc")], SAMPLING).text
    _, out = talk("abc", "/reset", "abc", interactive=False, system="sys")
    assert out == f"{with_system}\nthe conversation is forgotten\n{with_system}\n"
    _, out = talk("/system -", "abc", interactive=False, system="sys")
    assert out == f"system prompt: none\n{reply_to('abc')}\n"


def test_several_lines_between_quotes_are_one_message() -> None:
    _, out = talk('"""abc', "def", 'ghi"""', interactive=False)
    assert out == reply_to("abc\ndef\nghi") + "\n"
    _, out = talk('"""', "abc", '"""', interactive=False)
    assert out == reply_to("abc") + "\n"


def test_mistakes_are_told_and_the_conversation_goes_on(tmp_path: Path) -> None:
    good = reply_to("abc")
    code, out = talk("/nope", "/save", f"/save {tmp_path}", "/draft ./nothing.gguf", "x" * 3000, "abc")
    assert code == 0
    assert "/nope is not a command; /help lists them" in out
    assert "/save needs the name of a file" in out
    assert f"{tmp_path} cannot be written" in out
    assert "there is no ./nothing.gguf" in out
    assert "The prompt has 30" in out
    assert good.split()[0] in out.split("The prompt has")[1]


def test_a_space_in_front_sends_a_line_that_looks_like_a_command() -> None:
    _, out = talk(" /etc is a folder", interactive=False)
    assert out == reply_to(" /etc is a folder") + "\n"


def test_in_a_pipe_the_first_mistake_ends_the_program() -> None:
    with pytest.raises(UsageError, match="/nope is not a command"):
        talk("/nope", "abc", interactive=False)
    with pytest.raises(PromptTooLong):
        talk("x" * 3000, interactive=False)


def test_ctrl_c_at_the_prompt_asks_once_then_leaves() -> None:
    code, out = talk(KeyboardInterrupt(), "abc", KeyboardInterrupt(), KeyboardInterrupt(), "not reached")
    assert code == 130
    assert out.count("Ctrl-C again, Ctrl-D or /quit leaves.") == 2


def test_ctrl_c_stops_the_reply_but_not_the_program() -> None:
    """A real signal while the reply is written: what is there is kept, and the next turn knows it."""
    long = SamplingParams(max_new_tokens=1000, greedy=True)

    class Interrupting(FakeModel):
        def forward(self, runs):  # type: ignore[no-untyped-def]
            if self.tokens_read > 100 and not self.interrupted:
                self.interrupted = True
                signal.raise_signal(signal.SIGINT)
            return super().forward(runs)

        interrupted = False

    handler = signal.getsignal(signal.SIGINT)
    llm = LLM(LoadedModel("fake", Interrupting(max_context=4000), byte_tokenizer()), "none")
    out = io.StringIO()
    shell = ChatShell(llm, Terminal(out, False, True), long, interactive=True, read_line=typed(["abc", "/quit"]))
    assert shell.run() == 0
    assert " · stopped\n" in out.getvalue()
    reply = shell.messages[-1]
    assert reply.role == "assistant"
    assert 20 < len(reply.content) < 200
    assert reply_to("abc", sampling=long).startswith(reply.content)
    assert signal.getsignal(signal.SIGINT) is handler
