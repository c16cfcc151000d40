"""Several prompts one by one and together, plain and with a drafter: tokens per second of the batched engine.

    python -m benchmarks.batch [--target REF] [--draft REF|lookup|auto] [--sizes 1,4,8] [--max-new-tokens 64]

Greedy, prompts from the built-in set, reading them included; medians of the repetitions, which are interleaved, and of
the ratios within one repetition. A draft ``shuffled:REF`` costs what REF costs and is never right. Fails when a text
written together differs from the one written alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.policy import load_shuffled
from draftsmith import LLM, Completion, Message, SamplingParams
from draftsmith.engine.loading import LoadedModel
from draftsmith.engine.options import EngineOptions
from draftsmith.measure.prompts import built_in_prompts, select_prompts


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="path, hub id or alias")
    parser.add_argument("--draft", default="auto", help="path, hub id, alias, lookup or auto")
    parser.add_argument("--sizes", default="1,4,8", help="how many prompts, comma-separated")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    add_record_option(parser)
    return parser.parse_args()


class Runner:
    """One way of writing the prompts. ``speeds``: tokens per second, turn by turn."""

    def __init__(self, llm: LLM, *, together: bool) -> None:
        self._llm = llm
        self._together = together
        self.speeds: list[float] = []

    def run(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """Write all replies and take the time."""
        began = time.perf_counter()
        if self._together:
            replies = self._llm.generate(prompts, params)
        else:
            replies = [self._llm.generate(prompt, params)[0] for prompt in prompts]
        self.speeds.append(sum(len(reply.token_ids) for reply in replies) / (time.perf_counter() - began))
        return replies

    def times(self, other: Runner) -> float:
        """How many times as fast as ``other``, in a median turn."""
        return median(one / two for one, two in zip(self.speeds, other.speeds, strict=True))


def measure(options: argparse.Namespace) -> tuple[list[dict[str, float]], bool]:
    """A row of speeds for every size, and whether all texts agree."""
    plain = LLM(options.target, draft=None, threads=options.threads)
    draft: str | LoadedModel = options.draft
    if options.draft.startswith("shuffled:"):
        draft = load_shuffled(options.draft.removeprefix("shuffled:"), EngineOptions(threads=options.threads))
    drafted = LLM(plain.target, draft=draft, threads=options.threads)
    params = SamplingParams(greedy=True, max_new_tokens=options.max_new_tokens)
    sizes = [int(size) for size in options.sizes.split(",")]
    items = select_prompts(built_in_prompts(), limit=max(sizes))
    ids = [plain.prompt_format.encode([Message("user", item.turns[0])]).token_ids for item in items]
    rows, same = [], True
    for size in sizes:
        runners = {
            "alone": Runner(plain, together=False),
            "together": Runner(plain, together=True),
            "drafted_alone": Runner(drafted, together=False),
            "drafted_together": Runner(drafted, together=True),
        }
        for turn in range(options.repeat + 1):
            texts = [[r.token_ids for r in runner.run(ids[:size], params)] for runner in runners.values()]
            same = same and all(text == texts[0] for text in texts)
            if turn == 0:  # a round that warms up and measures costs
                for runner in runners.values():
                    runner.speeds.clear()
        row = {name: median(runner.speeds) for name, runner in runners.items()}
        gains = {
            "plain gain": runners["together"].times(runners["alone"]),
            "drafted gain": runners["drafted_together"].times(runners["drafted_alone"]),
            "drafted / plain alone": runners["drafted_alone"].times(runners["alone"]),
            "drafted / plain": runners["drafted_together"].times(runners["together"]),
        }
        rows.append({"size": size, **row, **gains})
    return rows, same


def main() -> int:
    """Run, print the table and the JSON line; exit code 1 when a text differs."""
    options = parse()
    rows, same = measure(options)
    header = ["prompts", "one by one, plain", "together, plain", "one by one, drafted", "together, drafted"]
    header += ["together / one by one, plain", "the same, drafted", "drafted / plain, one by one", "the same, together"]
    shown = [[int(row["size"]), *list(row.values())[1:]] for row in rows]
    result = {"target": options.target, "draft": options.draft, "max_new_tokens": options.max_new_tokens}
    result |= {"tokens_per_s": rows, "identical": same}
    report(f"Prompts together: {options.target}, {options.draft}", [table(header, shown)], result, options.record)
    return int(not same)


if __name__ == "__main__":
    run_script(main)
