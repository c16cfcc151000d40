"""What a row means: a conversation, a preference between two replies, or plain text; whatever way it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from draftsmith.train.schema import DataFormat
from draftsmith.types import Message

__all__ = ["BadRow", "Conversation", "Preference", "Text", "parse_prompt", "parse_prompts_between", "parse_row"]

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
}
_QUESTIONS, _ANSWERS = ("prompt", "question"), ("completion", "response", "answer")
_OUTPUTS = ("output", "response", "completion")


class BadRow(ValueError):
    """Why a row cannot be used; becomes a RowProblem."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that end with the assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to the same messages; ``chosen`` is the better one."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Text:
    """A document without turns."""

    text: str


def parse_row(values: Mapping[str, Any], kind: DataFormat) -> Conversation | Preference | Text:
    """Raises BadRow with the reason."""
    found = _recognise(values) if kind == "auto" else kind
    if found == "preference":
        return _preference(values)
    if found == "text":
        return Text(_text(values, "text"))
    if found == "alpaca":
        messages = (*_alpaca_prompt(values), Message("assistant", _text(values, *_OUTPUTS)))
    elif found == "pairs":
        messages = (*_system(values), Message("user", _text(values, *_QUESTIONS)))
        messages += (Message("assistant", _text(values, *_ANSWERS)),)
    else:
        messages = _messages(values, "messages" if found == "messages" else "conversations")
    return Conversation(_ending_with(messages, "assistant"))


def parse_prompt(values: Mapping[str, Any]) -> tuple[Message, ...]:
    """The user's turns of a row that asks for a reply: replies that it holds are dropped after the last user turn, or
    between turns (they will be written anew). Raises BadRow."""
    if isinstance(values.get("turns"), list):
        turns = tuple(Message("user", turn) for turn in values["turns"] if isinstance(turn, str) and turn.strip())
        if not turns or len(turns) != len(values["turns"]):
            raise BadRow("turns must be a list of texts, none of them empty")
        return (*_system(values), *turns)
    kind = _recognise(values)
    if kind in ("messages", "sharegpt"):
        every = _messages(values, "messages" if kind == "messages" else "conversations")
        turns = tuple(message for message in every if message.role != "assistant")
        return _ending_with(turns, "user")
    if kind == "alpaca":
        return _alpaca_prompt(values)
    if kind in ("pairs", "preference") and isinstance(values.get("prompt", values.get("question")), str):
        return (*_system(values), Message("user", _text(values, *_QUESTIONS)))
    raise BadRow("has no prompt; expected turns, prompt, question, instruction, messages or conversations")


def parse_prompts_between(values: Mapping[str, Any]) -> list[tuple[Message, ...]]:
    """Every user turn of a row with what stands before it, the row's replies included. Raises BadRow."""
    asked = parse_prompt(values)
    if isinstance(values.get("turns"), list):
        if sum(message.role == "user" for message in asked) > 1:
            raise BadRow('has turns without the replies between them; expected messages, or turns = "written"')
        return [asked]
    if _recognise(values) not in ("messages", "sharegpt"):
        return [asked]
    every = _messages(values, "messages" if "messages" in values else "conversations")
    for place, message in enumerate(dropwhile(lambda message: message.role == "system", every)):
        expected = ("user", "assistant")[place % 2]
        if message.role != expected:
            raise BadRow(f"has a message from the {message.role} where one from the {expected} was expected")
    return [every[: end + 1] for end, message in enumerate(every) if message.role == "user"]


def _recognise(values: Mapping[str, Any]) -> str:
    if "chosen" in values and "rejected" in values:
        return "preference"
    for key, kind in (("messages", "messages"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
        if key in values:
            return kind
    if any(key in values for key in _QUESTIONS):
        return "pairs"
    if "text" in values:
        return "text"
    keys = ", ".join(sorted(map(str, values))[:8]) or "none"
    raise BadRow(
        f"has the keys {keys}; expected messages, conversations, instruction, prompt, chosen and rejected, or text"
    )


def _preference(values: Mapping[str, Any]) -> Preference:
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1:  # two whole conversations
        first = _ending_with(_messages(values, "chosen"), "assistant")
        second = _ending_with(_messages(values, "rejected"), "assistant")
        if first[:-1] != second[:-1]:
            raise BadRow("chosen and rejected differ before the last reply; expected the same messages")
        return _different(first[:-1], first[-1].content, second[-1].content)
    if "conversations" in values or "messages" in values:
        messages = _messages(values, "conversations" if "conversations" in values else "messages")
    elif "instruction" in values:
        messages = _alpaca_prompt(values)
    elif isinstance(values.get("prompt"), list):
        messages = _messages(values, "prompt")
    else:
        messages = (*_system(values), Message("user", _text(values, *_QUESTIONS)))
    return _different(_ending_with(messages, "user"), _reply(values, "chosen"), _reply(values, "rejected"))


def _different(messages: tuple[Message, ...], chosen: str, rejected: str) -> Preference:
    if chosen.strip() == rejected.strip():
        raise BadRow("chosen and rejected are the same reply; there is nothing to prefer")
    return Preference(messages, chosen, rejected)


def _reply(values: Mapping[str, Any], key: str) -> str:
    """A reply as a text, or as one message."""
    value = values.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        return _ending_with((_message(value, key),), "assistant")[0].content
    return _text(values, key)


def _alpaca_prompt(values: Mapping[str, Any]) -> tuple[Message, ...]:
    more = values.get("input") or ""
    if not isinstance(more, str):
        raise BadRow(f"input is a {type(more).__name__}; expected a text")
    instruction = _text(values, "instruction")
    return (*_system(values), Message("user", f"{instruction}\n\n{more}" if more.strip() else instruction))


def _system(values: Mapping[str, Any]) -> tuple[Message, ...]:
    return (Message("system", _text(values, "system")),) if values.get("system") else ()


def _messages(values: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    entries = values.get(key)
    if not isinstance(entries, list) or not entries:
        raise BadRow(f"{key} is {'empty' if entries == [] else 'no list'}; expected a list of messages")
    return _system(values) + tuple(_message(entry, f"{key}[{i}]") for i, entry in enumerate(entries))


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, dict):
        raise BadRow(f"{where} is a {type(entry).__name__}; expected an object with a role and a content")
    role = entry.get("role", entry.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRow(f"{where} has the role {role!r:.40}; expected one of {', '.join(_ROLES)}")
    content = entry.get("content", entry.get("value"))
    if not isinstance(content, str):
        raise BadRow(f"{where} has no text; expected content (or value) as a string")
    if not content.strip():
        raise BadRow(f"{where} is empty")
    return Message(_ROLES[role], content)


def _ending_with(messages: tuple[Message, ...], role: str) -> tuple[Message, ...]:
    if not messages or messages[-1].role != role:
        last = messages[-1].role if messages else "nobody"
        raise BadRow(f"the last message is from {last}; expected it from the {role}")
    return messages


def _text(values: Mapping[str, Any], *keys: str) -> str:
    """The first of the keys that is there."""
    value = next((values[key] for key in keys if values.get(key) is not None), None)
    if not isinstance(value, str):
        what = "missing" if value is None else f"a {type(value).__name__}"
        raise BadRow(f"{' or '.join(keys)} is {what}; expected a text")
    if not value.strip():
        raise BadRow(f"{' or '.join(keys)} is empty")
    return value
