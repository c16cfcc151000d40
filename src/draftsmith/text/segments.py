"""From segments of a conversation to ids, loss mask and text: the last step of every prompt format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from draftsmith.errors import TemplateError
from draftsmith.text.formats import EncodedPrompt
from draftsmith.types import Message

if TYPE_CHECKING:
    from draftsmith.text.splitting import After
    from draftsmith.text.tokenizer import Tokenizer

__all__ = ["check_roles", "encode_segments", "uses_tools"]

_ROLES = ("system", "user", "assistant")


def encode_segments(tokenizer: Tokenizer, segments: Iterable[tuple[str | int, bool]]) -> EncodedPrompt:
    """``segments``: text in which nothing is special, or the id of a token; and whether it belongs to a reply.

    Each text is encoded on its own, as it is in generation: the prompt's ids are there before the reply's first.
    """
    ids: list[int] = []
    mask: list[bool] = []
    text: list[str] = []
    after: After = "start"
    for segment, is_reply in segments:
        if isinstance(segment, int):
            ids.append(segment)
            text.append(tokenizer.text_of(segment))
            after = "special"
        elif segment:
            ids += tokenizer.encode_piece(segment, after=after)
            text.append(segment)
            after = "text"
        mask += [is_reply] * (len(ids) - len(mask))
    return EncodedPrompt(tuple(ids), tuple(mask), "".join(text))


def uses_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation can only be written by a format that knows tools."""
    return bool(tools) or any(message.role == "tool" or message.tool_calls for message in messages)


def check_roles(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, knows_tools: bool) -> None:
    """Raises TemplateError when there are no messages, or one has a role or tools that the format does not know."""
    if not messages:
        raise TemplateError("there are no messages; give at least one from the user")
    if uses_tools(messages, tools) and not knows_tools:
        raise TemplateError("this model's prompt format knows no tools; leave them out, or serve a model that does")
    roles = (*_ROLES, "tool") if knows_tools else _ROLES
    for message in messages:
        if message.role not in roles:
            raise TemplateError(f"a message has the role {message.role!r}; expected one of {', '.join(roles)}")
