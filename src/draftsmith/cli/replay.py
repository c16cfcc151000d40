"""``draftsmith replay``: what other draft lengths would have made of a recorded trace."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from draftsmith.speculate import CostModel, LengthPolicy, ReplayResult

__all__ = ["replay"]

FIXED = (1, 2, 3, 4, 6, 8, 12, 16)


def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A file that draftsmith generate --trace wrote.")],
    *,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Judge draft lengths by a recorded trace, without the models.

    For every policy: the speed-up over plain decoding that it would have had, at the costs measured when the trace was
    recorded. Record with --num-draft-tokens 16: what was never drafted is unknown, and a replayed draft ends there.
    """
    from draftsmith.speculate import read_trace
    from draftsmith.speculate import replay as judge

    recorded = read_trace(trace)
    results = {name: judge(recorded, policy) for name, policy in _policies().items()}
    if json_output:
        rows = {name: _row(result) for name, result in results.items()}
        value = {"drafter": recorded.drafter, "draft_cost_c": recorded.costs.draft_step, "policies": rows}
        sys.stdout.write(json.dumps(value) + "\n")
        return
    typer.echo(f"{'policy':8} {'speed-up':>8} {'rounds':>7} {'drafted':>8} {'accepted':>8}")
    for name, result in results.items():
        counts = f"{result.rounds:7d} {result.draft_tokens:8d} {result.accepted_tokens:8d}"
        typer.echo(f"{name:8} {result.speedup:8.2f} {counts}")


def _policies() -> dict[str, Callable[[CostModel], LengthPolicy]]:
    from draftsmith.speculate import AutoLength

    return {"auto": AutoLength, "plain": partial(_fixed, 0), **{str(k): partial(_fixed, k) for k in FIXED}}


def _fixed(k: int, costs: CostModel) -> LengthPolicy:
    from draftsmith.speculate import FixedLength

    del costs
    return FixedLength(k)


def _row(result: ReplayResult) -> dict[str, Any]:
    return {
        "speedup": round(result.speedup, 4),
        "tokens": result.tokens,
        "rounds": result.rounds,
        "num_draft_tokens": result.draft_tokens,
        "num_accepted_tokens": result.accepted_tokens,
    }
