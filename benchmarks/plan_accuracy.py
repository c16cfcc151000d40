"""Whether ``plan`` tells the truth: its prediction beside what is measured, and its choice beside the best of a sweep.

    python -m benchmarks.plan_accuracy FOLDER --target REF --candidate REF --prompts FILE.jsonl --seconds 160
    python -m benchmarks.plan_accuracy FOLDER --summary

A combination is a target, a candidate and a file of prompts ("built-in" for our own set). It has turns. In each, a plan
is made, and the prompts are answered plainly, at every draft length in turn, and with lengths chosen round by round
(auto, which goes on with what it has learnt), ``--repeats`` times: of what a reply took, the shortest counts, for
others on the machine can only make it longer. And it is another machine a minute later, so the two go on together:
before each of the moments in which the plan times steps, some of the prompts are answered. The plan's prediction is
compared with the replies of its turn, and what it tells to use (a length, auto, or no draft) with the best over all
turns; of the turns the medians count.
The quickest of seven ways that differ by less than a measurement does is a matter of luck, and looks quicker than it
is. So what a plan chose and every way nearly as quick as the best can go on alone: ``--finals`` more passes, each way
once on every prompt, in turn. Of each reply the quicker half of the passes counts, by its mean, which varies less than
the median. Then they say what is best, and what the choice loses to it, with a 95 % interval (bootstrap over passes).
Each call does the turns that are still missing while its seconds last, and keeps every result in FOLDER, so that a long
experiment can be made in short quiet windows. The aim: predictions within 8 % of the measured speed-up in 9 of 10
combinations, choices within 3 % of the best.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.engine import LLM, EngineOptions
from draftsmith.engine.loading import load_drafter
from draftsmith.errors import UsageError
from draftsmith.measure import read_prompts, select_prompts
from draftsmith.measure.conversation import forget_caches
from draftsmith.measure.planning import make_plan
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.statistics import Interval
from draftsmith.types import Message, SamplingParams

__all__ = ["contenders", "judge_turn", "lost_interval", "main", "settle", "sweep", "verdict"]

WITHIN, OF_BEST = 0.08, 0.03
_RESAMPLES, _ENOUGH_PASSES = 500, 5  # for an interval
NEARLY = 0.08  # of the sweep's best: the ways that stay for the finals


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
    parser.add_argument("--turns", type=int, default=3, help="plans, each with its own pass over the prompts")
    parser.add_argument("--repeats", type=int, default=3, help="of every reply in a pass, of which the quickest counts")
    parser.add_argument("--finals", type=int, default=0, help="passes of the best ways alone, after all turns")
    parser.add_argument("--seconds", type=float, default=160.0, help="begin no turn and no pass after so many")
    parser.add_argument("--summary", action="store_true")
    add_record_option(parser)
    args = parser.parse_args(arguments)
    if args.summary:
        return _tell([json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))], args)
    if not args.target or not args.candidate:
        parser.error("give --target and --candidate, or --summary")
    path = args.folder / (_name(args.target, args.candidate, args.prompts) + ".json")
    known: dict[str, Any] = (
        json.loads(path.read_text()) if path.exists() else {"combination": path.stem, "plans": [], "passes": []}
    )
    file = None if args.prompts == "built-in" else Path(args.prompts)
    items = select_prompts(read_prompts(file), args.limit, args.per_category)
    if known.setdefault("finals", []) and len(known["plans"]) < args.turns:
        raise UsageError(f"{path} has finals already, which no turn can follow; give another folder")
    if args.finals and not args.turns and not known["plans"]:
        raise UsageError("finals are of the best ways of a turn; give --turns")
    began, longest = time.monotonic(), {"turn": 0.0, "final": 0.0}
    for kind, number, do in _work(args, items, known):
        started = time.monotonic()
        if longest[kind] and started - began + longest[kind] > args.seconds:
            print(f"{path.stem}: stopped before {kind} {number}; the same command goes on")
            return 0
        do()
        longest[kind] = max(longest[kind], time.monotonic() - started)
        _keep(path, known)
    print(f"{path.stem}: complete")
    return 0


def _keep(path: Path, known: Mapping[str, Any]) -> None:
    with atomic_file(path) as written:
        written.write((json.dumps(known, indent=1) + "\n").encode())


def _work(
    args: argparse.Namespace, items: Sequence[PromptItem], known: dict[str, Any]
) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """What is missing of the experiment, piece by piece: a turn or a final, its number, and how to do it."""
    for number in range(len(known["plans"]) + 1, args.turns + 1):
        yield "turn", number, partial(_turn, args, items, known)
    missing = range(len(known["finals"]) + 1, args.finals + 1)
    ways = _finalists(args, items[0], known) if missing else {}
    for number in missing:
        yield "final", number, partial(_final, args, items, known, ways)


def _turn(args: argparse.Namespace, items: Sequence[PromptItem], known: dict[str, Any]) -> None:
    """A plan, and a pass over the prompts in between; both are written into ``known``."""
    sampling = _sampling(args)
    answers: dict[str, dict[str, tuple[float, int]]] = {}
    answering = _pass(args, items, sampling, len(known["passes"]), answers)
    next(answering)  # loads and warms up

    def go_on(done: int, moments: int, what: str) -> None:
        if what.startswith("timing rounds"):
            for _ in islice(answering, math.ceil(len(items) * (done + 1) / moments) - len(answers["0"])):
                pass

    plan = make_plan(LLM(args.target, "none"), [args.candidate], items, sampling, report=go_on)
    for _ in answering:
        pass
    [candidate] = plan.candidates
    known["plans"].append(
        {
            "choice": "0" if plan.best is None else "auto" if candidate.use_auto else "k",
            "predicted": {str(k): gain for k, gain in candidate.forecast.by_length.items()},
            "best": candidate.forecast.num_draft_tokens,
            "measured": candidate.measured,
            "measured_auto": candidate.measured_auto,
            "plain_step_s": candidate.costs.plain_s,
            "draft_cost_c": candidate.costs.draft_cost,
            "draft_call_cost": candidate.costs.draft_call,
            "round_factor": candidate.costs.round_factor,
            "verify_cost_v": {str(size): cost for size, cost in candidate.costs.verify.items()},
        }
    )
    known["passes"].append(answers)


def _pass(
    args: argparse.Namespace,
    items: Sequence[PromptItem],
    sampling: SamplingParams,
    number: int,
    answers: dict[str, dict[str, tuple[float, int]]],
) -> Iterator[None]:
    """Seconds and tokens of every prompt, by draft length or auto, into ``answers``; 0 is plain. One prompt at a time.

    Who begins moves on all the time. Before all others the first prompt is answered once, to warm up.
    """
    ways = _ways(args, args.lengths.split(","))
    answers |= {k: {} for k in ways}
    _in_turn(ways, items[0], sampling, 0)
    yield
    for place, item in enumerate(items):
        spent = [_in_turn(ways, item, sampling, place + number + again) for again in range(args.repeats)]
        for k in ways:
            answers[k][item.id] = (min(one[k][0] for one in spent), spent[0][k][1])
        yield


def _finalists(args: argparse.Namespace, item: PromptItem, known: Mapping[str, Any]) -> dict[str, LLM]:
    """Plain, auto, and the draft lengths among the contenders, the same in all finals of a combination; warmed up."""
    named = known["finals"][0] if known["finals"] else contenders(known)
    ways = _ways(args, sorted((k for k in named if k not in ("0", "auto")), key=int))
    _in_turn(ways, item, _sampling(args), 0)
    return ways


def _final(
    args: argparse.Namespace, items: Sequence[PromptItem], known: dict[str, Any], ways: Mapping[str, LLM]
) -> None:
    """One more pass, in which every prompt is answered once, into ``known``."""
    number = len(known["finals"])
    spent = {item.id: _in_turn(ways, item, _sampling(args), place + number) for place, item in enumerate(items)}
    known["finals"].append({k: {name: one[k] for name, one in spent.items()} for k in ways})


def _sampling(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(max_new_tokens=args.max_new_tokens, greedy=True)


def _ways(args: argparse.Namespace, lengths: Sequence[str]) -> dict[str, LLM]:
    """Plain ("0"), auto and some draft lengths, all with one target and one drafter."""
    target = LLM(args.target, "none")
    drafter = load_drafter(args.candidate, target.target, EngineOptions())
    if drafter is None:
        raise UsageError(f"the candidate is {args.candidate}; name a drafter")
    ways = {"0": target, "auto": LLM(target.target, args.candidate)}
    return ways | {k: LLM(target.target, drafter.drafter, num_draft_tokens=int(k)) for k in lengths}


def _in_turn(
    ways: Mapping[str, LLM], item: PromptItem, sampling: SamplingParams, first: int
) -> dict[str, tuple[float, int]]:
    """Seconds and tokens of the replies to one prompt by every way in turn, the one at ``first`` beginning."""
    order = list(ways)[first % len(ways) :] + list(ways)[: first % len(ways)]
    messages: list[Message] = []
    spent = dict.fromkeys(order, (0.0, 0))
    for llm in ways.values():
        forget_caches(llm)
    for text in item.turns:
        messages.append(Message("user", text))
        replies = {k: ways[k].chat(messages, sampling) for k in order}
        for k, reply in replies.items():
            seconds, tokens = spent[k]
            spent[k] = (seconds + reply.timing.decode_s, tokens + reply.timing.num_decoded)
        messages.append(Message("assistant", replies["0"].text))
    return spent


Passes = Sequence[Mapping[str, Mapping[str, Sequence[float]]]]
"""Of each pass, by way and prompt: seconds and tokens."""


def sweep(passes: Passes) -> dict[str, float]:
    """The speed-up of every way over plain, which is "0": tokens / seconds, which are medians over the passes."""
    return _speedups(passes, median)


def settle(finals: Passes) -> dict[str, float]:
    """As ``sweep``, of the finals: the quicker half of the passes counts, reply by reply."""
    return _speedups(finals, lambda seconds: fmean(sorted(seconds)[: (len(seconds) + 1) // 2]))


def _speedups(passes: Passes, typical: Callable[[Sequence[float]], float]) -> dict[str, float]:
    def rate(k: str) -> float:
        seconds = sum(typical([one[k][name][0] for one in passes]) for name in passes[0][k])
        return sum(tokens for _, tokens in passes[0][k].values()) / seconds

    return {k: rate(k) / rate("0") for k in passes[0]}


def contenders(known: Mapping[str, Any]) -> set[str]:
    """What the plans chose, and the ways that the sweep found nearly as quick as its best."""
    swept = sweep(known["passes"])
    chosen = {_choice(plan, swept) for plan in known["plans"]}
    return chosen | {way for way, gain in swept.items() if gain >= (1 - NEARLY) * max(swept.values())}


def _length(plan: Mapping[str, Any], swept: Mapping[str, float]) -> str:
    predicted: Mapping[str, float] = plan["predicted"]
    return max((k for k in predicted if k in swept), key=lambda k: predicted[k])


def _choice(plan: Mapping[str, Any], swept: Mapping[str, float]) -> str:
    return _length(plan, swept) if plan["choice"] == "k" else str(plan["choice"])


def lost_interval(finals: Passes, choices: Sequence[str]) -> Interval | None:
    """What ``choices`` lose to the best, by the median: 95 % interval, resampling the passes; None if they are few."""
    if len(finals) < _ENOUGH_PASSES:
        return None
    picks = np.random.default_rng(0).integers(0, len(finals), (_RESAMPLES, len(finals)))
    lost = []
    for pick in picks:
        settled = settle([finals[i] for i in pick])
        lost.append(median(1 - settled[choice] / max(settled.values()) for choice in choices))
    low, high = np.quantile(lost, [0.025, 0.975])
    return float(low), float(high)


def judge_turn(
    plan: Mapping[str, Any], its_pass: Mapping[str, Any], swept: Mapping[str, float], settled: Mapping[str, float]
) -> tuple[dict[str, Any], float, float]:
    """What one plan said and gave; its error, by the pass of its turn; and what its choice loses to the best.

    ``told``: the speed-up that the plan measured of its choice and tells to expect; ``given``: that of the pass.

    ``swept``: the speed-up of every way over all passes. Not to draft at all is a choice too, worth 1.
    ``settled``: the same, of the finals, if there were any.
    """
    k, choice = _length(plan, swept), _choice(plan, swept)
    measured = sweep([its_pass])[k]
    told = {"0": 1.0, "auto": plan.get("measured_auto")}.get(choice, plan.get("measured"))
    said = {"k": int(k), "predicted": plan["predicted"][k], "measured": measured}
    said |= {"choice": choice, "told": told, "given": sweep([its_pass])[choice]}
    return said, plan["predicted"][k] / measured - 1, 1 - settled[choice] / max(settled.values())


def verdict(known: dict[str, Any]) -> dict[str, Any] | None:
    """One combination judged, by the medians of its turns, errors without their signs; None while there is none."""
    if not known["plans"] or not known["passes"]:
        return None
    swept = sweep(known["passes"])
    finals = known.get("finals")
    settled = settle(finals) if finals else swept
    pairs = zip(known["plans"], known["passes"], strict=False)
    turns = [judge_turn(plan, its, swept, settled) for plan, its in pairs]
    error, lost = median(abs(error) for _, error, _ in turns), median(lost for *_, lost in turns)
    best = max(settled, key=lambda way: settled[way])
    return {
        "combination": known["combination"], "turns": [said for said, *_ in turns], "error": error,
        "best": best, "best_speedup": settled[best], "auto": settled["auto"], "finals": len(finals or ()),
        "speedups": settled, "lost_ci95": lost_interval(finals or (), [said["choice"] for said, *_ in turns]),
        "lost": lost, "good": error <= WITHIN, "chosen_well": lost <= OF_BEST,
    }  # fmt: skip


def _tell(all_known: Sequence[dict[str, Any]], args: argparse.Namespace) -> int:
    judged = [found for known in all_known if (found := verdict(known)) is not None]
    if not judged:
        print(f"{args.folder} holds no combination with a plan and a sweep", file=sys.stderr)
        return 1
    rows = [
        (
            f["combination"],
            "; ".join(f"k = {t['k']}: {t['predicted']:.2f} / {t['measured']:.2f}" for t in f["turns"]),
            f"{f['error']:.1%}",
            "; ".join(f"{t['choice']}: {t['told']:.2f} / {t['given']:.2f}" for t in f["turns"] if t["told"]),
            f"{f['best_speedup']:.2f} ({f['best']})",
            f["auto"],
            f"{f['lost']:.1%}" + (" [{:.1%}, {:.1%}]".format(*f["lost_ci95"]) if f["lost_ci95"] else ""),
            f["finals"],
        )
        for f in judged
    ]
    good, well = sum(f["good"] for f in judged), sum(f["chosen_well"] for f in judged)
    told = f"Within {WITHIN:.0%}: {good} of {len(judged)}; choice within {OF_BEST:.0%} of the best: {well}."
    header = ("combination", "predicted / measured", "error", "use: told / given", "best", "auto", "lost", "finals")
    result = {"within": good, "chosen_well": well, "combinations": judged}
    report("Predictions of plan", [table(header, rows), told], result, args.record)
    return 0


def _name(*parts: str) -> str:
    return "--".join("+".join(Path(piece).stem for piece in part.split("+")) for part in parts)


if __name__ == "__main__":
    run_script(main)
