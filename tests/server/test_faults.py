"""Clients that leave, stall or are too many; a server that is told to stop."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import EngineLimits
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.server.options import ServerOptions
from draftsmith.server.run import listen
from tests.support.serving import PATIENCE, Reply, Running, running
from tests.support.shared_fakes import SharedFakeModel
from tests.support.tiny import tiny_folder

MESSAGES = [{"role": "user", "content": "abc"}]
LONG: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 400, "ignore_eos": True, "seed": 1}


class GatedModel(SharedFakeModel):
    """Every forward waits until the gate is open; ``delay`` makes each take a while."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.delay = delay

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        assert self.gate.wait(PATIENCE)
        time.sleep(self.delay)
        return super().forward(runs)


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def send(port: int, path: str, body: dict[str, Any]) -> socket.socket:
    """A request whose answer is not read yet."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(f"{head}\r\n\r\n".encode() + data)
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def running_requests(server: Running) -> float:
    page = server.call("GET", "/metrics").body.decode()
    lines = [
        line for line in page.splitlines() if line.startswith(("vllm:num_requests_running", "vllm:num_requests_w"))
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_place_and_the_memory(stream: bool) -> None:
    model = GatedModel(delay=0.02)
    model.gate.set()
    with running(model, limits=EngineLimits(max_kept_texts=0)) as server:
        for _ in range(20):
            connection = send(server.port, "/v1/chat/completions", {**LONG, "stream": stream})
            if stream:
                assert connection.recv(20)
            else:
                until(lambda: running_requests(server) > 0)
            connection.close()
        until(lambda: running_requests(server) == 0, 2)
        until(lambda: model.cache_bytes_in_use == 0, 2)
        counted = 'request_success_total{model_name="tiny",engine="0",finished_reason="abort"} 20\n'
        until(lambda: counted in server.call("GET", "/metrics").body.decode(), 5)
        assert server.call("POST", "/v1/completions", {"prompt": "a", "max_tokens": 3}).status == 200


def test_more_than_the_queue_holds_is_turned_away_at_once_and_nobody_else_loses() -> None:
    model = GatedModel()
    with running(model, limits=EngineLimits(max_running=1, max_waiting=2)) as server:
        replies: list[Reply] = []

        def ask() -> None:
            body = {"prompt": "abc", "max_tokens": 5, "temperature": 0}
            replies.append(server.call("POST", "/v1/completions", body))

        threads = []
        for _ in range(3):  # one at a time, so that the first runs and two wait
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            until(lambda: server.loaded.engine.num_waiting + server.loaded.engine.stats.running >= 1)
            time.sleep(0.05)
        began = time.monotonic()
        refused = [server.call("POST", "/v1/completions", {"prompt": "abc"}) for _ in range(20)]
        assert time.monotonic() - began < 20 * 0.1
        assert {reply.status for reply in refused} == {503}
        assert refused[0].headers["retry-after"] == "2"
        assert refused[0].json["error"]["code"] == "overloaded"
        unread = server.call("POST", "/v1/completions", {"prompt": "abc", "no such field": 1})
        assert unread.status == 503  # nothing is spent on what cannot be taken, not even a look
        assert server.call("GET", "/health").status == 200
        model.gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [reply.status for reply in replies] == [200] * 3
        assert len({reply.json["choices"][0]["text"] for reply in replies}) == 1


def test_a_request_that_does_not_fit_whole_takes_no_place() -> None:
    model = GatedModel()
    with running(model, limits=EngineLimits(max_running=1, max_waiting=2)) as server:
        assert server.call("POST", "/v1/completions", {"prompt": "abc", "n": 8}).status == 503
        model.gate.set()
        until(lambda: server.call("POST", "/v1/completions", {"prompt": "abc", "n": 2}).status == 200)
        until(lambda: running_requests(server) == 0, 2)


def test_an_engine_error_ends_the_request_and_not_the_server() -> None:
    model = SharedFakeModel()
    with running(model) as server:
        model.errors.append(RuntimeError("secret details"))
        reply = server.call("POST", "/v1/completions", {"prompt": "abc"})
        assert reply.status == 500
        assert b"secret" not in reply.body
        assert reply.json["error"]["type"] == "server_error"
        model.errors.append(RuntimeError("secret details"))
        streamed = server.call("POST", "/v1/completions", {"prompt": "abc", "stream": True})
        assert b'"code": "internal_error"' in streamed.body
        assert streamed.body.endswith(b"data: [DONE]\n\n")
        assert server.call("POST", "/v1/completions", {"prompt": "abc"}).status == 200


def test_a_silent_stream_is_kept_alive() -> None:
    model = GatedModel()
    with running(model, ping_s=0.05) as server:
        connection = send(server.port, "/v1/completions", {"prompt": "abc", "stream": True})
        received = b""
        while received.count(b": ping\n\n") < 2:
            received += connection.recv(4096)
        model.gate.set()
        while b"[DONE]" not in received:
            received += connection.recv(4096)
        connection.close()


def test_slow_headers_are_cut_off_and_others_are_served() -> None:
    with running(SharedFakeModel(), header_s=0.5, body_s=0.5) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(50)]
        for index, connection in enumerate(slow):
            if index % 2:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        stalled = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        stalled.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        began = time.monotonic()
        assert server.call("GET", "/health").status == 200
        assert time.monotonic() - began < 1
        for connection in slow:
            assert is_closed(connection)
            connection.close()
        assert b" 408 " in stalled.recv(4096)
        stalled.close()
        assert server.call("GET", "/health").status == 200


def test_a_second_request_on_a_connection_has_its_own_deadline() -> None:
    with running(SharedFakeModel(), header_s=0.5) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(4096)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert is_closed(connection)
        connection.close()


def test_a_large_header_is_refused() -> None:
    with running(SharedFakeModel(), max_header=4096) as server:
        assert server.call("GET", "/health", x_long="a" * 10_000).status == 431
        assert server.call("GET", "/health", **{f"x_{i}": "a" for i in range(101)}).status == 431
        assert server.call("GET", "/health").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_drains_and_ends_with_code_0(tmp_path: Path, number: signal.Signals) -> None:
    folder = tiny_folder(tmp_path / "served", max_context=4096)
    arguments = ["--target", str(folder), "--port", "0", "--num-draft-tokens", "4", "--threads", "1"]
    command = [sys.executable, "-m", "draftsmith", "serve", *arguments]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving served (draft: lookup) at http://127.0.0.1:"), line
        port = int(line.partition("127.0.0.1:")[2].split(",")[0])
        connection = send(port, "/v1/completions", {"prompt": "secret", "max_tokens": 1500, "stream": True, "seed": 1})
        assert connection.recv(20)
        process.send_signal(number)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        connection.close()
        assert b'"finish_reason": "length"' in received
        assert b"[DONE]" in received
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert "POST /v1/completions 200" in errors
        assert "secret" not in output + errors
    finally:
        process.kill()
        process.wait()


def test_draining_has_an_end() -> None:
    model = GatedModel(delay=0.05)
    model.gate.set()
    with running(model, drain_s=1) as server:
        connection = send(server.port, "/v1/completions", {"prompt": "a", "max_tokens": 500, "stream": True})
        assert connection.recv(20)
        began = time.monotonic()
        server.stop.set()
        server.thread.join(PATIENCE)
        assert time.monotonic() - began < 5
        connection.close()


def test_no_part_of_an_answer_waits_for_the_one_before() -> None:
    with listen(ServerOptions(port=0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_was_loaded_is_not_searched_for_garbage_while_serving() -> None:
    """A full collection takes 40 ms with all modules loaded; all replies would wait. Afterwards all is as ever."""
    before = sys.getswitchinterval()
    with running(SharedFakeModel()):
        assert gc.get_freeze_count() > 10_000
        assert sys.getswitchinterval() < 1e-3
    assert gc.get_freeze_count() < 10_000
    assert sys.getswitchinterval() == before
