"""The parts of requests: messages, forms of replies, tools. Strict like the requests themselves."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from draftsmith.engine.grammar import JSON_STYLE
from draftsmith.types import Grammar, Message, ToolCall

__all__ = [
    "MAX_MESSAGES",
    "MAX_TOOLS",
    "WHOLE",
    "ChatMessage",
    "Off",
    "ResponseFormat",
    "Strict",
    "Tool",
    "ToolChoice",
    "calls_grammar",
    "shorter_than",
    "wrong_field",
]

MAX_MESSAGES = 1024
MAX_TOOLS = 128


class Strict(BaseModel):
    """No unknown field, no conversion of one type into another, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """The first unknown field ends the checking: there may be a hundred thousand of them."""
        if not isinstance(value, dict):
            return value
        given = {name: one for name, one in value.items() if one is not None}
        known = {field.alias or name for name, field in cls.model_fields.items()}
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise wrong_field(unknown, "is not supported; leave it out")
        return given


def shorter_than(limit: int) -> BeforeValidator:
    """For dicts: their size is looked at before what is in them, so that checking takes no longer than that allows."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > limit:
            raise PydanticCustomError("too_long", "there are more than {limit} entries", {"limit": limit})
        return value

    return BeforeValidator(check)


def wrong_field(field: str, problem: str) -> PydanticCustomError:
    """For validators that see several fields: the one that is wrong, as seen from where the validator is."""
    return PydanticCustomError("wrong_field", "{field} {problem}", {"field": field, "problem": problem})


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_done(value: bool) -> bool:
    if value:
        raise PydanticCustomError("not_done", "it is not supported, so it can only be false")
    return value


Off = Annotated[bool, AfterValidator(_not_done), WithJsonSchema({"const": False})]
"""For what others can turn on."""

WHOLE = BeforeValidator(_whole)
"""For integers, after their other annotations: JSON has one kind of number, and 1.0 is an integer there."""


class TextPart(Strict):
    """A part of a message's content; text is the only kind, nothing is ever fetched."""

    type: Literal["text"]
    text: str


_Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class CalledFunction(Strict):
    """A function's name and its arguments, a JSON object as text."""

    name: _Name
    arguments: str


class Call(Strict):
    """A tool call in an assistant's message, as an answer of ours has it."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


_NONE: dict[str, Any] = {"type": "null"}
_SOME_CONTENT: dict[str, Any] = {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}}
_SOME_CALLS: dict[str, Any] = {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array"}}}
_WHO_MAY_HAVE_WHAT: list[Any] = [
    {
        "properties": {
            "role": {"enum": ["system", "developer", "user"]},
            "content": _SOME_CONTENT["properties"]["content"],
            "tool_calls": _NONE,
            "tool_call_id": _NONE,
        },
        "required": ["content"],
    },
    {
        "properties": {
            "role": {"const": "tool"},
            "content": _SOME_CONTENT["properties"]["content"],
            "tool_calls": _NONE,
        },
        "required": ["content"],
    },
    {
        "properties": {"role": {"const": "assistant"}, "tool_call_id": _NONE},
        "anyOf": [_SOME_CONTENT, _SOME_CALLS],
    },
]


class ChatMessage(Strict):
    """One message. ``developer`` is another word for ``system``; ``name`` is not shown to the model.

    An assistant's message with ``tool_calls`` may lack ``content``; a message of role ``tool`` answers one of them.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": _WHO_MAY_HAVE_WHAT})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[Call], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    @model_validator(mode="after")
    def _who_may_have_what(self) -> ChatMessage:
        if self.content is None and self.tool_calls is None:
            raise wrong_field("content", "is missing")
        if self.tool_calls is not None and self.role != "assistant":
            raise wrong_field("tool_calls", "belong to the assistant's messages")
        if self.tool_call_id is not None and self.role != "tool":
            raise wrong_field("tool_call_id", "belongs to messages of role tool")
        return self

    @property
    def message(self) -> Message:
        """As the prompt format wants it."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content or []]
        calls = tuple(ToolCall(one.function.name, one.function.arguments) for one in self.tool_calls or [])
        return Message("system" if self.role == "developer" else self.role, "".join(parts), calls)


class JsonSchema(Strict):
    """A schema with a name. Replies always keep to it, so ``strict`` makes no difference."""

    name: _Name
    description: str | None = None
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema")] = True
    strict: bool | None = None


class ResponseFormat(Strict):
    """Free text, any JSON object, or JSON by a schema."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}, "json_schema": _NONE}},
                {
                    "properties": {"type": {"const": "json_schema"}, "json_schema": {"type": "object"}},
                    "required": ["json_schema"],
                },
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise wrong_field("json_schema", "goes with the type json_schema, and only with it")
        return self

    @property
    def form(self) -> Grammar | None:
        """None for free text."""
        if self.type == "text":
            return None
        schema: Any = {"type": "object"} if self.json_schema is None else self.json_schema.schema_
        return Grammar("json_schema", json.dumps(schema))


class Function(Strict):
    """A function that the model may call. Calls always keep to ``parameters`` where one is required."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """Functions are the only kind."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Strict):
    """The name of one of the tools."""

    name: _Name


class ToolChoice(Strict):
    """This function has to be called."""

    type: Literal["function"]
    function: ChosenFunction


def calls_grammar(tools: list[Tool], *, several: bool) -> Grammar:
    """One call of any of ``tools``, or several, in the form that ``server.tools`` reads."""
    lines = ["start: call" + (r' ("\n" call)*' if several else "")]
    lines.append(
        r'call: "<tool_call>\n" (' + " | ".join(f"call_{i}" for i in range(len(tools))) + r') "\n</tool_call>"'
    )
    for i, tool in enumerate(tools):
        fields = {"name": {"const": tool.function.name}, "arguments": tool.function.parameters or {"type": "object"}}
        schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
        lines.append(f"call_{i}: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE})}")
    return Grammar("grammar", "\n".join(lines))
