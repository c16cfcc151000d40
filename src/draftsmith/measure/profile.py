"""Where the time of decoding goes, by part and by kernel: the parts of a round add up to its wall time.

A round: the drafter proposes (its kernels, and the choosing of tokens and the calls around them), the target checks
(its kernels, and the call around them), tokens are sampled and verified, and everything else: length policy, text.
Kernels are timed by the engine's first thread, its waiting for the others included.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from draftsmith.measure.conversation import Report, Turn, both_ways, tell_nobody
from draftsmith.measure.pair import Pair
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.recording import Forward, ProfilingModel, RecordingModel
from draftsmith.model.protocol import Model
from draftsmith.speculate import Drafter, DraftSession
from draftsmith.speculate.drafters.protocol import WantsMore
from draftsmith.types import Draft, Request, SamplingParams, Verdict, VerificationRule

__all__ = ["Part", "Profile", "measure_profile", "profile_json", "profile_text"]

_CALL = "around the kernels"


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds of all rounds together. ``kernel``: one of the engine's, or what else it was."""

    part: str
    kernel: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """``parts`` add up to ``wall_s``, the seconds of decoding after each reply's first token; so do those of plain."""

    rounds: int
    tokens: int
    wall_s: float
    parts: tuple[Part, ...]
    plain_steps: int
    plain_wall_s: float
    plain_parts: tuple[Part, ...]


def measure_profile(
    pair: Pair, items: Sequence[PromptItem], sampling: SamplingParams, *, report: Report = tell_nobody
) -> Profile:
    """Answer every prompt once more, both ways, with the clocks of the kernels on. The drafter stays wrapped."""
    watched = pair.speculative.wrap_drafter(
        lambda drafter: _WatchedDrafter(drafter, pair.speculative.draft_model, pair.target)
    )
    pair.target.by_kernel = True
    turns: list[Turn] = []
    try:
        for place, item in enumerate(items):
            turns += both_ways(pair, item, sampling, speculative_first=place % 2 == 1)
            report(place + 1, len(items), f"profile {item.id}")
    finally:
        pair.target.by_kernel = False
    return _profile(turns, watched)


@dataclass(slots=True)
class _WatchedDrafter:
    """A drafter whose sessions are timed: seconds of drafting, of its model's kernels, and from logits to verdict."""

    drafter: Drafter
    model: Model | None
    target: RecordingModel
    seconds: float = 0.0
    kernels: dict[str, float] = field(default_factory=dict)
    verdict_s: float = 0.0

    @property
    def name(self) -> str:
        return self.drafter.name

    def start(self, request: Request, rule: VerificationRule) -> DraftSession:
        return _WatchedSession(self, self.drafter.start(request, rule))


@dataclass(slots=True)
class _WatchedSession:
    watched: _WatchedDrafter
    inner: DraftSession
    drafted: bool = False  # in this round; a reply's first round has no draft and is not decoding

    def restart(self, request: Request) -> None:
        self.drafted = False
        self.inner.restart(request)

    def read(self, token_ids: Sequence[int]) -> None:
        self.inner.read(token_ids)

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        watched = self.watched
        profiled = watched.model if isinstance(watched.model, ProfilingModel) else None
        if profiled is not None:
            profiled.profile(True)
        began = time.perf_counter()
        draft = self.inner.draft(token_ids, max_tokens, wants_more)
        watched.seconds += time.perf_counter() - began
        if profiled is not None:
            _add(watched.kernels, profiled.profile(False))
        self.drafted = True
        return draft

    def commit(self, verdict: Verdict) -> None:
        if self.drafted:
            self.watched.verdict_s += time.perf_counter() - self.watched.target.latest_end
        self.drafted = False
        self.inner.commit(verdict)


def _profile(turns: Sequence[Turn], watched: _WatchedDrafter) -> Profile:
    checks = [forward for turn in turns for forward in turn.target_forwards[1:]]
    steps = [forward for turn in turns for forward in turn.plain_forwards[1:]]
    wall = sum(turn.speculative.timing.decode_s for turn in turns)
    plain_wall = sum(turn.plain.timing.decode_s for turn in turns)
    parts = [
        *_taken_apart("draft", watched.seconds, watched.kernels),
        *_of_target(checks),
        Part("sampling and verification", "", watched.verdict_s),
    ]
    return Profile(
        rounds=len(checks),
        tokens=sum(turn.speculative.timing.num_decoded for turn in turns),
        wall_s=wall,
        parts=_with_rest(parts, wall),
        plain_steps=len(steps),
        plain_wall_s=plain_wall,
        plain_parts=_with_rest(_of_target(steps), plain_wall),
    )


def _of_target(forwards: Sequence[Forward]) -> list[Part]:
    kernels: dict[str, float] = {}
    for forward in forwards:
        _add(kernels, forward.kernels)
    return _taken_apart("target", sum(forward.seconds for forward in forwards), kernels)


def _taken_apart(part: str, seconds: float, kernels: Mapping[str, float]) -> list[Part]:
    """The kernels that took time, and what is left: all of it where no kernels are known."""
    known = [Part(part, kernel, spent) for kernel, spent in kernels.items() if spent > 0]
    return [*known, Part(part, _CALL if known else "", seconds - sum(one.seconds for one in known))]


def _with_rest(parts: Sequence[Part], wall_s: float) -> tuple[Part, ...]:
    return (*parts, Part("everything else", "", wall_s - sum(part.seconds for part in parts)))


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for kernel, seconds in more.items():
        total[kernel] = total.get(kernel, 0.0) + seconds


def profile_json(profile: Profile) -> dict[str, Any]:
    """What ``bench --profile`` adds to its object, under ``profile``."""

    def listed(parts: Sequence[Part]) -> list[dict[str, Any]]:
        return [{"part": one.part, "kernel": one.kernel or None, "seconds": one.seconds} for one in parts]

    return {
        "rounds": profile.rounds,
        "tokens": profile.tokens,
        "wall_s": profile.wall_s,
        "parts": listed(profile.parts),
        "plain": {
            "steps": profile.plain_steps,
            "wall_s": profile.plain_wall_s,
            "parts": listed(profile.plain_parts),
        },
    }


def profile_text(value: dict[str, Any]) -> str:
    """The table, from the JSON object: a round of speculative decoding beside a plain step."""
    rounds, steps = max(1, value["rounds"]), max(1, value["plain"]["steps"])
    plain = {(one["part"], one["kernel"]): one["seconds"] for one in value["plain"]["parts"]}
    rows = [(one["part"], one["kernel"], one["seconds"]) for one in value["parts"]]
    lines = ["| where a round's time goes | ms | share | ms of a plain step |", "|---|--:|--:|--:|"]
    for part in dict.fromkeys(part for part, _, _ in rows):
        own = [(kernel, seconds) for name, kernel, seconds in rows if name == part]
        other = [seconds for (name, _), seconds in plain.items() if name == part]
        whole = sum(seconds for _, seconds in own)
        lines.append(_row(f"**{part}**", whole, value, rounds, sum(other) / steps if other else None))
        for kernel, seconds in own if len(own) > 1 else ():
            beside = plain.get((part, kernel))
            lines.append(_row(f"· {kernel}", seconds, value, rounds, None if beside is None else beside / steps))
    lines.append(_row("**all**", value["wall_s"], value, rounds, value["plain"]["wall_s"] / steps))
    return "\n".join(
        [
            *lines,
            "",
            f"{value['rounds']} rounds wrote {value['tokens']} tokens, beside {value['plain']['steps']} plain steps; "
            "a reply's first token, which\nreading the prompt gives, is left out. Kernels as the first thread sees "
            "them, waiting for the others included\n(embed: until all threads are awake). Of plain steps, sampling is "
            "in everything else.",
        ]
    )


def _row(name: str, seconds: float, value: dict[str, Any], rounds: int, beside: float | None) -> str:
    share = seconds / value["wall_s"] if value["wall_s"] else 0.0
    told = "" if beside is None else f"{beside * 1000:.3f}"
    return f"| {name} | {seconds / rounds * 1000:.3f} | {share:.1%} | {told} |"
