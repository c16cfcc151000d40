"""Plain and speculative decoding on this machine, interleaved on the same prompts: what ``make bench`` runs.

    python -m benchmarks.decode [--target REF] [--draft REF|lookup|auto] [--threads N] [--max-new-tokens 128]

Greedy, a batch of one, medians of the repetitions. With no option the default pair runs. Fails when a speculative reply
is not identical to the plain one.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.common import PROMPTS, add_record_option, report, run_script, table
from draftsmith import LLM, Completion, Message, SamplingParams


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="path, hub id or alias")
    parser.add_argument("--draft", default="auto", help="path, hub id, alias, lookup or auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    add_record_option(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, tuple[list[Completion], list[Completion]]]:
    """Plain and speculative replies by prompt category; the first round warms up and is not kept."""
    params = SamplingParams(greedy=True, max_new_tokens=options.max_new_tokens)
    plain = LLM(options.target, draft=None, threads=options.threads)
    engines = (plain, LLM(plain.target, draft=options.draft, threads=options.threads))
    replies: dict[str, tuple[list[Completion], list[Completion]]] = {p.category: ([], []) for p in PROMPTS}
    for turn in range(options.repeat + 1):
        for prompt in PROMPTS:
            for engine, kept in zip(engines, replies[prompt.category], strict=True):
                reply = engine.chat([Message("user", prompt.text)], params)
                if turn > 0:
                    kept.append(reply)
    return replies


def main() -> int:
    """Run, print the table and the JSON line; exit code 1 when a text differs."""
    options = parse()
    rows, prompts, same = [], {}, True
    for category, (plain, drafted) in measure(options).items():
        plain_speed, speed = (statistics.median(r.timing.tokens_per_s for r in some) for some in (plain, drafted))
        identical = all(reply.token_ids == plain[0].token_ids for reply in [*plain, *drafted])
        same = same and identical
        stats = drafted[0].speculation
        rate, length = (stats.acceptance_rate, stats.mean_acceptance_length) if stats else (0.0, 1.0)
        tokens = len(plain[0].token_ids)
        shown = (tokens, plain_speed, speed, speed / plain_speed, rate, length, "yes" if identical else "NO")
        rows.append([category, *shown])
        prompts[category] = {"tokens": tokens, "plain": {"tokens_per_s": plain_speed}} | {
            "speculative": {"tokens_per_s": speed},
            "speedup": speed / plain_speed,
            "identical": identical,
            "acceptance_rate": rate,
            "mean_acceptance_length": length,
        }
    header = ["prompt", "tokens", "plain tokens/s", "speculative tokens/s", "speed-up", "acceptance rate"]
    header += ["mean acceptance length (bonus token included)", "identical"]
    names = {"target": options.target, "draft": options.draft, "threads": options.threads, "repeat": options.repeat}
    result = names | {"prompts": prompts, "identical": same}
    report(f"Plain and speculative: {options.target}, {options.draft}", [table(header, rows)], result, options.record)
    return int(not same)


if __name__ == "__main__":
    run_script(main)
