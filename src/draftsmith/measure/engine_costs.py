"""The cost curves of other engines: given by the user, or measured at endpoints.

They are written as ``plan`` writes its own: c (a draft step / a plain step), d (a call of the draft), v(m) (checking m
tokens / one). At an endpoint v(m) is what a token takes with m texts at once / with one: the weights are read once for
all of them, as they are for m tokens of one text. c is the draft's time for a token at its own endpoint / the target's.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from draftsmith.errors import UsageError
from draftsmith.measure.costs import CostCurves
from draftsmith.measure.endpoint import Endpoint
from draftsmith.types import Message, SamplingParams

__all__ = ["EngineCosts", "measure_endpoint_costs", "parse_costs", "read_costs"]

MAX_SIZE, MAX_FILE_BYTES = 1024, 1_000_000
SIZES = (1, 2, 4, 8)
_SHAPE = "c=0.1, c:CANDIDATE=0.1, d=0.01 or v=1:1,4:1.05,8:1.2"
_PROMPT = "Tell a long story about a lighthouse keeper who finds a door in the sea. Part {number}."
_TOKENS, _REPEATS = 48, 3


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """``verify``: v(m) by m, 1 at m = 1. ``draft``: c of all candidates, where one is known; ``by_candidate`` goes
    before it. ``plain_s``: seconds of a plain step, 0 if unknown."""

    verify: Mapping[int, float] = field(default_factory=dict)
    draft: float | None = None
    draft_call: float = 0.0
    by_candidate: Mapping[str, float] = field(default_factory=dict)
    plain_s: float = 0.0

    def over(self, other: EngineCosts) -> EngineCosts:
        """These, and the other's where these say nothing."""
        return EngineCosts(
            self.verify or other.verify,
            other.draft if self.draft is None else self.draft,
            self.draft_call or other.draft_call,
            {**other.by_candidate, **self.by_candidate},
            self.plain_s or other.plain_s,
        )

    def curves(self, candidate: str, *, drafts: bool) -> CostCurves:
        """The costs with one candidate; ``drafts``: it has a model. Raises UsageError when something is missing."""
        if max(self.verify, default=1) < 2:
            raise UsageError(
                "the cost of checking several tokens is not known; give --cost v=1:1,4:1.05,8:1.2 with your engine's "
                "times, or --cost-endpoint URL to measure them"
            )
        c = self.by_candidate.get(candidate, self.draft)
        if drafts and c is None:
            raise UsageError(
                f"the cost of a draft step of {candidate} is not known; give --cost c=0.1 (a draft step / a plain "
                "step), or --draft-endpoint URL to measure it"
            )
        return CostCurves(
            0, self.plain_s, (c or 0.0) if drafts else 0.0, self.verify, self.draft_call if drafts else 0.0
        )


def parse_costs(entries: Sequence[str]) -> EngineCosts:
    """What ``--cost`` says, entry by entry. Raises UsageError."""
    table: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.rpartition("=") if entry.startswith("c:") else entry.partition("=")
        if not equals:
            raise UsageError(f"--cost is {entry!r}; write it as {_SHAPE}")
        if name == "v":
            pairs = [part.partition(":") for part in value.split(",")]
            table["v"] = {size: cost for size, _, cost in pairs}
        elif name.startswith("c:"):
            table.setdefault("candidates", {})[name[2:]] = value
        else:
            table[name] = value
    return _costs(table, "--cost")


def read_costs(path: Path) -> EngineCosts:
    """The same from a TOML or JSON file with the keys c, d, v (a table by size) and candidates (a table of c).

    Raises UsageError.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is too large for a table of costs; give a small TOML or JSON file")
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a TOML or JSON file of costs") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is neither TOML nor JSON ({error}); write for example c = 0.1") from None
    if not isinstance(table, dict):
        raise UsageError(f"{path} is no table; give the keys c, d, v and candidates")
    return _costs(table, str(path))


def _costs(table: Mapping[str, Any], where: str) -> EngineCosts:
    unknown = sorted(set(table) - {"c", "d", "v", "candidates"})
    if unknown:
        raise UsageError(f"{where} has {unknown[0]!r}; it can have c, d, v and candidates")
    parts = {name: table.get(name, {}) for name in ("v", "candidates")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise UsageError(f"{where} has {name} = {part!r:.40}; it must be a table")
    verify = {_size(size, where): _cost(cost, "v", where) for size, cost in parts["v"].items()}
    if verify and not math.isclose(verify.setdefault(1, 1.0), 1.0, rel_tol=1e-6):
        raise UsageError(f"{where} has v(1) = {verify[1]:g}; costs are in plain steps, so divide all of them by it")
    if any(cost <= 0 for cost in verify.values()):
        raise UsageError(f"{where} has a v that is 0; checking tokens takes time")
    return EngineCosts(
        verify,
        None if "c" not in table else _cost(table["c"], "c", where),
        _cost(table.get("d", 0.0), "d", where),
        {str(name): _cost(cost, f"c of {name}", where) for name, cost in parts["candidates"].items()},
    )


def _size(value: Any, where: str) -> int:
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if not 1 <= size <= MAX_SIZE:
        raise UsageError(f"{where} has v of {value!r:.40} tokens; give whole numbers from 1 to {MAX_SIZE}")
    return size


def _cost(value: Any, name: str, where: str) -> float:
    try:
        cost = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # the last: a whole number beyond all floats
        cost = math.nan
    if not 0 <= cost < math.inf:
        raise UsageError(f"{where} has {name} = {value!r:.40}; give a number of plain steps, as in {_SHAPE}")
    return cost


def measure_endpoint_costs(
    target: Endpoint, draft: Endpoint | None = None, *, sizes: Sequence[int] = SIZES, repeats: int = _REPEATS
) -> EngineCosts:
    """Time tokens at the target's endpoint with 1, 2, 4 and 8 texts at once, and at the draft's with one, in turn.

    The server must write so many texts side by side, and must not draft meanwhile. Raises what asking raises, and
    UsageError when it does not do what was asked.
    """
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    steps: list[float] = []
    for repeat in range(repeats + 1):
        for size in sizes:
            spent = _token_s(target, size, repeat)
            step = _token_s(draft, 1, repeat) if draft is not None else 0.0
            if repeat:  # the first time warms up
                seconds[size].append(spent)
                steps.append(step)
    plain = median(seconds[sizes[0]])
    c = median(steps) / plain if draft is not None else None
    return EngineCosts({size: max(1.0, median(times) / plain) for size, times in seconds.items()}, c, plain_s=plain)


def _token_s(endpoint: Endpoint, texts: int, repeat: int) -> float:
    """Seconds that a token of one text takes while so many are written; the median over the texts."""
    sampling = SamplingParams(greedy=True, max_new_tokens=_TOKENS, ignore_eos=True)

    def ask(number: int) -> float:
        prompt = _PROMPT.format(number=repeat * 100 + texts * 10 + number)
        reply = endpoint.ask([Message("user", prompt)] if endpoint.chat else prompt, sampling)
        if reply.num_tokens < _TOKENS // 2 or reply.rest_s <= 0:
            raise UsageError(
                f"{endpoint.address} wrote {reply.num_tokens} tokens where {_TOKENS} were asked for, too few to time it"
            )
        return reply.rest_s / (reply.num_tokens - 1)

    with ThreadPoolExecutor(texts) as pool:
        return median(pool.map(ask, range(texts)))
