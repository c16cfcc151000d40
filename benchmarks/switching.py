"""What drafting gains or costs many chats, by a server that drafts in every other stretch of its steps.

    python -m benchmarks.switching --target TARGET.gguf [--ours-draft REF] [--sizes 1,4,8,16] [--seconds 90]

Waves of chats that take turns with waves without drafts (``benchmarks.load``) differ by a tenth from one to the next on
a machine that others use, so a few percent are not to be seen. Here one server writes the same chats all the time, and
asks for drafts in every other stretch of so many steps: what slows the machine for longer than a stretch slows both
alike. Clients ask as those of ``benchmarks.load`` do, over the network; the server's log tells what each step took,
with all that lay between it and the one before.

Counted are steps in which all chats write and no prompt is read: those would add the same to both. (Where drafts are
asked for after a stretch without, a draft model reads what it missed, too, so a little of what drafting costs is told
twice.) The ratio: time for a token where nothing is asked for / where drafts are, over pairs of neighbouring stretches,
with a 95 % bootstrap interval over the pairs; more than 1 is faster with drafts.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.load import free_port, in_turn, limits_of, served
from benchmarks.switched_server import Step, read_log
from draftsmith.measure.endpoint import Endpoint, find_endpoint
from draftsmith.measure.prompts import built_in_prompts, read_prompts
from draftsmith.measure.statistics import ratio_interval
from draftsmith.types import Message, SamplingParams

_BETWEEN_S = 0.005  # between two steps while there is work; more is a pause for want of it


@dataclass(frozen=True, slots=True)
class Span:
    """So many chats were under way from ``began`` to ``ended``, by the monotonic clock."""

    size: int
    began: float
    ended: float


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--ours-draft", default="auto", help="what the server drafts with: REF, lookup or auto")
    parser.add_argument("--sizes", default="1,4,8,16", help="chats at once, comma-separated")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each size")
    parser.add_argument("--turns", type=int, default=2, help="times that all sizes are gone through")
    parser.add_argument("--stretch", type=int, default=16, help="steps")
    parser.add_argument("--max-new-tokens", type=int, default=192, help="of a reply at most, on average over all")
    parser.add_argument("--prompts", type=Path, help="a file of prompts; by default the built-in ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=Path, help="where to keep what each step took")
    add_record_option(parser)
    return parser.parse_args()


def chat(endpoint: Endpoint, prompts: Sequence[str], size: int, seconds: float, max_new_tokens: int) -> Span:
    """Keep ``size`` chats under way for so long."""
    limits, numbers, lock = limits_of(1000, max_new_tokens), count(), threading.Lock()
    began = time.monotonic()

    def ask_on() -> None:
        while time.monotonic() < began + seconds:
            with lock:
                i = next(numbers)
            text = f"({size}.{i}.{began:.0f}) {prompts[i % len(prompts)]}"  # begins like none before
            endpoint.ask([Message("user", text)], SamplingParams(greedy=True, max_new_tokens=limits[i % len(limits)]))

    with ThreadPoolExecutor(size) as pool:
        for future in [pool.submit(ask_on) for _ in range(size)]:
            future.result()
    return Span(size, began, began + seconds)


def took(steps: Sequence[Step]) -> list[float]:
    """Seconds that each step took, with what came between it and the one before."""
    before = [None, *steps[:-1]]
    return [
        step.ended - (last.ended if last is not None and step.began - last.ended < _BETWEEN_S else step.began)
        for last, step in zip(before, steps, strict=True)
    ]


def _counts(step: Step, spans: Sequence[Span]) -> bool:
    span = next((span for span in spans if span.began <= step.began and step.ended <= span.ended), None)
    return span is not None and step.texts == span.size and not step.reading


def pairs(steps: Sequence[Step], spans: Sequence[Span]) -> tuple[list[float], list[float], int]:
    """Seconds without drafts and with, of pairs of neighbouring stretches in ``spans`` of one size, for as many tokens
    as both of a pair have written; and how many these are in all.
    """
    seconds: dict[int, float] = defaultdict(float)
    tokens: dict[int, int] = defaultdict(int)
    for step, duration in zip(steps, took(steps), strict=True):
        if _counts(step, spans):
            seconds[step.stretch] += duration
            tokens[step.stretch] += step.tokens
    weights = {i: min(tokens[i], tokens[i + 1]) for i in list(tokens) if i % 2 == 0 and tokens.get(i + 1)}
    plain, drafting = ([w * seconds[i + j] / tokens[i + j] for i, w in weights.items() if w] for j in (1, 0))
    return plain, drafting, sum(weights.values())


def asking(steps: Sequence[Step], spans: Sequence[Span]) -> float:
    """Seconds that a step with as many texts asks and drafts, where that is done, on average."""
    asked = [step.asking_s for step in steps if step.stretch % 2 == 0 and _counts(step, spans)]
    return sum(asked) / max(1, len(asked))


def compare(steps: Sequence[Step], spans: Sequence[Span]) -> list[dict[str, Any]]:
    """A row of figures for each size."""
    rows = []
    for size in sorted({span.size for span in spans}):
        plain, drafting, tokens = pairs(steps, [span for span in spans if span.size == size])
        if not plain:
            raise ValueError(f"there was no pair of stretches with {size} chats; give more --seconds")
        rows.append(
            {
                "size": size,
                "pairs": len(plain),
                "tokens": tokens,
                "asking_s": asking(steps, [span for span in spans if span.size == size]),
                "plain_s": sum(plain) / tokens,
                "drafting_s": sum(drafting) / tokens,
                "drafting_over_plain": sum(plain) / sum(drafting),
                "interval": ratio_interval(plain, drafting),
                "median": median(a / b for a, b in zip(plain, drafting, strict=True)),
            }
        )
    return rows


def main() -> int:
    """Start the server, keep it busy, read its log; print the table and the JSON line."""
    options = parse()
    items = read_prompts(options.prompts) if options.prompts else built_in_prompts()
    asked, port, spans = in_turn(items), free_port(), []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        command = [sys.executable, "-m", "benchmarks.switched_server", str(log), str(options.stretch), "serve"]
        command += ["--target", str(options.target), "--port", str(port), "--draft", options.ours_draft]
        command += ["--threads", str(options.threads), "--no-share-prompts", "--quiet", "--no-access-log"]
        with served(command, port) as (address, _):
            endpoint = find_endpoint(address)
            chat(endpoint, asked, 2, 5.0, options.max_new_tokens)  # wakes weights up; drafts are calibrated
            for _ in range(options.turns):
                for size in map(int, options.sizes.split(",")):
                    seconds = options.seconds / options.turns
                    spans.append(chat(endpoint, asked, size, seconds, options.max_new_tokens))
        rows = compare(read_log(log), spans)
        if options.log is not None:
            shutil.copy(log, options.log)
    lines = [
        [
            row["size"], row["pairs"], 1e3 * row["plain_s"], 1e3 * row["drafting_s"],
            "{:.3f} ({:.3f} to {:.3f})".format(row["drafting_over_plain"], *row["interval"]), f"{row['median']:.3f}",
            1e3 * row["asking_s"],
        ]
        for row in rows
    ]  # fmt: skip
    head = ["chats at once", "pairs of stretches", "plain, ms a token", "drafting, ms a token", "drafting / plain"]
    head += ["median of pairs", "asking and drafting, ms a step"]
    result = {
        "target": options.target.name, "ours_draft": Path(options.ours_draft).name, "stretch": options.stretch,
        "threads": options.threads, "max_new_tokens": options.max_new_tokens, "sizes": rows,
    }  # fmt: skip
    title = f"Many chats, drafting in every other stretch: {options.target.stem}"
    report(
        title,
        [table(head, lines)],
        result,
        options.record,
        files=[options.target],
    )
    return 0


if __name__ == "__main__":
    run_script(main)
