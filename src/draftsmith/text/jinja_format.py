"""Chat templates: a prompt format written in Jinja, as tokenizers carry it.

Two things are made sure of. First, special tokens come from the template alone: strings in messages that look like
special tokens, or could become part of one, are replaced by private characters before the template sees them and put
back when the text has been cut at its special tokens. Second, the loss mask follows from the template's structure: the
prompt before a reply, rendered by itself, must be how the whole conversation begins; what follows it is the reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from draftsmith.errors import TemplateError
from draftsmith.text.formats import EncodedPrompt
from draftsmith.text.segments import check_roles, encode_segments, uses_tools
from draftsmith.types import Message, ToolCall

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["JinjaFormat"]

_PROBE = "a_tool_to_be_seen"
_PRIVATE = range(0x100000, 0x10FFFE)  # supplementary private use area B


class JinjaFormat:
    """A chat template. ``options`` are further variables that the template sees (such as ``enable_thinking``).

    Some templates rewrite earlier turns when later ones follow (they drop what a model thought). These have no loss
    mask: encoding such a conversation for training raises TemplateError, and a generation prompt has an empty mask.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str, *, name: str = "chat", options: Mapping[str, Any] | None = None
    ) -> None:
        """Raises TemplateError when the template cannot be parsed."""
        from draftsmith.text.sandbox import compile_template

        self._tokenizer = tokenizer
        self._template = template
        self._name = name
        self._options = dict(options or {})
        self._render: Callable[[Mapping[str, Any]], str] = compile_template(template)

    @property
    def name(self) -> str:
        """``chat``, or the name of the template's file."""
        return self._name

    @property
    def template(self) -> str:
        """The template's source."""
        return self._template

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Empty: such formats end replies with EOS tokens."""
        return ()

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template writes down the tools that it is given."""
        tool = {"type": "function", "function": {"name": _PROBE, "description": "x", "parameters": {"type": "object"}}}
        try:
            text = self._rendered([{"role": "user", "content": "x"}], add_generation_prompt=True, tools=[tool])
        except TemplateError:
            return False
        return _PROBE in text

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> EncodedPrompt:
        """See PromptFormat.encode."""
        check_roles(messages, tools, knows_tools=uses_tools(messages, tools) and self.knows_tools)
        guard = _Guard(self._edges, [json.dumps(tools, ensure_ascii=False), *_texts(messages)])
        safe = [_for_template(message, guard) for message in messages]
        shown = guard.hide_all(list(tools)) or None
        full = self._rendered(safe, add_generation_prompt=add_generation_prompt, tools=shown)
        try:
            spans = list(self._reply_spans(safe, full, shown))
        except TemplateError:
            if not add_generation_prompt:
                raise
            encoded = encode_segments(self._tokenizer, self._segments(full, False, guard))
            return EncodedPrompt(encoded.token_ids, (), encoded.text)
        segments: list[tuple[str | int, bool]] = []
        position = 0
        for start, end in spans:
            segments += self._segments(full[position:start], False, guard)
            segments += self._segments(full[start:end], True, guard)
            position = end
        segments += self._segments(full[position:], False, guard)
        return encode_segments(self._tokenizer, segments)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool, tools: Any) -> str:
        tokenizer = self._tokenizer
        ids = {"bos_token": tokenizer.bos_id, "pad_token": tokenizer.pad_id, "unk_token": tokenizer.unk_id}
        ids["eos_token"] = tokenizer.eos_ids[0] if tokenizer.eos_ids else None
        return self._render(
            {
                "tools": tools,
                "documents": None,
                **{name: tokenizer.text_of(token_id) for name, token_id in ids.items() if token_id is not None},
                **self._options,
                "messages": list(messages),
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _reply_spans(self, messages: Sequence[Mapping[str, Any]], full: str, tools: Any) -> Iterator[tuple[int, int]]:
        """Where each reply with its EOS begins and ends in ``full``. Raises TemplateError when that is not certain."""
        last_end = 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._rendered(messages[:index], add_generation_prompt=True, tools=tools)
            through = self._rendered(messages[: index + 1], add_generation_prompt=False, tools=tools)
            if not (full.startswith(through) and through.startswith(before) and len(before) >= last_end):
                raise TemplateError(
                    f"the chat template {self._name} changes the text before reply {index} when the reply follows, so "
                    f"there is no telling which tokens the model would write; use another template for training"
                )
            last_end = len(before) + self._reply_length(through[len(before) :])
            yield len(before), last_end

    def _reply_length(self, reply: str) -> int:
        """Length of a reply up to and with its first EOS; all of it when the template writes none."""
        length = 0
        for part in self._tokenizer.split_special(reply):
            length += len(part) if isinstance(part, str) else len(self._tokenizer.text_of(part))
            if isinstance(part, int) and part in self._tokenizer.eos_ids:
                return length
        return len(reply)

    def _segments(self, text: str, is_reply: bool, guard: _Guard) -> Iterator[tuple[str | int, bool]]:
        for part in self._tokenizer.split_special(text):
            yield (guard.restore(part) if isinstance(part, str) else part), is_reply

    @cached_property
    def _edges(self) -> _Edges:
        return _Edges(self._tokenizer.special_texts)


def _for_template(message: Message, guard: _Guard) -> dict[str, Any]:
    """A message as templates expect it; arguments of tool calls are values there, not text."""
    safe: dict[str, Any] = {"role": message.role, "content": guard.hide(message.content)}
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": _arguments(call)} for call in message.tool_calls]
        safe["tool_calls"] = [{"type": "function", "function": guard.hide_all(call)} for call in calls]
    return safe


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        yield message.content
        for call in message.tool_calls:
            yield call.name + call.arguments + json.dumps(_arguments(call), ensure_ascii=False)


def _arguments(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments


class _Edges:
    """The special strings, and all ways in which a text can begin with the end of one, end with its beginning, or be a
    part of it."""

    def __init__(self, specials: Iterable[str]) -> None:
        ordered = sorted(specials, key=len, reverse=True)
        self.whole = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        self.tails = tuple({text[cut:] for text in ordered for cut in range(1, len(text))})
        self.heads = tuple({text[:cut] for text in ordered for cut in range(1, len(text))})
        self._lines = "\n".join(ordered)

    def within(self, text: str) -> bool:
        """Whether ``text`` is a part of a special string."""
        return bool(text) and "\n" not in text and text in self._lines


class _Guard:
    """Hides from the template's text what must not become a special token, and puts it back."""

    def __init__(self, edges: _Edges, texts: Sequence[str]) -> None:
        """``texts``: everything that may hold a string to hide."""
        used = set().union(*texts)
        self._free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        self._edges = edges
        self._hidden: dict[str, str] = {}

    def hide(self, content: str) -> str:
        """``content`` with private characters in place of special strings, and of what may join with the template."""
        if self._edges.whole is not None:
            content = self._edges.whole.sub(lambda match: self._stand_in(match.group()), content)
        # Templates often strip what they are given, so both the stripped and the whole text have edges.
        core = content.strip()
        start = content.find(core)
        safe = self._hide_edges(core)
        return self._hide_edges(content[:start] + safe + content[start + len(core) :])

    def hide_all(self, value: Any) -> Any:
        """``hide`` for every string of a JSON value, names of fields included."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            names = {name: name if name.isidentifier() else self.hide(name) for name in map(str, value)}
            return {names[str(name)]: self.hide_all(one) for name, one in value.items()}
        return [self.hide_all(one) for one in value] if isinstance(value, list | tuple) else value

    def restore(self, text: str) -> str:
        """``text`` with the hidden strings in their places."""
        for hidden, stand_in in self._hidden.items():
            text = text.replace(stand_in, hidden)
        return text

    def _hide_edges(self, text: str) -> str:
        if text.startswith(self._edges.tails) or self._edges.within(text):
            text = self._stand_in(text[0]) + text[1:]
        if text.endswith(self._edges.heads):
            text = text[:-1] + self._stand_in(text[-1])
        return text

    def _stand_in(self, hidden: str) -> str:
        if hidden not in self._hidden:
            self._hidden[hidden] = next(self._free)
        return self._hidden[hidden]
