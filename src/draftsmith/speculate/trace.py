"""What every round drafted, what became of it and how long it took: recorded, and written for trace viewers.

A recorder stands between the loop and a drafter's sessions and changes nothing. The file is Chrome's trace format
(``chrome://tracing``, ui.perfetto.dev); ``replay`` judges length policies by it, without the models.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from draftsmith.errors import UsageError
from draftsmith.speculate.drafters.protocol import Drafter, DraftSession, WantsMore
from draftsmith.speculate.policy import CostModel
from draftsmith.types import Draft, Request, Verdict, VerificationRule

__all__ = ["RoundRecord", "Trace", "TracedDrafter", "read_trace", "trace_json"]

FORMAT = "draftsmith trace 1"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round of one text. ``start``: the position of its first token; ``drafted`` and ``written``: tokens proposed,
    and kept or added; ``num_copied``: the last so many of the proposed ones were copied after drawn ones. Times in
    seconds; ``began`` counts from the beginning of the trace."""

    text: int
    start: int
    drafted: tuple[int, ...]
    confidences: tuple[float, ...]
    free: bool
    written: tuple[int, ...]
    num_accepted: int
    began: float
    draft_s: float
    check_s: float
    num_copied: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """Rounds in order, and what steps cost when they were recorded. A text's prompt round is not among them."""

    drafter: str
    rounds: tuple[RoundRecord, ...]
    costs: CostModel

    @property
    def plain_s(self) -> float:
        """About what a plain step took in seconds, by what the checks of the rounds took; 0 without rounds."""
        steps = [r.check_s / self.costs.verify_cost(len(r.drafted) + 1) for r in self.rounds]
        return median(steps) if steps else 0.0


class TracedDrafter:
    """``drafter``, with its rounds recorded in ``rounds``."""

    def __init__(self, drafter: Drafter, clock: Callable[[], float] | None = None) -> None:
        self._drafter = drafter
        self._clock = clock or time.perf_counter
        self._began = self._clock()
        self._texts = 0
        self.rounds: list[RoundRecord] = []

    @property
    def name(self) -> str:
        """The drafter's own."""
        return self._drafter.name

    def start(self, request: Request, rule: VerificationRule) -> DraftSession:
        """A session of the drafter, recorded."""
        return _TracedSession(self, self._drafter.start(request, rule))

    def now(self) -> float:
        """Seconds since the recording began."""
        return self._clock() - self._began

    def next_text(self) -> int:
        """The number of a text that begins."""
        self._texts += 1
        return self._texts - 1


@dataclass(slots=True)
class _TracedSession:
    drafter: TracedDrafter
    inner: DraftSession
    text: int = field(init=False)
    pending: tuple[int, Draft, float, float] | None = None  # start, draft, and when drafting began and ended

    def __post_init__(self) -> None:
        self.text = self.drafter.next_text()

    def restart(self, request: Request) -> None:
        self.text, self.pending = self.drafter.next_text(), None
        self.inner.restart(request)

    def read(self, token_ids: Sequence[int]) -> None:
        self.inner.read(token_ids)

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        began = self.drafter.now()
        draft = self.inner.draft(token_ids, max_tokens, wants_more)
        self.pending = len(token_ids), draft, began, self.drafter.now()
        return draft

    def commit(self, verdict: Verdict) -> None:
        ended = self.drafter.now()
        if self.pending is not None:
            start, draft, began, drafted = self.pending
            self.drafter.rounds.append(
                RoundRecord(
                    self.text,
                    start,
                    draft.token_ids,
                    draft.confidences,
                    draft.free,
                    verdict.token_ids,
                    verdict.num_accepted,
                    began,
                    drafted - began,
                    ended - drafted,
                    draft.num_copied,
                )
            )
        self.pending = None
        self.inner.commit(verdict)


def trace_json(trace: Trace, spell: Callable[[int], str]) -> dict[str, Any]:
    """The trace as Chrome's JSON object; ``spell`` gives a token's text, for the reader."""
    events: list[dict[str, Any]] = []
    for number, row in enumerate(trace.rounds):
        values = {
            "text": row.text,
            "start": row.start,
            "drafted": list(row.drafted),
            "confidences": [round(c, 4) for c in row.confidences],
            "free": row.free,
            "written": list(row.written),
            "num_accepted": row.num_accepted,
            "num_copied": row.num_copied,
            "draft_text": "".join(map(spell, row.drafted)),
            "written_text": "".join(map(spell, row.written)),
        }
        events.append(_event("round", number, row.began, row.draft_s + row.check_s, values))
        events.append(_event("draft", number, row.began, row.draft_s, {"tokens": len(row.drafted)}))
        events.append(_event("check", number, row.began + row.draft_s, row.check_s, {"tokens": len(row.drafted) + 1}))
    steps = trace.costs
    drafting = {"draft_step": steps.draft_step, "draft_read": steps.draft_read, "draft_start": steps.draft_start}
    costs = {**drafting, "verify": list(steps.verify)}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"format": FORMAT, "drafter": trace.drafter, "costs": costs},
    }


def _event(name: str, number: int, began: float, seconds: float, values: dict[str, Any]) -> dict[str, Any]:
    """A complete event ("X"); times are in microseconds, and one row of the viewer is for each name."""
    place = {"pid": 1, "tid": name}
    times = {"ts": round(began * 1e6, 3), "dur": round(seconds * 1e6, 3)}
    return {"name": name, "cat": "speculation", "ph": "X", **place, **times, "args": {"round": number, **values}}


def read_trace(path: Path) -> Trace:
    """A trace that ``trace_json`` made. Raises UsageError when ``path`` is no such file."""
    try:
        content = json.loads(path.read_bytes())
        other = content["otherData"]
        if other["format"] != FORMAT:
            raise ValueError(other["format"])
        rows = [event for event in content["traceEvents"] if event["name"] == "round"]
        checks = {e["args"]["round"]: e["dur"] / 1e6 for e in content["traceEvents"] if e["name"] == "check"}
        return Trace(str(other["drafter"]), tuple(_record(row, checks) for row in rows), _costs(other["costs"]))
    except OSError as error:
        raise UsageError(f"The trace {path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{path} is no trace of draftsmith's; record one with draftsmith generate --trace") from None


def _costs(value: dict[str, Any]) -> CostModel:
    numbers = [value["draft_step"], value.get("draft_read", 0.0), value.get("draft_start", 0.0), *value["verify"]]
    step, read, start, *verify = map(float, numbers)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("costs that are no numbers")
    return CostModel(step, tuple(verify), read, start)


def _record(event: dict[str, Any], checks: dict[int, float]) -> RoundRecord:
    args = event["args"]
    check_s = checks[args["round"]]
    drafted = tuple(map(int, args["drafted"]))
    record = RoundRecord(
        text=int(args["text"]),
        start=int(args["start"]),
        drafted=drafted,
        confidences=tuple(map(float, args["confidences"])),
        free=bool(args["free"]),
        written=tuple(map(int, args["written"])),
        num_accepted=int(args["num_accepted"]),
        began=event["ts"] / 1e6,
        draft_s=event["dur"] / 1e6 - check_s,
        check_s=check_s,
        num_copied=int(args.get("num_copied", 0)),
    )
    if not 0 <= record.num_copied <= len(drafted) >= record.num_accepted >= 0 or len(record.confidences) not in (
        0,
        len(drafted),
    ):
        raise ValueError("inconsistent round")
    return record
