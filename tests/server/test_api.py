"""The API as the ``openai`` client sees it, against a real server on loopback."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.types import Message, SamplingParams
from tests.support.fakes import byte_tokenizer
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "abc abc abc"}]
TOOL = {"type": "function", "function": {"name": "add"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "robot"}}}
IMAGE = "messages.0.content.0.type"
SEEDED: Any = {"model": "tiny", "seed": 7, "max_tokens": 40}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SharedFakeModel()) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.address + "/v1", api_key="none", max_retries=0) as found:
        yield found


def alone(messages: Any, **sampling: Any) -> str:
    """What the engine for one text writes without a drafter."""
    llm = LLM(LoadedModel("tiny", SharedFakeModel(), byte_tokenizer()), "none")
    return llm.chat([Message(**one) for one in messages], SamplingParams(**sampling)).text


def test_a_chat_is_what_the_library_writes(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(messages=MESSAGES, **SEEDED)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == alone(MESSAGES, seed=7, max_new_tokens=40)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 40
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 40


def test_a_stream_is_the_whole_answer_in_parts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **SEEDED)
    chunks = list(
        client.chat.completions.create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SEEDED)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_ends_with_the_statistics(server: Running) -> None:
    body = {"messages": MESSAGES, "stream": True, **SEEDED}
    reply = server.call("POST", "/v1/chat/completions", body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    last = json.loads(lines[-2])
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["timings"]["predicted_n"] == 40
    assert "usage" not in last


def test_async_clients_side_by_side_get_what_they_get_alone(server: Running) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        message = {"role": "user", "content": "abc " * (number + 1)}
        reply = await client.chat.completions.create(
            model="tiny", messages=cast("Any", [message]), seed=number, max_tokens=30, temperature=1.0
        )
        return reply.choices[0].message.content or ""

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.address + "/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, number) for number in range(17)))

    for number, text in enumerate(asyncio.run(all_of_them())):
        messages = [{"role": "user", "content": "abc " * (number + 1)}]
        assert text == alone(messages, seed=number, max_new_tokens=30, temperature=1.0)


def test_a_completion_with_echo_stop_and_several_prompts(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="tiny", prompt=["abc", "def"], max_tokens=30, temperature=0)
    assert [choice.index for choice in plain.choices] == [0, 1]
    text = plain.choices[1].text
    stop = text[10:12]
    cut = client.completions.create(model="tiny", prompt="def", max_tokens=30, temperature=0, stop=stop, echo=True)
    assert cut.choices[0].text == "def" + text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    ids = client.completions.create(model="tiny", prompt=list(b"def"), max_tokens=30, temperature=0)
    assert ids.choices[0].text == text


def test_choices_differ_and_the_first_is_that_of_the_seed(client: openai.OpenAI) -> None:
    several = client.chat.completions.create(messages=MESSAGES, n=3, temperature=1, **SEEDED)
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) == 3
    assert texts[0] == alone(MESSAGES, seed=7, max_new_tokens=40, temperature=1.0)
    assert texts[1] == alone(MESSAGES, seed=8, max_new_tokens=40, temperature=1.0)
    assert several.model_extra == {"metrics": {"speculative_decoding": None}}


def test_logprobs(client: openai.OpenAI) -> None:
    body: Any = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    chat = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **body)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    for one in content:
        assert one.bytes == list(one.token.encode())
        assert [one.top_logprobs[0].token, one.top_logprobs[0].logprob] == [one.token, one.logprob]
    stream = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **body)
    parts = [c.choices[0].logprobs for c in stream]
    assert [one for part in parts if part is not None for one in part.content or []] == content
    old = client.completions.create(prompt="abc", logprobs=1, **body).choices[0]
    assert old.logprobs is not None
    assert "".join(old.logprobs.tokens or []) == old.text
    assert old.logprobs.text_offset == list(range(6))


def test_drafting_by_request_changes_only_the_statistics(server: Running) -> None:
    def ask(**fields: Any) -> Any:
        body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 60, "return_pieces": True, **fields}
        return server.call("POST", "/v1/chat/completions", body).json

    drafted, plain, short = ask(), ask(draft=False), ask(num_draft_tokens=1)
    assert plain["metrics"] == {"speculative_decoding": None}
    assert drafted["choices"][0]["message"] == plain["choices"][0]["message"] == short["choices"][0]["message"]
    stats = drafted["metrics"]["speculative_decoding"]
    assert stats["num_accepted_draft_tokens"] == drafted["timings"]["draft_n_accepted"] > 0
    assert sum(stats["acceptance_histogram"]) == stats["num_spec_steps"]
    weighted = sum(i * count for i, count in enumerate(stats["acceptance_histogram"]))
    assert weighted == stats["num_accepted_draft_tokens"]
    assert short["metrics"]["speculative_decoding"]["num_spec_tokens"] == 1
    pieces = drafted["choices"][0]["pieces"]
    assert "".join(piece["text"] for piece in pieces) == drafted["choices"][0]["message"]["content"]
    tinted = sum(len(piece["text"]) for piece in pieces if piece["from_draft"])
    assert tinted == stats["num_accepted_draft_tokens"]
    assert not any(piece["from_draft"] for piece in plain["choices"][0]["pieces"])


def test_models_and_tokens(server: Running, client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert client.models.retrieve("tiny") == model
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "draftsmith")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    tokens = server.call("POST", "/tokenize", {"prompt": "aé<|im_end|>"}).json
    assert tokens == {"count": 13, "max_model_len": 512, "tokens": list("aé<|im_end|>".encode())}
    assert server.call("POST", "/detokenize", {"tokens": tokens["tokens"]}).json == {"prompt": "aé<|im_end|>"}
    chat = server.call("POST", "/tokenize", {"messages": MESSAGES}).json
    assert chat["count"] == len(chat["tokens"]) > 20
    assert server.call("POST", "/detokenize", {"tokens": [260]}).json["error"]["param"] == "tokens"


def test_health_ready_metrics(server: Running) -> None:
    assert server.call("GET", "/health").json == {"status": "ok"}
    assert server.call("GET", "/ready").json == {"status": "ready"}
    before = server.call("GET", "/metrics").body.decode()
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 60}
    stats = server.call("POST", "/v1/chat/completions", body).json["metrics"]["speculative_decoding"]
    after = server.call("GET", "/metrics").body.decode()

    def value(page: str, name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"vllm:{name}{{"))

    for name, grown in (
        ("generation_tokens_total", 60),
        ("spec_decode_num_drafts_total", stats["num_spec_steps"]),
        ("spec_decode_num_draft_tokens_total", stats["num_draft_tokens"]),
        ("spec_decode_num_accepted_tokens_total", stats["num_accepted_draft_tokens"]),
        ("spec_decode_num_accepted_tokens_per_pos_total", stats["num_accepted_draft_tokens"]),
        ("request_success_total", 1),
        ("time_to_first_token_seconds_count", 1),
    ):
        assert value(after, name) - value(before, name) == grown, name


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_parameter"),
        ({"tools": [TOOL]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_value"),
        ({"response_format": SCHEMA}, "response_format", "invalid_value"),
        ({"grammar": "root ::= x"}, "grammar", "invalid_value"),
        ({"grammar": "start: A\n", "regex": "a"}, "grammar", "invalid_value"),
        ({"regex": "("}, "regex", "invalid_value"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value"),
        ({"guided_json": {}}, "guided_json", "unsupported_parameter"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
        ({"best_of": 3}, "best_of", "unsupported_parameter"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"260": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, IMAGE, "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context_length_exceeded"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"num_draft_tokens": 65}, "num_draft_tokens", "invalid_value"),
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"store": 0}, "store", "invalid_value"),
        ({"seed": 2.5}, "seed", "invalid_value"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_parameter"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "a", "audio": {}}]}, "messages.0.audio", "unsupported_parameter"),
    ],
)
def test_what_is_wrong_is_named(server: Running, fields: dict[str, Any], param: str, code: str) -> None:
    reply = server.call("POST", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2, **fields})
    assert reply.status == (404 if code == "model_not_found" else 400)
    error = reply.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["code"] == code
    assert len(reply.body) < 1000


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"messages": NaN}', b"[" * 100_000, b'{"prompt": "\\ud800"}'],
)
def test_bodies_that_are_no_requests(server: Running, body: bytes) -> None:
    reply = server.call("POST", "/v1/completions", body)
    assert reply.status == 400
    assert reply.json["error"]["code"] == "invalid_json"


def test_null_is_absent_and_neutral_values_pass(server: Running) -> None:
    neutral = {
        "tools": None,
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "user": "u",
        "best_of": None,
        "n": 1.0,
    }
    reply = server.call("POST", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, **neutral})
    assert reply.status == 200
