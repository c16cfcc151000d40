"""Whether ``plan`` tells the truth: its prediction beside what is measured, and its choice beside the best of a sweep.

    python -m benchmarks.plan_accuracy FOLDER --target REF --candidate REF --prompts FILE.jsonl --seconds 160
    python -m benchmarks.plan_accuracy FOLDER --summary

A combination is a target, a candidate and a file of prompts ("built-in" for our own set). It has steps: the plan,
then one speculative run for each draft length. Each call does the steps that are still missing while its seconds last,
and keeps every result in FOLDER, so that a long experiment can be made in short quiet windows. The aim: predictions
within 8 % of the measured speed-up in 9 of 10 combinations, choices within 3 % of the best draft length of the sweep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import add_record_option, report, table
from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.engine import LLM
from draftsmith.measure import load_pair, read_prompts, run_bench, select_prompts
from draftsmith.measure.planning import make_plan
from draftsmith.measure.prompts import PromptItem
from draftsmith.types import SamplingParams

__all__ = ["main", "verdict"]

WITHIN, OF_BEST = 0.08, 0.03


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing of one combination, or tell about all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--candidate")
    parser.add_argument("--prompts", default="built-in")
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--lengths", default="1,2,3,4,6,8", help="draft lengths of the sweep")
    parser.add_argument("--seconds", type=float, default=160.0, help="begin no step after so many")
    parser.add_argument("--summary", action="store_true")
    add_record_option(parser)
    args = parser.parse_args(arguments)
    if args.summary:
        return _tell([json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))], args)
    if not args.target or not args.candidate:
        parser.error("give --target and --candidate, or --summary")
    path = args.folder / (_name(args.target, args.candidate, args.prompts) + ".json")
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"combination": path.stem, "sweep": {}}
    began, longest = time.monotonic(), 0.0
    for name, step in _steps(args, known):
        if longest and time.monotonic() - began + longest > args.seconds:
            print(f"{path.stem}: stopped before {name}; the same command goes on")
            return 0
        started = time.monotonic()
        step()
        longest = max(longest, time.monotonic() - started)
        with atomic_file(path) as file:
            file.write((json.dumps(known, indent=1) + "\n").encode())
    print(f"{path.stem}: complete")
    return 0


def _steps(args: argparse.Namespace, known: dict[str, Any]) -> list[tuple[str, Callable[[], None]]]:
    """What is still to be done, in order; each writes its result into ``known``."""
    file = None if args.prompts == "built-in" else Path(args.prompts)
    items = select_prompts(read_prompts(file), args.limit, args.per_category)
    sampling = SamplingParams(max_new_tokens=args.max_new_tokens, greedy=True)
    steps: list[tuple[str, Callable[[], None]]] = []
    if "plan" not in known:
        steps.append(("the plan", lambda: _plan(args, items, sampling, known)))
    missing = [k for k in map(int, args.lengths.split(",")) if str(k) not in known["sweep"]]
    return steps + [(f"k = {k}", partial(_sweep, args, items, sampling, known, k)) for k in missing]


def _plan(
    args: argparse.Namespace, items: Sequence[PromptItem], sampling: SamplingParams, known: dict[str, Any]
) -> None:
    plan = make_plan(LLM(args.target, "none"), [args.candidate], items, sampling)
    [candidate] = plan.candidates
    known["plan"] = {
        "predicted": {str(k): gain for k, gain in candidate.forecast.by_length.items()},
        "best": candidate.forecast.num_draft_tokens,
        "measured": plan.measured,
    }


def _sweep(
    args: argparse.Namespace, items: Sequence[PromptItem], sampling: SamplingParams, known: dict[str, Any], k: int
) -> None:
    pair = load_pair(args.target, args.candidate, num_draft_tokens=k)
    known["sweep"][str(k)] = run_bench(pair, items, sampling).overall.speedup


def verdict(known: dict[str, Any]) -> dict[str, Any] | None:
    """One combination judged; None while steps are missing. Not to draft at all is a choice too, worth 1."""
    if "plan" not in known or not known["sweep"]:
        return None
    plan, sweep = known["plan"], {int(k): gain for k, gain in known["sweep"].items()}
    predicted = {k: plan["predicted"][str(k)] for k in sweep if str(k) in plan["predicted"]}
    chosen = max(predicted, key=lambda k: predicted[k])
    drafts = predicted[chosen] >= 1
    gained = sweep[chosen] if drafts else 1.0
    best = max(1.0, *sweep.values())
    error = predicted[chosen] / sweep[chosen] - 1
    return {
        "combination": known["combination"], "k": chosen if drafts else 0, "predicted": predicted[chosen],
        "measured": sweep[chosen], "error": error, "best": best, "lost": 1 - gained / best,
        "good": abs(error) <= WITHIN, "chosen_well": 1 - gained / best <= OF_BEST,
    }  # fmt: skip


def _tell(all_known: Sequence[dict[str, Any]], args: argparse.Namespace) -> int:
    judged = [found for known in all_known if (found := verdict(known)) is not None]
    if not judged:
        print(f"{args.folder} holds no combination with a plan and a sweep", file=sys.stderr)
        return 1
    rows = [
        (f["combination"], f["k"], f["predicted"], f["measured"], f"{f['error']:+.1%}", f"{f['lost']:.1%}")
        for f in judged
    ]
    good, well = sum(f["good"] for f in judged), sum(f["chosen_well"] for f in judged)
    told = f"Within {WITHIN:.0%}: {good} of {len(judged)}; choice within {OF_BEST:.0%} of the best: {well}."
    header = ("combination", "k", "predicted", "measured", "error", "lost to the best k")
    result = {"within": good, "chosen_well": well, "combinations": judged}
    report("Predictions of plan", [table(header, rows), told], result, args.record)
    return 0


def _name(*parts: str) -> str:
    return "--".join("+".join(Path(piece).stem for piece in part.split("+")) for part in parts)


if __name__ == "__main__":
    raise SystemExit(main())
