"""Replies of a given form, tool calls and echoed log-probabilities, as the ``openai`` client sees them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.server.tools import ToolReader
from tests.engine.test_prompt_logprobs import expected
from tests.support.fakes import TOOL_TEMPLATE
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

MESSAGES: Any = [{"role": "user", "content": "abc abc"}]
SEEDED: Any = {"model": "tiny", "seed": 3, "max_tokens": 250, "temperature": 1.0}


def tool(name: str, **properties: Any) -> Any:
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema}}


TOOLS: Any = [tool("add", a={"type": "integer", "maximum": 99, "minimum": 0}), tool("say", word={"enum": ["ab", "cd"]})]


class Person(BaseModel):
    name: str
    kind: int


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SharedFakeModel(max_context=2048), template=TOOL_TEMPLATE) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.address + "/v1", api_key="none", max_retries=0) as found:
        yield found


def check_calls(calls: Any) -> None:
    for call in calls:
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        if call.function.name == "add":
            assert 0 <= arguments.pop("a") <= 99
        else:
            assert call.function.name == "say"
            assert arguments.pop("word") in ("ab", "cd")
        assert arguments == {}
    assert len({call.id for call in calls}) == len(calls) > 0


def test_json_by_a_schema_the_same_with_and_without_a_draft(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"words": {"type": "array", "items": {"enum": ["abc", "hgf"]}, "minItems": 2, "maxItems": 3}},
        "required": ["words"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "words", "schema": schema, "strict": True}}
    texts = []
    for draft in (True, False):
        reply = client.chat.completions.create(
            messages=MESSAGES, response_format=form, extra_body={"draft": draft}, **SEEDED
        )
        assert reply.choices[0].finish_reason == "stop"
        texts.append(reply.choices[0].message.content or "")
    assert texts[0] == texts[1]
    assert set(json.loads(texts[0])["words"]) <= {"abc", "hgf"}
    stream = client.chat.completions.create(messages=MESSAGES, response_format=form, stream=True, **SEEDED)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == texts[0]


def test_the_clients_own_parsing(client: openai.OpenAI) -> None:
    bias: Any = {"logit_bias": {str(ord('"')): 100}}  # this model would write letters for ever
    reply = client.chat.completions.parse(messages=MESSAGES, response_format=Person, **SEEDED, **bias)
    assert isinstance(reply.choices[0].message.parsed, Person)


def test_any_json_object_an_expression_and_a_grammar(server: Running) -> None:
    def ask(path: str = "/v1/completions", **fields: Any) -> str:
        prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": "abc"}
        reply = server.call("POST", path, {**prompt, **SEEDED, **fields}).json
        assert reply["choices"][0]["finish_reason"] == "stop", reply
        return str(reply["choices"][0].get("text") or reply["choices"][0]["message"]["content"])

    closing = {"logit_bias": {str(ord("}")): 100, str(ord('"')): 90}}
    assert isinstance(json.loads(ask("/v1/chat/completions", response_format={"type": "json_object"}, **closing)), dict)
    assert re.fullmatch("[ab]{4}-[cd]", ask(regex="[ab]{4}-[cd]"))
    assert ask(grammar='root ::= "x" "y"') == "xy"


@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_that_is_required(client: openai.OpenAI, parallel: bool) -> None:
    asked: Any = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": parallel}
    reply = client.chat.completions.create(**asked, **SEEDED).choices[0]
    if reply.finish_reason == "length":
        assert parallel  # this model calls for ever
    else:
        assert reply.finish_reason == "tool_calls"
    assert reply.message.tool_calls is not None
    assert parallel or len(reply.message.tool_calls) == 1
    check_calls(reply.message.tool_calls)
    with client.chat.completions.stream(**asked, **SEEDED) as stream:
        final = stream.get_final_completion() if reply.finish_reason != "length" else None
    if final is not None:
        streamed = final.choices[0].message
        assert [one.function for one in streamed.tool_calls or []] != []
        check_calls(streamed.tool_calls)
        assert (streamed.content or None) == reply.message.content


def test_the_function_that_is_chosen(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "say"}}
    reply = client.chat.completions.create(messages=MESSAGES, tools=TOOLS, tool_choice=choice, **SEEDED).choices[0]
    assert [call.function.name for call in reply.message.tool_calls or []] == ["say"]
    assert reply.message.content is None


def test_calls_among_text_whole_and_streamed(client: openai.OpenAI) -> None:
    form = r'well <tool_call>\n\{"name": "add", "arguments": \{"a": [1-9]\}\}\n</tool_call>'
    form += r'\n<tool_call>\{"name": "no"\}</tool_call>'
    asked: Any = {"messages": MESSAGES, "tools": TOOLS, "extra_body": {"regex": form}, **SEEDED}
    reply = client.chat.completions.create(**asked).choices[0]
    assert reply.finish_reason == "tool_calls"
    assert reply.message.content == 'well \n<tool_call>{"name": "no"}</tool_call>'
    check_calls(reply.message.tool_calls)
    text, calls, reasons = "", list[Any](), list[str | None]()
    for chunk in client.chat.completions.create(stream=True, **asked):
        [choice] = chunk.choices
        text += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reasons.append(choice.finish_reason)
    assert text == reply.message.content
    check_calls(calls)
    assert [call.index for call in calls] == [0]
    assert reasons[-1] == "tool_calls"


def test_the_result_of_a_call_goes_back(client: openai.OpenAI, server: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns: Any = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    reply = client.chat.completions.create(messages=turns, tools=TOOLS, model="tiny", max_tokens=5)
    assert reply.choices[0].message.content
    tokens = server.call("POST", "/tokenize", {"messages": turns}).json["tokens"]
    assert b'<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in bytes(i for i in tokens if i < 256)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_reader_sees_the_same_however_the_text_comes(size: int) -> None:
    text = 'a <tool_c b <tool_call>{"name": "x"}</tool_call>  \n c<tool_call>{</tool_call> <tool_call>{"name": "y"}  '
    reader, out, calls = ToolReader(["x", "y"]), "", list[str]()
    for start in range(0, len(text), size):
        more, found = reader.push(text[start : start + size])
        out += more
        calls += [one.call.name for one in found]
    out += reader.flush()
    assert calls == ["x"]
    assert out == 'a <tool_c b   \n c<tool_call>{</tool_call> <tool_call>{"name": "y"}'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_echo_with_the_log_probabilities_of_the_prompt(client: openai.OpenAI, stream: bool, n: int) -> None:
    asked: Any = {"model": "tiny", "prompt": ["abcdab", "hg"], "max_tokens": 2, "temperature": 0, "n": n}
    answer: Any = client.completions.create(echo=True, logprobs=2, stream=stream, **asked)
    choices: dict[int, dict[str, Any]] = {}
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            kept = choices.setdefault(choice.index, {"text": "", "tokens": [], "logprobs": [], "top": [], "offset": []})
            kept["text"] += choice.text
            if choice.logprobs is not None:
                kept["tokens"] += choice.logprobs.tokens
                kept["logprobs"] += choice.logprobs.token_logprobs
                kept["top"] += choice.logprobs.top_logprobs
                kept["offset"] += choice.logprobs.text_offset
    for index, prompt in enumerate(prompt for prompt in (b"abcdab", b"hg") for _ in range(n)):
        kept = choices[index]
        assert kept["text"].startswith(prompt.decode())
        assert "".join(kept["tokens"]) == kept["text"]
        assert kept["offset"] == list(range(len(prompt) + 2))
        known = expected(prompt, 2)
        assert kept["logprobs"][0] is None
        assert kept["logprobs"][1 : len(prompt)] == [one.logprob for one in known]
        assert kept["top"][1] == {chr(token_id): value for token_id, value in known[0].top}
        assert max(kept["top"][-1].values()) == kept["logprobs"][-1]
