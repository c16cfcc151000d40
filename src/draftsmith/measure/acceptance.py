"""Acceptance against temperature and against the length of the context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from draftsmith.engine import LLM
from draftsmith.errors import PromptTooLong
from draftsmith.measure.conversation import Report, forget_caches, tell_nobody
from draftsmith.measure.prompts import PromptItem
from draftsmith.types import Completion, Message, SamplingParams

__all__ = ["AcceptanceRow", "added_up", "measure_acceptance"]

CONTEXT_EDGES = (0, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_COUNTS = ("replies", "num_drafts", "num_draft_tokens", "num_accepted_tokens")


@dataclass(frozen=True, slots=True)
class AcceptanceRow:
    """Counts over replies at ``temperature`` to prompts of ``context`` tokens or more, up to the next row's."""

    temperature: float
    context: int
    replies: int
    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int


def measure_acceptance(
    llm: LLM,
    items: Sequence[PromptItem],
    temperatures: Sequence[float],
    sampling: SamplingParams,
    report: Report = tell_nobody,
) -> tuple[AcceptanceRow, ...]:
    """Answer every prompt with ``llm`` at every temperature; prompts that do not fit are left out."""
    rows: dict[tuple[float, int], AcceptanceRow] = {}
    for round_, temperature in enumerate(temperatures):
        params = replace(sampling, temperature=temperature, greedy=temperature == 0)
        for place, item in enumerate(items):
            report(round_ * len(items) + place, len(temperatures) * len(items), f"acceptance at {temperature:g}")
            for reply in _replies(llm, item, params):
                edge = max(edge for edge in CONTEXT_EDGES if edge <= reply.num_prompt_tokens)
                row = rows.get((temperature, edge), AcceptanceRow(temperature, edge, 0, 0, 0, 0))
                rows[temperature, edge] = _added(row, reply)
    return tuple(rows[key] for key in sorted(rows))


def added_up(parts: Iterable[AcceptanceRow]) -> tuple[AcceptanceRow, ...]:
    """The rows of several measurements of other prompts, as one measurement of all of them has them."""
    rows: dict[tuple[float, int], AcceptanceRow] = {}
    for row in parts:
        key = (row.temperature, row.context)
        before = rows.get(key, AcceptanceRow(*key, 0, 0, 0, 0))
        counts = {name: getattr(before, name) + getattr(row, name) for name in _COUNTS}
        rows[key] = replace(before, **counts)
    return tuple(rows[key] for key in sorted(rows))


def _replies(llm: LLM, item: PromptItem, params: SamplingParams) -> list[Completion]:
    forget_caches(llm)
    messages: list[Message] = []
    replies: list[Completion] = []
    for text in item.turns:
        messages.append(Message("user", text))
        try:
            replies.append(llm.chat(messages, params))
        except PromptTooLong:
            break
        messages.append(Message("assistant", replies[-1].text))
    return replies


def _added(row: AcceptanceRow, reply: Completion) -> AcceptanceRow:
    stats = reply.speculation
    if stats is None:
        return replace(row, replies=row.replies + 1)
    return replace(
        row,
        replies=row.replies + 1,
        num_drafts=row.num_drafts + stats.num_drafts,
        num_draft_tokens=row.num_draft_tokens + stats.num_draft_tokens,
        num_accepted_tokens=row.num_accepted_tokens + stats.num_accepted_tokens,
    )
