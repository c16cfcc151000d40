"""The OpenAPI document of the server: requests from the models that check them, answers as ``shapes`` makes them."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from draftsmith.server.schema import ChatRequest, CompletionRequest, DetokenizeRequest, RenderRequest, TokenizeRequest

__all__ = ["openapi_document"]

Json = dict[str, Any]

_REF = "#/components/schemas/"
_STRING: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}


def openapi_document(version: str, *, keys: bool) -> Json:
    """The document. ``keys``: whether an API key is asked for."""
    bodies = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest, RenderRequest)
    _, found = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF + "{model}")
    components: Json = {"schemas": {**{name: _nullable(one) for name, one in found["$defs"].items()}, **_answers()}}
    document: Json = {
        "openapi": "3.2.0",  # the first that can say what the events of a stream are
        "info": {
            "title": "draftsmith",
            "version": version,
            "description": "OpenAI's API with speculative decoding. Fields that are null count as absent; fields that "
            "are not listed are refused. A request may keep to this document and still be refused with 400: a prompt "
            "may be too long, an expression may be none, a token may not be the model's.",
        },
        "paths": _paths(),
        "components": components,
    }
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _paths() -> Json:
    name = {"name": "name", "in": "path", "required": True, "schema": {**_STRING, "minLength": 1}}
    open_to_all: Json = {"security": []}
    return {
        "/v1/chat/completions": {
            "post": _operation("Write a reply", "ChatCompletion", "ChatRequest", "ChatCompletionChunk")
        },
        "/v1/completions": {"post": _operation("Continue texts", "Completion", "CompletionRequest", "CompletionChunk")},
        "/v1/models": {"get": _operation("The model", "ModelList")},
        "/v1/models/{name}": {"get": {**_operation("The model", "Model"), "parameters": [name]}},
        "/tokenize": {"post": _operation("Text or messages to token ids", "Tokens", "TokenizeRequest")},
        "/detokenize": {"post": _operation("Token ids to text", "Text", "DetokenizeRequest")},
        "/tokenizer_info": {"get": _operation("What is known of the tokenizer", "TokenizerInfo")},
        "/render": {"post": _operation("Markdown to elements, for the chat page", "Rendered", "RenderRequest")},
        "/health": {"get": {**_operation("Alive", "Status"), **open_to_all}},
        "/ready": {"get": {**_operation("Takes requests", "Status", other={"503": _json("Status")}), **open_to_all}},
        "/metrics": {"get": _operation("Counters for Prometheus", {"text/plain": {"schema": _STRING}})},
        "/openapi.json": {"get": _operation("This document", "Document")},
        "/": {"get": {**_operation("The chat page", {"text/html": {"schema": _STRING}}), **open_to_all}},
    }


def _operation(
    summary: str, answer: str | Json, body: str | None = None, streamed: str | None = None, other: Json | None = None
) -> Json:
    content = {"application/json": {"schema": {"$ref": _REF + answer}}} if isinstance(answer, str) else answer
    if streamed is not None:
        content = {**content, "text/event-stream": {"itemSchema": _event(streamed)}}
    responses = {"200": {"description": summary, "content": content}, **(other or {})}
    operation: Json = {"summary": summary, "responses": {**responses, "default": _json("Error")}}
    if body is not None:
        schema = {"application/json": {"schema": {"$ref": _REF + body}}}
        operation["requestBody"] = {"required": True, "content": schema}
    return operation


def _event(chunk: str) -> Json:
    """One event of a stream."""
    content = {"anyOf": [{"$ref": _REF + chunk}, {"$ref": _REF + "Error"}]}
    told = f"JSON: {chunk}, or an Error that ends the stream. The last event is [DONE]."
    data = {**_STRING, "description": told, "contentMediaType": "application/json", "contentSchema": content}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _json(schema: str) -> Json:
    return {"description": schema, "content": {"application/json": {"schema": {"$ref": _REF + schema}}}}


def _nullable(schema: Json) -> Json:
    """A request's schema with null for every field that may be absent, as the server takes it."""
    fields = schema.get("properties")
    if fields is None:
        return schema
    required = schema.get("required", ())
    described = {name: one if name in required else _or_null(one) for name, one in fields.items()}
    return {**schema, "properties": described, "additionalProperties": {"type": "null"}}


def _or_null(schema: Json) -> Json:
    without = {key: value for key, value in schema.items() if key != "default"}
    return {"anyOf": [without, {"type": "null"}], **({"default": schema["default"]} if "default" in schema else {})}


def _object(required: Json, optional: Json | None = None) -> Json:
    """A closed object."""
    fields = {**required, **(optional or {})}
    return {"type": "object", "properties": fields, "required": [*required], "additionalProperties": False}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _maybe(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _answers() -> Json:
    model = _object(
        {
            "id": _STRING,
            "object": {"const": "model"},
            "created": _COUNT,
            "owned_by": _STRING,
            "max_model_len": _COUNT,
            "drafter": _maybe(_STRING),
            "safety": {"const": "none"},
        }
    )
    error = {"message": _STRING, "type": _STRING, "param": _maybe(_STRING), "code": _maybe(_STRING)}
    return {
        "Model": model,
        "ModelList": _object({"object": {"const": "list"}, "data": _list({"$ref": _REF + "Model"})}),
        "Tokens": _object({"count": _COUNT, "max_model_len": _COUNT, "tokens": _list(_COUNT)}),
        "Rendered": _object({"nodes": _list({"type": ["string", "object"]})}),
        "Text": _object({"prompt": _STRING}),
        "TokenizerInfo": _object(
            {
                "tokenizer_class": _STRING,
                "vocab_size": _COUNT,
                "model_max_length": _COUNT,
                "add_bos_token": {"type": "boolean"},
                **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token", "chat_template"), _maybe(_STRING)),
            }
        ),
        "Status": _object({"status": _STRING}),
        "Document": {"type": "object", "required": ["openapi", "paths"]},
        "Error": _object({"error": _object(error)}),
        "ChatCompletion": _whole("chat.completion", _chat_choice()),
        "ChatCompletionChunk": _chunk("chat.completion.chunk", _chat_delta()),
        "Completion": _whole("text_completion", _completion_choice()),
        "CompletionChunk": _chunk("text_completion", _completion_choice(ends=False)),
    }


def _whole(kind: str, choice: Json) -> Json:
    """An answer with its statistics."""
    required = {
        "id": _STRING,
        "object": {"const": kind},
        "created": _COUNT,
        "model": _STRING,
        "choices": _list(choice),
        "usage": _usage(),
        "metrics": _metrics(),
    }
    return _object(required, {"timings": _timings()})


def _chunk(kind: str, choice: Json) -> Json:
    """An event of a stream. ``usage`` is null before the last where it was asked for."""
    required = {
        "id": _STRING,
        "object": {"const": kind},
        "created": _COUNT,
        "model": _STRING,
        "choices": {**_list(choice), "maxItems": 1},
    }
    return _object(required, {"usage": _maybe(_usage()), "metrics": _metrics(), "timings": _timings()})


def _usage() -> Json:
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT)
    return _object({**counts, "prompt_tokens_details": _object({"cached_tokens": _COUNT})})


def _metrics() -> Json:
    """vLLM's statistics."""
    speculation = _object(
        {
            "drafter": _STRING,
            "mean_acceptance_length": _NUMBER,
            "draft_acceptance_rate": _NUMBER,
            "acceptance_histogram": _list(_COUNT),
            "num_spec_steps": _COUNT,
            "num_accepted_draft_tokens": _COUNT,
            "num_draft_tokens": _COUNT,
            "num_spec_tokens": _COUNT,
        }
    )
    return _object({"speculative_decoding": _maybe(speculation)})


def _timings() -> Json:
    """llama.cpp's, the time in the queue, and what drafting should have gained."""
    paces = {f"{what}_{part}": _NUMBER for what in ("prompt", "predicted") for part in _PACE}
    counts = dict.fromkeys(("cache_n", "prompt_n", "predicted_n"), _COUNT)
    required = {**counts, **paces, "queued_ms": _NUMBER, "expected_speedup": _maybe(_NUMBER)}
    return _object(required, {"draft_n": _COUNT, "draft_n_accepted": _COUNT})


_PACE = ("ms", "per_token_ms", "per_second")
_PIECES = _list(_object({"text": _STRING, "from_draft": {"type": "boolean"}}))


def _chat_delta() -> Json:
    call = _chat_call({"index": _COUNT})
    delta = _object({}, {"role": {"const": "assistant"}, "content": _STRING, "tool_calls": _list(call)})
    reason = {"enum": ["stop", "length", "tool_calls", None]}
    required = {"index": _COUNT, "delta": delta, "logprobs": _maybe(_chat_logprobs()), "finish_reason": reason}
    return _object(required, {"pieces": _PIECES})


def _chat_call(more: Json) -> Json:
    function = _object({"name": _STRING, "arguments": _STRING})
    return _object({**more, "id": _STRING, "type": {"const": "function"}, "function": function})


def _chat_logprobs() -> Json:
    token = {"token": _STRING, "logprob": _NUMBER, "bytes": _list({"type": "integer", "minimum": 0, "maximum": 255})}
    listed = _object({**token, "top_logprobs": _list(_object(token))})
    return _object({"content": _list(listed), "refusal": {"type": "null"}})


def _chat_choice() -> Json:
    message = _object(
        {"role": {"const": "assistant"}, "content": _maybe(_STRING), "refusal": {"type": "null"}},
        {"tool_calls": _list(_chat_call({}))},
    )
    reason = {"enum": ["stop", "length", "tool_calls"]}
    required = {"index": _COUNT, "message": message, "logprobs": _maybe(_chat_logprobs()), "finish_reason": reason}
    return _object(required, {"pieces": _PIECES})


def _completion_choice(*, ends: bool = True) -> Json:
    logprobs = _object(
        {
            "tokens": _list(_STRING),
            "token_logprobs": _list(_maybe(_NUMBER)),
            "top_logprobs": _list(_maybe({"type": "object", "additionalProperties": _NUMBER})),
            "text_offset": _list(_COUNT),
        }
    )
    reason = {"enum": ["stop", "length", *([] if ends else [None])]}
    required = {"index": _COUNT, "text": _STRING, "logprobs": _maybe(logprobs), "finish_reason": reason}
    return _object(required, {"pieces": _PIECES})
