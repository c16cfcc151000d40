"""Replies from a server: the same documents as from the engine here, and one sentence for each way to fail."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from draftsmith.engine import LLM
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.train.encode import Document
from draftsmith.train.endpoint import TRIES, EndpointWriter
from draftsmith.train.parts import read_parts
from draftsmith.train.prompts import write_prompts
from draftsmith.train.replies import load_writer, write_replies
from draftsmith.train.schema import GenerateStage
from draftsmith.types import Message, SamplingParams
from tests.support.fakes import EOS
from tests.support.serving import running
from tests.support.tiny import tiny_folder

PROMPTS = [(Message("user", text),) for text in ("hi", "so", "then", "what now")]
STAGE = GenerateStage(
    name="replies",
    kind="generate",
    temperature=1.0,
    greedy_share=0.5,
    max_new_tokens=9,
    top_logprobs=5,
    rows_per_part=3,
    draft="none",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"))


def documents(folder: Path, llm: LLM) -> list[Document]:
    return [one for path in sorted(folder.glob("part-*")) for one in read_parts(path, llm.tokenizer.fingerprint())]


def test_the_documents_are_those_of_the_engine(folder: str, tmp_path: Path) -> None:
    llm = LLM(folder, "none", threads=1)
    write_replies(llm, STAGE, PROMPTS, tmp_path / "here", lambda _: None)
    with running(llm.target.model) as server:
        asked = replace(STAGE, endpoint=f"{server.address}/v1", endpoint_model="tiny", draft="auto")
        there = load_writer(asked, folder)
        write_replies(there, asked, PROMPTS, tmp_path / "there", lambda _: None)
        made = write_prompts(there, replace(asked, num_prompts=2, prompt_starts=("a",)), tmp_path / "p", lambda _: None)
    pairs = list(zip(documents(tmp_path / "here", llm), documents(tmp_path / "there", llm), strict=True))
    assert len(pairs) == len(PROMPTS)
    for ours, theirs in pairs:
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.mask.tolist() == theirs.mask.tolist()
        assert ours.top_ids is not None
        assert theirs.top_ids is not None
        assert ours.top_logprobs is not None
        assert theirs.top_logprobs is not None
        assert ours.top_ids.tolist() == theirs.top_ids.tolist()
        assert ours.top_logprobs.tolist() == theirs.top_logprobs.tolist()
    assert made == write_prompts(
        llm, replace(STAGE, num_prompts=2, prompt_starts=("a",)), tmp_path / "q", lambda _: None
    )


Answer = Callable[[dict[str, Any]], tuple[int, Any]]


@contextmanager
def stub(answer: Answer) -> Iterator[str]:
    """A server that gives what ``answer`` says for each body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["authorization"] = self.headers.get("Authorization")
            status, value = answer(body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def writer(folder: str) -> EndpointWriter:
    stage = replace(STAGE, endpoint="http://127.0.0.1:9/v1", endpoint_model="served", draft="auto")
    loaded = load_writer(stage, folder)
    assert isinstance(loaded, EndpointWriter)
    return replace(loaded, first_wait_s=0.001)


def choice(tokens: list[str], top: dict[str, float]) -> dict[str, Any]:
    listed = {"tokens": tokens, "token_logprobs": [-1.0] * len(tokens), "top_logprobs": [top] * len(tokens)}
    return {"choices": [{"text": "hi", "finish_reason": "stop", "logprobs": listed}]}


def test_a_busy_server_is_asked_again_and_what_it_adds_is_cut_off(
    writer: EndpointWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTSMITH_ENDPOINT_KEY", "secret")
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(body)
        if len(seen) < 3:
            return (503, 429)[len(seen) - 1], {}
        return 200, choice(["token_id:9"], {"token_id:9": -3.0, "token_id:7": -0.5, "token_id:8": -0.7})

    with stub(answer) as address:
        params = SamplingParams(max_new_tokens=5000, temperature=0.7, top_k=3, top_p=0.9, seed=4, logprobs=2)
        [completion] = replace(writer, address=address).generate([[1, 2, 3]], [params])
    assert completion.token_ids == (9,)
    assert completion.logprobs is not None
    assert completion.logprobs[0].top == ((7, -0.5), (8, -0.7))
    assert completion.finish_reason == "stop"
    assert seen[-1] == {
        "model": "served",
        "prompt": [1, 2, 3],
        "max_tokens": writer.max_context - 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 4,
        "logprobs": 2,
        "return_tokens_as_token_ids": True,
        "authorization": "Bearer secret",
    }


def test_any_endpoint_serves_where_no_logprobs_are_asked_for(writer: EndpointWriter) -> None:
    with stub(lambda _: (200, {"choices": [{"text": "ab", "finish_reason": "stop"}]})) as address:
        [completion] = replace(writer, address=address).generate([[1]], [SamplingParams(greedy=True)])
    assert completion.token_ids == (*writer.tokenizer.encode("ab", add_bos=False), EOS)


def test_what_runs_into_a_stop_string_did_not_end(writer: EndpointWriter) -> None:
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        bodies.append(body)
        return 200, {"choices": [{"text": "ab\n\nUSER: more", "finish_reason": "stop"}]}

    with stub(answer) as address:
        params = SamplingParams(greedy=True, stop=("USER:", "\n\nUSER:", "none"))
        [completion] = replace(writer, address=address).generate([[1]], [params])
    assert "stop" not in bodies[0]  # a server that ends there says no more of it than of a text that ended
    assert (completion.text, completion.finish_reason) == ("ab", "stop")
    assert list(completion.token_ids) == writer.tokenizer.encode("ab\n\nUSER:", add_bos=False)


@pytest.mark.parametrize(
    ("status", "value", "error", "said"),
    [
        (404, {"error": {"message": "no model served"}}, UsageError, "refused the request: 404 no model served"),
        (400, ["odd"], UsageError, "refused the request: 400"),
        (500, {}, DraftsmithError, f"did not answer in {TRIES} attempts"),
        (200, {"choices": []}, UsageError, "gave no completion"),
        (200, choice(["ab"], {"ab": -1.0}), UsageError, "a token is called 'ab'"),
        (200, choice(["token_id:7"], {"token_id:7": -1.0}), UsageError, "1 log-probabilities at a place, 2 were asked"),
        (200, choice(["token_id:99999"], {"token_id:1": -1.0, "token_id:2": -2.0}), UsageError, "the token 99999"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    status: int, value: Any, error: type[Exception], said: str, writer: EndpointWriter
) -> None:
    with stub(lambda _: (status, value)) as address, pytest.raises(error, match=said):
        replace(writer, address=address).generate([[1]], [SamplingParams(logprobs=2)])


def test_settings_that_contradict_an_endpoint_are_told(folder: str) -> None:
    with pytest.raises(UsageError, match="leave them out"):
        load_writer(replace(STAGE, endpoint="http://x/v1", draft="lookup"), folder)
    with pytest.raises(UsageError, match="expected an address such as"):
        load_writer(replace(STAGE, endpoint="ftp://x"), folder)
