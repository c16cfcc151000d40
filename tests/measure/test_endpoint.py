"""bench --endpoint: what a client counts and times, our own server beside a pair, and faults told in one sentence."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli import main
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.measure.contest import EndpointSide, LocalSide, Side, run_contest
from draftsmith.measure.contest_output import contest_details, contest_json, contest_text
from draftsmith.measure.endpoint import find_endpoint
from draftsmith.measure.origin import measurement_origin
from draftsmith.measure.pair import load_pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.types import Message, SamplingParams
from tests.support.fakes import FakeModel, fake_target
from tests.support.schemas import check_schema
from tests.support.serving import running
from tests.support.tiny import tiny_folder

ITEMS = (PromptItem("a", "letters", ("abc", "more abc")), PromptItem("b", "lines", ("a\nb\nc",)))
GREEDY = SamplingParams(greedy=True, max_new_tokens=24)
MODELS = {"data": [{"id": "small", "owned_by": "vllm"}]}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the functions of its server, and remembers what it was asked."""

    server: Stub

    def do_GET(self) -> None:
        self._send(200, "application/json", json.dumps(self.server.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body, self.headers.get("Authorization")))
        self.server.answer(self, body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


Answer = Callable[[Handler, Any], None]


class Stub(http.server.ThreadingHTTPServer):
    """A server on loopback that says what a test wants."""

    def __init__(self, answer: Answer, models: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.models = answer, models
        self.asked: list[tuple[str, Any, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def stub(answer: Answer, models: Any = MODELS) -> Iterator[Stub]:
    server = Stub(answer, models)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def streaming(
    pieces: list[str], *, first: float = 0.0, each: float = 0.0, usage: int | None = None, **tail: Any
) -> Answer:
    """A stream of ``pieces``: the first after ``first`` seconds, the others ``each`` seconds apart."""

    def answer(handler: Handler, body: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        for place, piece in enumerate(pieces):
            time.sleep(each if place else first)
            choice = {"delta": {"content": piece}} if "messages" in body else {"text": piece}
            handler.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            handler.wfile.flush()
        last = {"choices": [], **tail, **({"usage": {"completion_tokens": usage}} if usage is not None else {})}
        handler.wfile.write(b": a comment\n\ndata: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n")

    return answer


def refusing(status: int, message: str) -> Answer:
    def answer(handler: Handler, body: Any) -> None:
        del body
        handler._send(status, "application/json", json.dumps({"error": {"message": message}}).encode())

    return answer


def as_json(handler: Handler, body: Any) -> None:
    del body
    handler._send(200, "application/json", b'{"choices": []}')


def test_tokens_and_seconds_are_those_that_the_client_saw() -> None:
    """First text after 60 ms, then 3 pieces 30 ms apart; the endpoint says they were 7 tokens."""
    tail = {"timings": {"draft_n": 8, "draft_n_accepted": 6}}
    with stub(streaming(["a", "b", "c", "d"], first=0.06, each=0.03, usage=7, **tail)) as server:
        reply = find_endpoint(server.address).ask([Message("user", "hello")], GREEDY)
        [(path, body, _)] = server.asked
    assert (reply.text, reply.num_tokens, reply.counted, reply.drafted, reply.accepted) == ("abcd", 7, "endpoint", 8, 6)
    assert 0.06 <= reply.first_s < 0.5
    assert 0 < reply.rest_s < 0.6
    assert reply.first_s + reply.rest_s >= 0.15  # a client that is late for the first piece waits less for the rest
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("small", 0, 24, True)


def test_completions_and_an_endpoint_that_does_not_count() -> None:
    with stub(streaming(["a", "b", "c"])) as server:
        reply = find_endpoint(server.address, chat=False).ask("hello", SamplingParams(seed=3, max_new_tokens=5))
        [(path, body, _)] = server.asked
    assert (reply.text, reply.num_tokens, reply.counted, reply.drafted) == ("abc", 3, "chunks", None)
    assert (path, body["prompt"], body["seed"], body["top_p"]) == ("/v1/completions", "hello", 3, 0.95)


def test_our_own_server_beside_our_own_pair() -> None:
    """The same model here and behind the server: the same texts, and both ways of the server take part."""
    pair = load_pair(fake_target(), "lookup", num_draft_tokens=4)
    with running(FakeModel()) as server:
        endpoint = find_endpoint(f"http://127.0.0.1:{server.port}")
        assert (endpoint.kind, endpoint.model) == ("draftsmith", "tiny")
        sides: list[Side] = [
            LocalSide("here, plain", pair.plain),
            LocalSide("here, lookup", pair.speculative),
            EndpointSide("there, plain", endpoint.without_drafting()),
            EndpointSide("there", endpoint),
        ]
        result = run_contest(sides, ITEMS, GREEDY, repeats=2)
        by_text = find_endpoint(f"http://127.0.0.1:{server.port}/v1/", chat=False)
        lines = run_contest([sides[0], EndpointSide("there", by_text)], ITEMS, GREEDY, chat=False)
    value = contest_json(result, {**measurement_origin({}, {}, None), "endpoints": []})
    check_schema(value, "bench-endpoint")
    check_schema({**value, "details": contest_details(result)}, "bench-endpoint")
    assert [side["same_text"] for side in value["sides"]] == [1, 1, 1, 1]
    assert [side["tokens"] for side in value["sides"]] == [72] * 4
    accepted = [side["acceptance_rate"] for side in value["sides"]]
    assert accepted[0] is accepted[2] is None
    assert accepted[1] == accepted[3] is not None
    assert value["sides"][0]["ratio"] == 1
    assert all(side["tokens_counted_by"] == "endpoint" for side in value["sides"])
    assert [side.same_text(lines.sides[0]) for side in lines.sides] == [1, 1]
    text = contest_text(value)
    assert "| there, plain | 72 |" in text
    assert "tokens after a reply's" in text


def test_a_prompt_that_one_refuses_is_left_out_for_all() -> None:
    def answer(handler: Handler, body: Any) -> None:
        long = len(body["messages"][0]["content"]) > 10
        (refusing(400, "too long") if long else streaming(["a", "b"], usage=2))(handler, body)

    with stub(answer) as server:
        side = EndpointSide("stub", find_endpoint(server.address))
        result = run_contest([side], [*ITEMS, PromptItem("long", "x", ("a" * 50,))], GREEDY)
        assert list(result.skipped) == ["long"]
        with pytest.raises(UsageError, match=r"nothing could be measured: .*400 too long"):
            run_contest([side], [PromptItem("long", "x", ("a" * 50,))], GREEDY)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (refusing(401, "no"), UsageError, "wants an API key"),
        (refusing(404, "The model `small` does not exist"), UsageError, "has no model 'small'"),
        (refusing(404, "Not Found"), UsageError, "must end before it, mostly in /v1"),
        (refusing(503, "overloaded"), DraftsmithError, "failed: 503 overloaded"),
        (as_json, UsageError, "answered as a whole where a stream was asked for"),
        (streaming([], usage=None, choices=[{"finish_reason": "stop"}]), UsageError, "without what a completion has"),
        (streaming(["a"], error={"message": "out of memory"}), DraftsmithError, "in the middle of a reply: out of"),
    ],
)
def test_faults_are_told_in_one_sentence(answer: Answer, kind: type[Exception], said: str) -> None:
    with stub(answer) as server, pytest.raises(kind, match=said) as told:
        find_endpoint(server.address).ask([Message("user", "x")], GREEDY)
    assert "\n" not in str(told.value)


def test_models_are_found_or_asked_for() -> None:
    two = {"data": [{"id": "a"}, {"id": "b"}]}
    with stub(as_json, two) as server:
        with pytest.raises(UsageError, match=r"has 2 models \(a, b\); name one with --endpoint-model"):
            find_endpoint(server.address)
        assert find_endpoint(server.address, "b").model == "b"
        with pytest.raises(UsageError, match="cannot switch drafting off"):
            find_endpoint(server.address, "b").without_drafting()
    with stub(as_json, ["what"]) as server, pytest.raises(UsageError, match="gave no list of models"):
        find_endpoint(server.address)
    with pytest.raises(DraftsmithError, match="cannot be reached"):
        find_endpoint("http://127.0.0.1:1/v1")


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The key of the file is sent and nowhere told; without --target no model of ours is loaded."""
    key, out = tmp_path / "key", tmp_path / "out.json"
    key.write_text("secret-1\n")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "x", "category": "c", "turns": ["one", "two"]}\n')
    with stub(streaming(["a", "b", "c"], usage=3)) as server:
        common = ("bench", "--endpoint", server.address, "--prompts", str(prompts))
        code = main((*common, "--api-key-file", str(key), "--json", "--output", str(out)))
        said = capsys.readouterr()
        value = json.loads(said.out)
        assert (code, said.err) == (0, "")
        check_schema(value, "bench-endpoint")
        check_schema(json.loads(out.read_text()), "bench-endpoint")
        assert {key for _, _, key in server.asked} == {"Bearer secret-1"}
        assert "secret" not in said.out + out.read_text()
        assert [len(body["messages"]) for _, body, _ in server.asked] == [1, 3, 1, 3]  # warmed up before
        assert value["provenance"]["endpoints"] == [{"address": server.address, "model": "small", "server": "vllm"}]
        assert main((*common, "--endpoint-plain")) == 2
        capsys.readouterr()
        target = tiny_folder(tmp_path / "target")
        assert main((*common, "--target", str(target), "--draft", "lookup", "--max-new-tokens", "4", "--json")) == 0
        names = [side["side"] for side in json.loads(capsys.readouterr().out)["sides"]]
        assert names[:2] == ["here, plain", "here, lookup"]
        assert names[2].endswith(" small")
    for wrong in (("--endpoint", "localhost"), ("--endpoint-plain",), ("--endpoint", "http://u:p@h/v1")):
        assert main(("bench", *wrong)) == 2
    assert main(("bench", "--endpoint", "http://127.0.0.1:1")) == 1
