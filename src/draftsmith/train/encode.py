"""From parsed rows to documents: token ids with a loss mask that comes from the prompt format itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from draftsmith.errors import TemplateError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.train.rows import BadRow, Conversation, Preference, Text
from draftsmith.types import Message

__all__ = ["Document", "TooLong", "encode", "fit"]

TooLongChoice = Literal["stop", "skip", "cut"]


class TooLong(BadRow):
    """The document is longer than the stage's max_length."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """``ids`` uint32 [n]; ``mask`` bool [n], True for the tokens to learn (never the first: nothing predicts it).

    ``top_ids`` uint32 [m, k] and ``top_logprobs`` float16 [m, k]: for each of the m learnt tokens the likeliest of the
    target, best first; None where they were not stored.
    """

    ids: npt.NDArray[np.uint32]
    mask: npt.NDArray[np.bool_]
    top_ids: npt.NDArray[np.uint32] | None = None
    top_logprobs: npt.NDArray[np.float16] | None = None


def encode(
    row: Conversation | Preference | Text, tokenizer: Tokenizer, prompt_format: PromptFormat
) -> tuple[Document, ...]:
    """One document; two for a preference, chosen first, which learn the last reply only.

    Raises BadRow when the format cannot say the messages or nothing would be learnt.
    """
    if isinstance(row, Text):
        ids = tokenizer.encode(row.text) + list(tokenizer.eos_ids[:1])
        return (_document(ids, [False] + [True] * (len(ids) - 1)),)
    if isinstance(row, Conversation):
        return (_conversation(row.messages, prompt_format),)
    pair = []
    for reply in (row.chosen, row.rejected):
        document = _conversation((*row.messages, Message("assistant", reply)), prompt_format)
        pair.append(Document(document.ids, _last_run(document.mask)))
    return tuple(pair)


def fit(documents: tuple[Document, ...], max_length: int, choice: TooLongChoice) -> list[tuple[Document, ...]]:
    """The documents as they may be trained on: cut into pieces if that was chosen. Raises TooLong."""
    longest = max(document.ids.size for document in documents)
    if longest <= max_length:
        return [documents]
    if choice != "cut" or len(documents) > 1 or documents[0].top_ids is not None:
        raise TooLong(f"has {longest} tokens, but max_length is {max_length}")
    [document] = documents
    whole_text = bool(document.mask[1:].all())
    starts = range(0, document.ids.size if whole_text else 1, max_length)
    pieces: list[tuple[Document, ...]] = []
    for start in starts:
        mask = document.mask[start : start + max_length].copy()
        mask[0] = False
        if mask.any():
            pieces.append((Document(document.ids[start : start + max_length], mask),))
    if not pieces:
        raise TooLong(f"has {longest} tokens, and the first {max_length} hold nothing to learn")
    return pieces


def _conversation(messages: Sequence[Message], prompt_format: PromptFormat) -> Document:
    try:
        prompt = prompt_format.encode(messages, add_generation_prompt=False)
    except TemplateError as error:
        raise BadRow(str(error)) from None
    return _document(list(prompt.token_ids), list(prompt.loss_mask))


def _document(ids: list[int], mask: list[bool]) -> Document:
    learnt = np.array(mask, np.bool_)
    if learnt.size != len(ids) or not learnt[1:].any():
        raise BadRow("has no token to learn")
    learnt[0] = False
    return Document(np.array(ids, np.uint32), learnt)


def _last_run(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Only the last unbroken run of True."""
    end = int(np.flatnonzero(mask)[-1]) + 1
    gaps = np.flatnonzero(~mask[:end])
    kept = np.zeros_like(mask)
    kept[(int(gaps[-1]) + 1 if gaps.size else 0) : end] = True
    return kept
