"""Whether a model keeps to the Alpaca format over the turns of a conversation.

A reply keeps to it when it says something, begins no other block, and ends with the end-of-text token. Replies are
written without the stop strings that hide what comes after; a conversation goes on with what stood before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from draftsmith.engine import LLM
from draftsmith.errors import PromptTooLong, UsageError
from draftsmith.measure.conversation import Report, forget_caches, tell_nobody
from draftsmith.measure.prompts import PromptItem
from draftsmith.text import choose_format
from draftsmith.types import Message, SamplingParams

__all__ = ["HEADERS", "TurnRow", "measure_adherence"]

HEADERS = ("### Instruction:", "### Input:", "### Response:")


@dataclass(frozen=True, slots=True)
class TurnRow:
    """Replies to the turn ``turn`` of all conversations, 1 the first, by how they ended.

    ``kept`` kept to the format. ``began_another``: wrote a header. ``ran_on``: the longest reply did not hold its end.
    ``empty``: ended at once.
    """

    turn: int
    replies: int = 0
    kept: int = 0
    began_another: int = 0
    ran_on: int = 0
    empty: int = 0


def measure_adherence(
    llm: LLM,
    items: Sequence[PromptItem],
    sampling: SamplingParams,
    *,
    system: str | None = None,
    report: Report = tell_nobody,
) -> tuple[TurnRow, ...]:
    """Answer all turns in the Alpaca format; ``system`` is the instruction at the top, None for none.

    Raises UsageError when no prompt fits into the context, TemplateError for a tokenizer without EOS.
    """
    prompt_format = choose_format(llm.tokenizer, "alpaca")
    rows: dict[int, TurnRow] = {}
    for place, item in enumerate(items):
        report(place, len(items), f"format {item.id}")
        forget_caches(llm)
        messages = [] if system is None else [Message("system", system)]
        for turn, text in enumerate(item.turns, start=1):
            messages.append(Message("user", text))
            prompt = prompt_format.encode(messages, add_generation_prompt=True)
            try:
                [reply] = llm.generate(list(prompt.token_ids), sampling)
            except PromptTooLong:
                break
            said, ended = _until_header(reply.text), reply.finish_reason == "stop"
            rows[turn] = _counted(rows.get(turn, TurnRow(turn)), said, whole=said == reply.text, ended=ended)
            messages.append(Message("assistant", said.strip() or "-"))
    if not rows:
        raise UsageError("no prompt fits into the context, so no reply was written; give shorter prompts")
    return tuple(rows[turn] for turn in sorted(rows))


def _until_header(text: str) -> str:
    found = [text.index(header) for header in HEADERS if header in text]
    return text[: min(found)] if found else text


def _counted(row: TurnRow, said: str, *, whole: bool, ended: bool) -> TurnRow:
    row = replace(row, replies=row.replies + 1)
    if not whole:
        return replace(row, began_another=row.began_another + 1)
    if not ended:
        return replace(row, ran_on=row.ran_on + 1)
    if not said.strip():
        return replace(row, empty=row.empty + 1)
    return replace(row, kept=row.kept + 1)
