"""``draftsmith replay``: what other draft lengths would have made of a recorded trace."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftsmith.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from draftsmith.speculate import CostModel, LengthPolicy, ReplayResult

__all__ = ["replay"]

POLICIES = "auto,theory,plain,1,2,3,4,6,8,12,16"
LONGEST = 64


def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A file that draftsmith generate --trace wrote.")],
    *,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|theory|plain|K",
            help="Judge this policy; several with commas, or by repeating the option. K drafts K tokens every round, "
            "theory the best number if all draft tokens were equally likely to be accepted.",
            show_default=POLICIES,
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Judge draft lengths by a recorded trace, without the models.

    For every policy: the speed that it would have had, at the costs measured when the trace was recorded, in tokens per
    second and in times plain decoding. Record with --num-draft-tokens 16: what was never drafted is unknown, and a
    replayed draft ends there.
    """
    names = _names(policy or [POLICIES])
    from draftsmith.speculate import read_trace
    from draftsmith.speculate import replay as judge

    recorded = read_trace(trace)
    if not recorded.rounds:
        raise UsageError(f"The trace {trace} has no rounds; record a reply of more than one token")
    results = {name: judge(recorded, _policy(name)) for name in names}
    best = max(results, key=lambda name: results[name].speedup)
    plain_speed = 1 / recorded.plain_s if recorded.plain_s > 0 else 0.0
    if json_output:
        rows = {name: _row(result, plain_speed) for name, result in results.items()}
        costs = {"draft_cost_c": recorded.costs.draft_step, "plain_tokens_per_s": round(plain_speed, 2)}
        value = {"drafter": recorded.drafter, **costs, "policies": rows, "best": best}
        sys.stdout.write(json.dumps(value) + "\n")
        return
    typer.echo(_table(results, plain_speed))
    typer.echo(f"Best: {best}, {results[best].speedup:.2f} times plain")


def _names(given: Sequence[str]) -> list[str]:
    """The policies asked for, each once. Raises UsageError."""
    names = [name.strip() for part in given for name in part.split(",")]
    for name in names:
        known = name in ("auto", "theory", "plain") or (name.isascii() and name.isdigit() and int(name) <= LONGEST)
        if not known:
            raise UsageError(
                f"policy is {name!r}; it must be auto, theory, plain or a number of tokens up to {LONGEST}"
            )
    return list(dict.fromkeys("plain" if name.isdigit() and not int(name) else name for name in names))


def _policy(name: str) -> Callable[[CostModel], LengthPolicy]:
    from draftsmith.speculate import AutoLength, FixedLength, TheoryLength

    if name == "auto":
        return AutoLength
    if name == "theory":
        return TheoryLength
    length = 0 if name == "plain" else int(name)
    return lambda _: FixedLength(length)


def _table(results: dict[str, ReplayResult], plain_speed: float) -> str:
    lines = [f"{'policy':8} {'tokens/s':>8} {'times plain':>11} {'tokens/round':>12} {'drafted':>8} {'accepted':>8}"]
    for name, result in results.items():
        speeds = f"{plain_speed * result.speedup:8.1f} {result.speedup:11.2f} {result.tokens_per_round:12.2f}"
        lines.append(f"{name:8} {speeds} {result.draft_tokens:8d} {result.accepted_tokens:8d}")
    return "\n".join(lines)


def _row(result: ReplayResult, plain_speed: float) -> dict[str, Any]:
    return {
        "tokens_per_s": round(plain_speed * result.speedup, 2),
        "speedup": round(result.speedup, 4),
        "tokens_per_round": round(result.tokens_per_round, 3),
        "tokens": result.tokens,
        "rounds": result.rounds,
        "num_draft_tokens": result.draft_tokens,
        "num_accepted_tokens": result.accepted_tokens,
    }
