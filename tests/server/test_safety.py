"""Keys of operators, moderation, streams whose packets tell nothing, and the configuration file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli.app import run
from draftsmith.cli.config_file import read_config
from draftsmith.engine import EngineLimits
from draftsmith.errors import UsageError
from draftsmith.server import run as server_run
from draftsmith.server.moderation import Moderator
from draftsmith.server.options import ServerOptions
from draftsmith.server.paced import BLOCK, Pacer
from tests.server.test_faults import GatedModel, send
from tests.support.serving import running
from tests.support.shared_fakes import SharedFakeModel

USER, ADMIN = "a-users-key-of-some-length", "an-operators-key-of-some-length"
CHAT: Any = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 20, "seed": 1}


def test_only_operators_see_the_metrics() -> None:
    with running(SharedFakeModel(), api_keys=(USER,), admin_keys=(ADMIN,)) as server:
        for path, key, status in (
            ("/metrics", None, 401),
            ("/metrics", USER, 401),
            ("/metrics", ADMIN, 200),
            ("/v1/models", None, 401),
            ("/v1/models", USER, 200),
            ("/v1/models", ADMIN, 200),
            ("/health", None, 200),
        ):
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            assert server.call("GET", path, **headers).status == status, (path, key)
    with running(SharedFakeModel(), admin_keys=(ADMIN,)) as server:
        assert server.call("GET", "/v1/models").status == 200
        assert server.call("GET", "/metrics").status == 401


def judge(tmp_path: Path, body: str) -> str:
    script = tmp_path / "judge.py"
    script.write_text(f"import json, sys, time\nseen = json.load(sys.stdin)\n{body}\n", encoding="utf-8")
    return f"{sys.executable} {script}"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_judged(tmp_path: Path, stream: bool) -> None:
    command = judge(tmp_path, 'sys.exit("bad" in seen["text"] if seen["kind"] == "prompt" else "h" in seen["text"])')
    with running(SharedFakeModel(), moderate=command) as server:
        good = server.call("POST", "/v1/completions", {"prompt": "ok", "regex": "[a-c]{9}", "stream": stream})
        assert good.status == 200
        assert b"content_filter" not in good.body
        bad = server.call("POST", "/v1/completions", {"prompt": "bad", "stream": stream})
        assert (bad.status, bad.json["error"]["code"]) == (400, "content_filter")
        ids = server.call("POST", "/v1/completions", {"prompt": list(b"bad")})
        assert ids.status == 400
        said = server.call("POST", "/v1/completions", {"prompt": "ok", "regex": "[a-c]{9}h", "stream": stream})
        assert b"content_filter" in said.body
        assert said.status == (200 if stream else 400)
        assert b'"text": "a' not in said.body
        chat = server.call("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a bad one"}]})
        assert chat.status == 400


@pytest.mark.parametrize("body", ["sys.exit(2)", "raise SystemError", "import os; os.kill(os.getpid(), 9)", None])
def test_without_a_judgement_nothing_passes(tmp_path: Path, body: str | None) -> None:
    command = str(tmp_path / "missing") if body is None else judge(tmp_path, body)
    with running(SharedFakeModel(), moderate=command) as server:
        reply = server.call("POST", "/v1/chat/completions", CHAT)
    if body == "raise SystemError":  # Python's exit code for any exception is 1
        assert (reply.status, reply.json["error"]["code"]) == (400, "content_filter")
    else:
        assert (reply.status, reply.json["error"]["code"]) == (503, "moderation_failed")


def test_a_judge_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftsmith.server.moderation._TIME_S", 0.2)
    monkeypatch.setattr(Moderator.__init__, "__kwdefaults__", {"time_s": 0.2})
    began = time.monotonic()
    with running(SharedFakeModel(), moderate=judge(tmp_path, "time.sleep(60)")) as server:
        assert server.call("POST", "/v1/chat/completions", CHAT).json["error"]["code"] == "moderation_failed"
    assert time.monotonic() - began < 30


def test_a_command_that_is_none() -> None:
    for command in ("", '"'):
        with pytest.raises(UsageError, match="moderation command"):
            Moderator(command)
    for seconds in (-1.0, 0.001, 11.0):
        with pytest.raises(UsageError, match="interval"):
            ServerOptions(pace_s=seconds)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 4, BLOCK - 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 2])
def test_blocks_are_whole_whatever_is_in_them(size: int) -> None:
    pacer = Pacer(None, 1.0)  # type: ignore[arg-type]  # nothing is sent
    pacer.put(b"x" * size)
    block = pacer.take()
    assert len(block) % BLOCK == 0
    assert len(block) > 0
    assert block.startswith(b"x" * size)
    comment = block[size:]
    assert comment == b"" or (comment.startswith(b":") and comment.endswith(b"\n\n") and comment.count(b"\n") == 2)


def test_a_stopped_pacer_ends_though_its_cancellation_is_swallowed() -> None:
    asyncio.run(_stop_while_sending())


async def _stop_while_sending() -> None:
    async def send(_data: bytes) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)

    pacer = Pacer(send, 0.001)
    ticking = asyncio.ensure_future(pacer.run())
    await asyncio.sleep(0.02)
    pacer.stop()
    ticking.cancel()
    await asyncio.wait_for(asyncio.gather(ticking, return_exceptions=True), 5)


def test_a_paced_stream_has_equal_packets_and_the_same_text() -> None:
    asked = {**CHAT, "max_tokens": 60, "stream": True, "temperature": 1.0}
    model = GatedModel(delay=0.005)
    model.gate.set()
    with running(model, pace_s=0.05) as server, running(SharedFakeModel()) as other:
        connection = send(server.port, "/v1/chat/completions", asked)
        sizes, whole = chunks(connection)
        text = said(whole)
        assert text == said(other.call("POST", "/v1/chat/completions", asked).body)
    assert len(sizes) > 3
    assert all(size % BLOCK == 0 for size in sizes)
    assert whole.rstrip().decode().count("[DONE]") == 1


def chunks(connection: socket.socket) -> tuple[list[int], bytes]:
    """The chunks of a chunked answer."""
    received = b""
    while part := connection.recv(65536):
        received += part
        if received.endswith(b"0\r\n\r\n"):
            break
    connection.close()
    body, sizes, whole = received.partition(b"\r\n\r\n")[2], list[int](), b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole += body[:length]
        body = body[length + 2 :]
        if length:
            sizes.append(length)
    return sizes, whole


def said(stream: bytes) -> str:
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def test_options_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.toml"
    seen: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    def command(
        config: Path | None = typer.Option(None, callback=read_config, is_eager=True),  # noqa: ARG001, B008
        port: int = 1,
        draft: str = "auto",
        access_log: bool = typer.Option(True, "--access-log/--no-access-log"),
        allow_host: list[str] = typer.Option([]),  # noqa: B008
    ) -> None:
        seen.update(port=port, draft=draft, access_log=access_log, allow_host=allow_host)

    file.write_text('port = 5\ndraft = "lookup"\naccess-log = false\nallow_host = ["a", "b"]\n', encoding="utf-8")
    app(["--config", str(file), "--draft", "none"], standalone_mode=False)
    assert seen == {"port": 5, "draft": "none", "access_log": False, "allow_host": ["a", "b"]}
    for content, wrong in (
        ("ports = 5", "which is no option"),
        ("port = ", "cannot be read"),
        ("config = 'x'", "no option"),
        ("port = 1" + "0" * 5000, "cannot be read"),  # more digits than Python reads
    ):
        file.write_text(content, encoding="utf-8")
        assert run(["serve", "--config", str(file)]) == 2
        assert wrong in capsys.readouterr().err
    file.write_text("port = 'x'", encoding="utf-8")
    assert run(["serve", "--config", str(file)]) == 2
    assert run(["serve", "--config", str(tmp_path / "missing")]) == 2


def test_options_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above the file, below the command line; seen by what is refused, since nothing is loaded before that."""
    file = tmp_path / "serve.toml"
    file.write_text("port = 70001", encoding="utf-8")
    monkeypatch.setenv("DRAFTSMITH_SERVE_CONFIG", str(file))
    for told, arguments in (("70001", []), ("70002", []), ("70003", ["--port", "70003"])):
        if told != "70001":
            monkeypatch.setenv("DRAFTSMITH_SERVE_PORT", "70002")
        assert run(["serve", *arguments]) == 2
        assert f"port is {told}" in capsys.readouterr().err
    monkeypatch.setenv("DRAFTSMITH_SERVE_PORT", "many")
    assert run(["serve"]) == 2
    monkeypatch.setenv("DRAFTSMITH_SERVE_PORT", "0")
    monkeypatch.setenv("DRAFTSMITH_SERVE_ALLOW_ORIGIN", "*")
    assert run(["serve"]) == 2
    assert "* would let every web page in" in capsys.readouterr().err


def test_limits_of_the_engine_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineLimits] = []

    def load(*given: object, **_: object) -> NoReturn:
        seen.extend(each for each in given if isinstance(each, EngineLimits))
        raise UsageError("that is all")

    monkeypatch.setattr(server_run, "load", load)
    for arguments in ([], ["--no-share-prompts", "--max-running", "3", "--max-waiting", "7"]):
        assert run(["serve", "--port", "0", *arguments]) == 2
    assert seen == [
        EngineLimits(max_running=16, max_waiting=64),
        EngineLimits(max_running=3, max_waiting=7, share_prompts=False),
    ]
