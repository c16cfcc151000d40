"""The same prompts to several who write, in turn, one table: endpoints, and a pair of our own beside them.

Definitions. First token: seconds from sending a prompt to the first text of its reply, the median over replies.
tokens/s: tokens after a reply's first / time from the first text to the end. Ratio: tokens/s over that of the first
side in the table. Acceptance rate: accepted / draft tokens, where a side tells them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from draftsmith.engine import LLM
from draftsmith.errors import PromptTooLong, UsageError
from draftsmith.measure.conversation import Report, forget_caches, tell_nobody
from draftsmith.measure.endpoint import Endpoint, Refused, Streamed
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.statistics import Interval, ratio_interval
from draftsmith.types import Message, SamplingParams

__all__ = ["ContestResult", "EndpointSide", "LocalSide", "Side", "SideResult", "run_contest"]


class Side(Protocol):
    """One who answers prompts."""

    @property
    def name(self) -> str:
        """As it appears in the table."""
        ...

    def begin(self) -> None:
        """A conversation begins."""
        ...

    def answer(self, asked: Sequence[Message] | str, sampling: SamplingParams) -> Streamed:
        """The reply to messages, or the continuation of a text. Raises Refused or PromptTooLong if it does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointSide:
    """A server."""

    name: str
    endpoint: Endpoint

    def begin(self) -> None:
        """Nothing: what a server keeps of earlier texts is its own affair."""

    def answer(self, asked: Sequence[Message] | str, sampling: SamplingParams) -> Streamed:
        """See ``Side``."""
        return self.endpoint.ask(asked, sampling)


@dataclass(frozen=True, slots=True)
class LocalSide:
    """Our own engine in this process."""

    name: str
    llm: LLM

    def begin(self) -> None:
        """Prompts are read afresh."""
        forget_caches(self.llm)

    def answer(self, asked: Sequence[Message] | str, sampling: SamplingParams) -> Streamed:
        """See ``Side``."""
        if isinstance(asked, str):
            [reply] = self.llm.generate(asked, sampling)
        else:
            reply = self.llm.chat(asked, sampling)
        stats = reply.speculation
        return Streamed(
            text=reply.text,
            num_tokens=len(reply.token_ids),
            counted="endpoint",
            first_s=reply.timing.prefill_s,
            rest_s=reply.timing.decode_s,
            drafted=None if stats is None else stats.num_draft_tokens,
            accepted=None if stats is None else stats.num_accepted_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Answered:
    """What one side made of one conversation, in all repeats; ``rest_s`` is the median over them."""

    id: str
    category: str
    num_tokens: int
    decoded: int
    rest_s: float
    first_s: tuple[float, ...]
    texts: tuple[str, ...]
    by_chunks: bool
    drafted: int | None
    accepted: int


@dataclass(frozen=True, slots=True)
class SideResult:
    """All conversations of one side, or of one category of it. Never empty."""

    name: str
    answers: tuple[_Answered, ...]

    @property
    def rate(self) -> float:
        """tokens/s."""
        spent = sum(one.rest_s for one in self.answers)
        return sum(one.decoded for one in self.answers) / spent if spent else 0.0

    @property
    def rate_interval(self) -> Interval:
        """95 %, bootstrap over prompts."""
        return ratio_interval([one.decoded for one in self.answers], [one.rest_s for one in self.answers])

    @property
    def first_s(self) -> float:
        """Median over replies."""
        return median(value for one in self.answers for value in one.first_s)

    @property
    def num_tokens(self) -> int:
        """Of one repeat."""
        return sum(one.num_tokens for one in self.answers)

    @property
    def counted(self) -> str:
        """Who counted the tokens: ``endpoint``, or ``chunks`` where some had to be counted by chunks of text."""
        return "chunks" if any(one.by_chunks for one in self.answers) else "endpoint"

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / draft tokens; None where nothing was told or drafted."""
        drafted = sum(one.drafted or 0 for one in self.answers)
        return sum(one.accepted for one in self.answers) / drafted if drafted else None

    def same_text(self, other: SideResult) -> float:
        """The share of replies whose text is the other side's."""
        pairs = [
            a == b
            for mine, its in zip(self.answers, other.answers, strict=True)
            for a, b in zip(mine.texts, its.texts, strict=True)
        ]
        return sum(pairs) / len(pairs)

    def ratio(self, other: SideResult) -> tuple[float, Interval]:
        """This side's tokens/s over the other's, and the 95 % interval over prompts."""
        own = [one.rest_s for one in self.answers]
        scaled = [
            its.rest_s * mine.decoded / its.decoded if its.decoded else 0.0
            for mine, its in zip(self.answers, other.answers, strict=True)
        ]
        return (self.rate / other.rate if other.rate else 0.0), ratio_interval(scaled, own)

    def of(self, category: str) -> SideResult:
        """The conversations of one category."""
        return SideResult(self.name, tuple(one for one in self.answers if one.category == category))


@dataclass(frozen=True, slots=True)
class ContestResult:
    """All sides, the first of which the others are compared with. ``skipped``: prompt ids and why."""

    sides: tuple[SideResult, ...]
    skipped: Mapping[str, str]

    @property
    def categories(self) -> tuple[str, ...]:
        """In the order of the prompts."""
        return tuple(dict.fromkeys(one.category for one in self.sides[0].answers))


def run_contest(
    sides: Sequence[Side],
    items: Sequence[PromptItem],
    sampling: SamplingParams,
    *,
    chat: bool = True,
    repeats: int = 1,
    report: Report = tell_nobody,
) -> ContestResult:
    """Have every conversation with every side, ``repeats`` times; who is first rotates. The first one warms up.

    A conversation goes on with the first side's reply, so that all see the same prompts. With ``chat`` False a prompt
    is plain text: turns and replies with an empty line between them. Raises UsageError when nothing could be measured,
    and what the sides raise.
    """
    if repeats < 1:
        raise UsageError(f"repeat is {repeats}; it must be at least 1")
    runs: dict[str, list[list[list[Streamed]]]] = {}
    skipped: dict[str, str] = {}
    report(0, len(items) * repeats, "warming up")
    _conversation(sides, items[0], sampling, chat=chat, turn=0, skipped={})
    for repeat in range(repeats):
        for place, item in enumerate(items):
            if item.id not in skipped:
                had = _conversation(sides, item, sampling, chat=chat, turn=repeat + place, skipped=skipped)
                if item.id not in skipped:
                    runs.setdefault(item.id, []).append(had)
            report(repeat * len(items) + place + 1, len(items) * repeats, item.id)
    kept = [item for item in items if item.id in runs and item.id not in skipped]
    for item in kept:
        if not any(reply.num_tokens > 1 for side in zip(*runs[item.id][0], strict=True) for reply in side):
            skipped[item.id] = "no reply had a second token"
    kept = [item for item in kept if item.id not in skipped]
    if not kept:
        raise UsageError(f"nothing could be measured: {next(iter(skipped.values()))}")
    results = tuple(
        SideResult(side.name, tuple(_answered(item, [run[i] for run in runs[item.id]]) for item in kept))
        for i, side in enumerate(sides)
    )
    return ContestResult(results, skipped)


def _conversation(
    sides: Sequence[Side],
    item: PromptItem,
    sampling: SamplingParams,
    *,
    chat: bool,
    turn: int,
    skipped: dict[str, str],
) -> list[list[Streamed]]:
    """The replies by side and turn. A first turn that someone refuses is noted in ``skipped``; a later one ends it."""
    replies: list[list[Streamed]] = [[] for _ in sides]
    for side in sides:
        side.begin()
    messages: list[Message] = []
    for text in item.turns:
        messages.append(Message("user", text))
        asked: Sequence[Message] | str = messages if chat else "\n\n".join(message.content for message in messages)
        answers: dict[int, Streamed] = {}
        try:
            for place in range(len(sides)):
                who = (place + turn) % len(sides)
                answers[who] = sides[who].answer(asked, sampling)
        except (Refused, PromptTooLong) as error:
            if not replies[0]:
                skipped[item.id] = str(error)
            break
        for who, answer in answers.items():
            replies[who].append(answer)
        messages.append(Message("assistant", answers[0].text))
    return replies


def _answered(item: PromptItem, runs: Sequence[Sequence[Streamed]]) -> _Answered:
    """One side's conversation, from its repeats."""
    turns = min(len(run) for run in runs)  # of a server whose replies differ, a repeat may get less far
    runs = [run[:turns] for run in runs]
    first = runs[0]
    drafted = [reply.drafted for reply in first if reply.drafted is not None]
    return _Answered(
        id=item.id,
        category=item.category,
        num_tokens=sum(reply.num_tokens for reply in first),
        decoded=sum(max(0, reply.num_tokens - 1) for reply in first),
        rest_s=median(sum(reply.rest_s for reply in run) for run in runs),
        first_s=tuple(reply.first_s for run in runs for reply in run),
        texts=tuple(reply.text for reply in first),
        by_chunks=any(reply.counted == "chunks" for reply in first),
        drafted=sum(drafted) if drafted else None,
        accepted=sum(reply.accepted or 0 for reply in first),
    )
