"""The multi-turn Alpaca format: see ``docs/prompt-format.md``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from draftsmith.errors import TemplateError
from draftsmith.text.formats import EncodedPrompt
from draftsmith.text.segments import check_roles, encode_segments
from draftsmith.types import Message

if TYPE_CHECKING:
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["AlpacaFormat"]

_HEADERS = {"system": "### Instruction:\n", "user": "### Input:\n", "assistant": "### Response:\n"}
_GAP = "\n\n"

# Says what AlpacaFormat does, for other programs; a test compares the ids of both. {bos} is filled in below.
_TEMPLATE = """\
{bos}
{%- set ns = namespace(expected='user') -%}
{%- for message in messages -%}
{%- set content = message['content'] | trim -%}
{%- if message['role'] == 'system' and loop.first -%}
{{- '### Instruction:\\n' + content -}}
{%- elif message['role'] != ns.expected -%}
{{- raise_exception('system may only come first, then user and assistant in turn') -}}
{%- elif message['role'] == 'user' -%}
{{- ('' if loop.first else '\\n\\n') + '### Input:\\n' + content -}}
{%- set ns.expected = 'assistant' -%}
{%- else -%}
{{- '\\n\\n### Response:\\n' + content + eos_token -}}
{%- set ns.expected = 'user' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '\\n\\n### Response:\\n' -}}
{%- endif -%}
"""


class AlpacaFormat:
    """Blocks headed ``### Instruction:``, ``### Input:`` and ``### Response:``, EOS after each reply.

    The contents of all messages are stripped of white space at both ends. Without a system message the text begins
    with ``### Input:``.
    """

    name = "alpaca"

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises TemplateError when the tokenizer has no EOS token to end replies with."""
        if not tokenizer.eos_ids:
            raise TemplateError("the tokenizer has no EOS token, with which the Alpaca format ends each reply")
        self._tokenizer = tokenizer

    @property
    def template(self) -> str:
        """The same format as a Jinja chat template."""
        return _TEMPLATE.replace("{bos}", "{{- bos_token -}}" if self._tokenizer.add_bos else "{#- no BOS -#}")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The headers that would begin another block, with the empty line before them where there is one."""
        return tuple(gap + header.rstrip() for header in _HEADERS.values() for gap in ("", "\n", _GAP))

    @property
    def knows_tools(self) -> bool:
        """It does not."""
        return False

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> EncodedPrompt:
        """See PromptFormat.encode. Needs an optional system message, then user and assistant in turn."""
        check_roles(messages, tools, knows_tools=False)
        self._check_order(messages, add_generation_prompt=add_generation_prompt)
        return encode_segments(self._tokenizer, self._segments(messages, add_generation_prompt=add_generation_prompt))

    def _segments(
        self, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> Iterator[tuple[str | int, bool]]:
        if self._tokenizer.add_bos and self._tokenizer.bos_id is not None:
            yield self._tokenizer.bos_id, False
        prompt = ""
        for index, message in enumerate(messages):
            prompt += (_GAP if index else "") + _HEADERS[message.role]
            if message.role != "assistant":
                prompt += message.content.strip()
                continue
            yield prompt, False
            yield message.content.strip(), True
            yield self._tokenizer.eos_ids[0], True
            prompt = ""
        if add_generation_prompt:
            prompt += _GAP + _HEADERS["assistant"]
        yield prompt, False

    def _check_order(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> None:
        expected = "user"
        for index, message in enumerate(messages):
            if message.role == "system" and index == 0:
                continue
            if message.role != expected:
                raise TemplateError(
                    f"message {index} is from {message.role}, but the Alpaca format needs one from {expected} there: "
                    f"a system message may come first, then user and assistant in turn"
                )
            expected = "assistant" if expected == "user" else "user"
        if add_generation_prompt and messages[-1].role != "user":
            raise TemplateError("a reply was asked for, but the last message is not from the user; add one that is")
