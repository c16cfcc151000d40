"""Several prompts one by one and together, plain and with a drafter: tokens per second of the batched engine.

    python -m benchmarks.batch [--target REF] [--draft REF|lookup|auto] [--sizes 1,4,8] [--max-new-tokens 64]

Greedy, prompts from the built-in set, reading them included; the best of the repetitions, which are interleaved. Fails
when a text written together differs from the one written alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.common import add_record_option, report, table
from draftsmith import LLM, Completion, Message, SamplingParams
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
    """One way of writing the prompts. ``best``: the most tokens per second that were seen."""

    def __init__(self, llm: LLM, *, together: bool) -> None:
        self._llm = llm
        self._together = together
        self.best = 0.0

    def run(self, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> list[Completion]:
        """Write all replies and take the time."""
        began = time.perf_counter()
        if self._together:
            replies = self._llm.generate(prompts, params)
        else:
            replies = [self._llm.generate(prompt, params)[0] for prompt in prompts]
        speed = sum(len(reply.token_ids) for reply in replies) / (time.perf_counter() - began)
        self.best = max(self.best, speed)
        return replies


def measure(options: argparse.Namespace) -> tuple[list[dict[str, float]], bool]:
    """A row of speeds for every size, and whether all texts agree."""
    plain = LLM(options.target, draft=None, threads=options.threads)
    drafted = LLM(plain.target, draft=options.draft, threads=options.threads)
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
                    runner.best = 0.0
        rows.append({"size": size, **{name: runner.best for name, runner in runners.items()}})
    return rows, same


def main() -> int:
    """Run, print the table and the JSON line; exit code 1 when a text differs."""
    options = parse()
    rows, same = measure(options)
    header = ["prompts", "one by one, plain", "together, plain", "gain", "one by one, drafted", "together, drafted"]
    header += ["gain", "drafted / plain, together"]
    shown = []
    for row in rows:
        alone, together, drafted_alone, drafted = (row[name] for name in list(row)[1:])
        gains = (alone, together, together / alone, drafted_alone, drafted, drafted / drafted_alone, drafted / together)
        shown.append([int(row["size"]), *gains])
    result = {"target": options.target, "draft": options.draft, "max_new_tokens": options.max_new_tokens}
    result |= {"tokens_per_s": rows, "identical": same}
    report(f"Prompts together: {options.target}, {options.draft}", [table(header, shown)], result, options.record)
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
