"""What would be trained on, for people to look at: the text of a few documents, the part without loss told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from draftsmith.text import Tokenizer
from draftsmith.train.encode import Document
from draftsmith.train.files import RowProblem
from draftsmith.train.prepare import DataPlan, documents_of

__all__ = ["AuditSummary", "Span", "spans", "summarise"]


@dataclass(frozen=True, slots=True)
class Span:
    """A run of text. ``learnt``: there is loss on its tokens."""

    text: str
    learnt: bool


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """Counts over the rows looked at, and the first documents."""

    rows: int
    documents: int
    tokens: int
    learnt_tokens: int
    too_long: int
    longest: int
    problems: tuple[RowProblem, ...]
    shown: tuple[tuple[Document, ...], ...]


def summarise(plan: DataPlan, num_shown: int) -> AuditSummary:
    """Read every row of the plan's sources."""
    rows = count = tokens = learnt = too_long = longest = 0
    problems: list[RowProblem] = []
    shown: list[tuple[Document, ...]] = []
    for found in documents_of(plan):
        rows += 1
        if isinstance(found, RowProblem):
            problems.append(found)
            continue
        too_long += not found
        for documents in found:
            count += len(documents)
            tokens += sum(document.ids.size for document in documents)
            learnt += sum(int(document.mask.sum()) for document in documents)
            longest = max(longest, *(document.ids.size for document in documents))
        shown += islice(found, max(0, num_shown - len(shown)))
    return AuditSummary(rows, count, tokens, learnt, too_long, longest, tuple(problems), tuple(shown))


def spans(document: Document, tokenizer: Tokenizer) -> Iterator[Span]:
    """The document's text in runs with and without loss, special tokens written out.

    A character whose bytes lie on both sides of a border shows as U+FFFD on each.
    """
    borders = np.flatnonzero(np.diff(document.mask)) + 1
    for ids, mask in zip(np.split(document.ids, borders), np.split(document.mask, borders), strict=True):
        data = b"".join(tokenizer.token_bytes(int(token_id)) for token_id in ids)
        yield Span(data.decode("utf-8", "replace"), bool(mask[0]))
