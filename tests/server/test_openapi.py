"""The OpenAPI document tells the truth, and no body whatever gets more than a short, well-formed refusal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest
from tests.support.fakes import TOOL_TEMPLATE
from tests.support.schemas import violations
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

MESSAGES = [{"role": "user", "content": "abc"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ANSWERS: tuple[tuple[str, str, Any, str], ...] = (
    ("POST", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 30}, "ChatCompletion"),
    ("POST", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "n": 2, "draft": False}, "ChatCompletion"),
    (
        "POST",
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "return_pieces": True},
        "ChatCompletion",
    ),
    (
        "POST",
        "/v1/chat/completions",
        {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"},
        "ChatCompletion",
    ),
    ("POST", "/v1/completions", {"prompt": ["abc", "d"], "echo": True, "logprobs": 2}, "Completion"),
    ("POST", "/v1/completions", {"prompt": "abc", "return_pieces": True, "draft": False}, "Completion"),
    ("GET", "/v1/models", None, "ModelList"),
    ("GET", "/v1/models/tiny", None, "Model"),
    ("POST", "/tokenize", {"prompt": "abc"}, "Tokens"),
    ("POST", "/detokenize", {"tokens": [97]}, "Text"),
    ("POST", "/render", {"text": "# a\n```python\nx = 1\n```"}, "Rendered"),
    ("GET", "/tokenizer_info", None, "TokenizerInfo"),
    ("GET", "/health", None, "Status"),
    ("GET", "/ready", None, "Status"),
    ("GET", "/nowhere", None, "Error"),
    ("POST", "/v1/completions", {"prompt": ""}, "Error"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SharedFakeModel(max_context=1024), template=TOOL_TEMPLATE) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    return server.call("GET", "/openapi.json").json


def inlined(schema: Any, schemas: Any) -> Any:
    """``schema`` with what it refers to in place of the reference."""
    if isinstance(schema, list):
        return [inlined(one, schemas) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    return {key: inlined(value, schemas) for key, value in schema.items()}


@pytest.mark.parametrize(("method", "path", "body", "kind"), ANSWERS)
def test_answers_are_as_they_are_described(
    server: Running, document: Any, method: str, path: str, body: Any, kind: str
) -> None:
    reply = server.call(method, path, body)
    assert (reply.status == 200) == (kind != "Error")
    schemas = document["components"]["schemas"]
    assert list(violations(reply.json, inlined(schemas[kind], schemas), "$")) == []


def test_every_path_is_there_and_every_field_is_described(server: Running, document: Any) -> None:
    for path, operations in document["paths"].items():
        for method in operations:
            status = server.call(
                method.upper(), path.replace("{name}", "tiny"), {} if method == "post" else None
            ).status
            assert status in (200, 400), path
    for kind in (ChatRequest, CompletionRequest):
        described = document["components"]["schemas"][kind.__name__]
        assert described["properties"].keys() == kind.model_fields.keys()
        assert described["additionalProperties"] == {"type": "null"}
        assert described["properties"]["logit_bias"]["anyOf"][0]["additionalProperties"] is False
        for name, field in described["properties"].items():
            assert name in described["required"] or {"type": "null"} in field["anyOf"]


def test_keys_are_described_where_they_are_asked_for() -> None:
    key = "a-key-of-some-length"
    with running(SharedFakeModel(), api_keys=(key,)) as server:
        assert server.call("GET", "/openapi.json").status == 401
        document = server.call("GET", "/openapi.json", authorization=f"Bearer {key}").json
    assert document["security"] == [{"key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []


NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from(NAMES), JSON_VALUES, max_size=4),
    valid=st.booleans(),
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
)
def test_any_body_is_answered_or_refused(server: Running, fields: Any, valid: bool, path: str) -> None:
    base = {"messages": MESSAGES} if "chat" in path else {"prompt": "abc"}
    body = {"max_tokens": 2, **(base if valid else {}), **fields}
    reply = server.call("POST", path, json.dumps(body).encode("utf-8", "surrogatepass"))
    assert reply.status in (200, 400, 404), reply.body
    if reply.status != 200:
        assert reply.json["error"].keys() == {"message", "type", "param", "code"}
        assert len(reply.body) < 2000


STREAMS: tuple[tuple[str, Any, str], ...] = (
    ("/v1/chat/completions", {"messages": MESSAGES, "return_pieces": True}, "ChatCompletionChunk"),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1, "n": 2},
        "ChatCompletionChunk",
    ),
    ("/v1/chat/completions", {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "required"}, "ChatCompletionChunk"),
    ("/v1/completions", {"prompt": ["abc", "d"], "echo": True, "logprobs": 2}, "CompletionChunk"),
    (
        "/v1/completions",
        {"prompt": "abc", "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        "CompletionChunk",
    ),
)


@pytest.mark.parametrize(("path", "body", "kind"), STREAMS)
def test_chunks_are_as_they_are_described(server: Running, document: Any, path: str, body: Any, kind: str) -> None:
    described = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]
    assert described["properties"]["data"]["contentSchema"]["anyOf"][0]["$ref"].endswith(f"/{kind}")
    schemas = document["components"]["schemas"]
    whole = inlined(schemas[kind], schemas)
    reply = server.call("POST", path, {**body, "stream": True, "max_tokens": 40})
    *chunks, end = [line.removeprefix("data: ") for line in reply.body.decode().split("\n\n") if line]
    assert end == "[DONE]"
    assert len(chunks) > 1
    for chunk in chunks:
        assert list(violations(json.loads(chunk), whole, "$")) == []


HUGE: tuple[tuple[type[Any], Any], ...] = (
    (CompletionRequest, {"prompt": [""] + [[]] * 300_000}),
    (CompletionRequest, {"prompt": "a", **{f"x{i}": 1 for i in range(100_000)}}),
    (CompletionRequest, {"prompt": "a", "logit_bias": {f"{i}x": 1 for i in range(100_000)}}),
    (CompletionRequest, {"prompt": "a", "metadata": {f"{i}": 1 for i in range(100_000)}}),
    (CompletionRequest, {"prompt": "a", "stop": [""] * 300_000}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 1000}] * 300}),
    (ChatRequest, {"messages": [{"role": "user", "content": "a", **{f"x{i}": 1 for i in range(100_000)}}]}),
    (ChatRequest, {"messages": MESSAGES, "tools": [{}] * 300_000}),
    (DetokenizeRequest, {"tokens": [""] * 300_000}),
)


@pytest.mark.parametrize(("kind", "body"), HUGE)
def test_a_body_full_of_mistakes_is_not_read_to_its_end(kind: type[Any], body: Any) -> None:
    """Each complaint takes time and memory, and the event loop waits meanwhile."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 20
