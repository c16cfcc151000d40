"""Drafters side by side on the same prompts: acceptance, and tokens for the price of a plain one.

    python -m benchmarks.drafters --target REF --draft REF --draft REF+lookup --draft lookup

Speeds are in the length policy's own units: the rounds as they happened, at the costs c and v(m) that were measured at
the start. So a table can be taken on a busy machine; what a clock says is for ``draftsmith bench`` to tell. Every reply
must be the same with every drafter, or the script fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.engine import LLM
from draftsmith.measure.prompts import PromptItem, built_in_prompts, select_prompts
from draftsmith.speculate import CostModel, RoundRecord
from draftsmith.types import Message, SamplingParams

__all__ = ["cost_of", "main"]


def cost_of(rounds: Sequence[RoundRecord], costs: CostModel) -> float:
    """What ``rounds`` cost, in plain steps."""
    drawn = sum(costs.draft_cost(len(r.drafted) - r.num_copied) for r in rounds if not r.free)
    return drawn + sum(costs.verify_cost(len(r.drafted) + 1) for r in rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """One table for all drafters, a row for each and every category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", action="append", required=True)
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    add_record_option(parser)
    args = parser.parse_args(arguments)
    prompts = select_prompts(built_in_prompts(), per_category=args.per_category)
    params = SamplingParams(temperature=args.temperature, seed=1, max_new_tokens=args.max_new_tokens)
    llm = LLM(args.target, None)
    costs: dict[str, Any] = {}
    rows: list[tuple[str, str, float, float, float]] = []
    replies: dict[str, tuple[int, ...]] = {}
    for draft in args.draft:
        llm.use_draft(draft)
        name = "+".join(Path(part).name for part in draft.split("+"))
        measured = llm.step_costs.costs
        costs[name] = {"c": round(measured.draft_step, 3), "v": [round(v, 3) for v in measured.verify]}
        found = _replies(llm, prompts, params)
        for item, (token_ids, _) in zip(prompts, found, strict=True):
            if replies.setdefault(item.id, token_ids) != token_ids:
                print(f"{name} changes the reply to {item.id}", file=sys.stderr)
                return 1
        rows += [(name, category, *values) for category, values in _by_category(prompts, found, measured)]
    header = ("drafter", "category", "times plain", "acceptance", "mean acceptance length")
    values = [dict(zip(header, row, strict=True)) for row in rows]
    report(
        "Drafters side by side", [table(header, rows)], {"identical": True, "costs": costs, "rows": values}, args.record
    )
    return 0


Found = tuple[tuple[int, ...], list[RoundRecord]]


def _replies(llm: LLM, prompts: Sequence[PromptItem], params: SamplingParams) -> list[Found]:
    """The reply to each prompt's first turn, with its rounds."""
    recorder, found = llm.record(), list[Found]()
    for item in prompts:
        begin = len(recorder.rounds)
        done = llm.chat([Message("user", item.turns[0])], params)
        found.append((done.token_ids, recorder.rounds[begin:]))
    return found


def _by_category(
    prompts: Sequence[PromptItem], found: Sequence[Found], costs: CostModel
) -> list[tuple[str, tuple[float, float, float]]]:
    """Tokens for the price of a plain one, acceptance, mean acceptance length; the whole comes last."""
    rows = []
    for category in [*dict.fromkeys(item.category for item in prompts), "all"]:
        chosen = [f for item, f in zip(prompts, found, strict=True) if category in (item.category, "all")]
        rounds = [r for _, part in chosen for r in part]
        tokens = sum(len(token_ids) - 1 for token_ids, _ in chosen)
        drafted, accepted = sum(len(r.drafted) for r in rounds), sum(r.num_accepted for r in rounds)
        drafts = sum(bool(r.drafted) for r in rounds)
        speed = tokens / max(cost_of(rounds, costs), 1e-9)
        rows.append((category, (speed, accepted / max(drafted, 1), 1 + accepted / max(drafts, 1))))
    return rows


if __name__ == "__main__":
    run_script(main)
