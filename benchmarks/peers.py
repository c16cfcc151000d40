"""draftsmith and llama.cpp on the same GGUF files, prompts and threads, interleaved in one run.

    python -m benchmarks.peers --target TARGET.gguf [--draft DRAFT.gguf] [--threads 2] [--max-new-tokens 128]

Greedy, a fixed number of tokens (end-of-text tokens are written like others), a batch of one. Four ways, run one after
the other for each prompt and repeated, so that a slow minute of the machine meets all of them: plain with each engine
and, with ``--draft``, speculative with each. The median and the best of the repetitions are reported; on a machine that
others use too, the best says more. llama.cpp is driven over its C interface from Python, which costs it about 1 %; its
speculative decoding is the loop of its ``speculative-simple`` example with a fixed draft length. Without the peer's
package only draftsmith runs, and a sentence says so.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import PROMPTS, Reply, add_record_option, report, table
from benchmarks.llama_cpp_peer import LlamaCpp, PeerMissingError, speculate, system_info
from draftsmith import LLM, Message, SamplingParams

Runner = Callable[[Sequence[int]], Reply]  # prompt ids to a reply

CONTEXT = 2048
OURS, OURS_DRAFT = "draftsmith plain", "draftsmith speculative"
THEIRS, THEIRS_DRAFT = "llama.cpp plain", "llama.cpp speculative"


def draftsmith_runner(llm: LLM, num_tokens: int) -> Runner:
    """Greedy decoding with the drafter that ``llm`` has."""
    params = SamplingParams(greedy=True, max_new_tokens=num_tokens, ignore_eos=True)

    def run(prompt_ids: Sequence[int]) -> Reply:
        [done] = llm.generate([prompt_ids], params)
        stats = done.speculation
        counts = (stats.num_draft_tokens, stats.num_accepted_tokens) if stats else (0, 0)
        return Reply(done.token_ids, done.timing.prefill_s, done.timing.decode_s, *counts)

    return run


def llama_cpp_runners(options: argparse.Namespace) -> dict[str, Runner]:
    """Plain and, with a draft, speculative. Raises PeerMissingError."""
    target = LlamaCpp(options.target, threads=options.threads, context=CONTEXT)
    runners: dict[str, Runner] = {THEIRS: lambda ids: target.greedy(ids, options.max_new_tokens)}
    if options.draft is not None:
        draft = LlamaCpp(options.draft, threads=options.threads, context=CONTEXT)
        k = options.peer_draft_tokens
        runners[THEIRS_DRAFT] = lambda ids: speculate(target, draft, ids, options.max_new_tokens, k)
    return runners


def measure(
    runners: dict[str, Runner], prompts: Mapping[str, Sequence[int]], repeat: int
) -> dict[str, dict[str, list[Reply]]]:
    """Replies by prompt category and runner, after one reply of each runner that is not kept (it warms up)."""
    replies: dict[str, dict[str, list[Reply]]] = {category: {name: [] for name in runners} for category in prompts}
    for run in runners.values():
        run(next(iter(prompts.values())))
    for turn in range(repeat):
        for category, prompt_ids in prompts.items():
            for name, run in runners.items():
                reply = run(prompt_ids)
                replies[category][name].append(reply)
                print(f"  {turn + 1}/{repeat} {category}, {name}: {reply.tokens_per_s:.1f} tokens/s", file=sys.stderr)
    return replies


def _same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two replies have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def summary(replies: Mapping[str, Mapping[str, list[Reply]]]) -> dict[str, dict[str, Any]]:
    """Per prompt: speeds and acceptance of each runner, and how far the texts agree."""
    result: dict[str, dict[str, Any]] = {}
    for category, by_name in replies.items():
        ours = by_name[OURS][0].token_ids
        row: dict[str, Any] = {"runners": {name: _speeds(some) for name, some in by_name.items()}}
        if OURS_DRAFT in by_name:
            row["identical"] = all(reply.token_ids == ours for reply in by_name[OURS_DRAFT])
        if THEIRS in by_name:
            row["tokens_in_common_with_llama_cpp"] = _same_start(ours, by_name[THEIRS][0].token_ids)
        result[category] = row
    return result


def _speeds(replies: Sequence[Reply]) -> dict[str, float]:
    speeds = [reply.tokens_per_s for reply in replies]
    row = {"median_tokens_per_s": statistics.median(speeds), "best_tokens_per_s": max(speeds)}
    drafted = sum(reply.num_draft_tokens for reply in replies)
    if drafted:
        row["acceptance_rate"] = sum(reply.num_accepted_tokens for reply in replies) / drafted
    return row


def shown(result: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tables for people."""
    rows: list[list[object]] = []
    for category, row in result.items():
        for name, speeds in row["runners"].items():
            rate = speeds.get("acceptance_rate")
            median, best = speeds["median_tokens_per_s"], speeds["best_tokens_per_s"]
            rows.append([category, name, median, best, "" if rate is None else f"{rate:.0%}"])
    parts = [table(["prompt", "engine", "median tokens/s", "best tokens/s", "accepted"], rows)]
    same = [row["identical"] for row in result.values() if "identical" in row]
    if same:
        parts.append(f"draftsmith's two texts are identical: {'yes' if all(same) else 'NO'}.")
    common = {category: row.get("tokens_in_common_with_llama_cpp") for category, row in result.items()}
    if any(count is not None for count in common.values()):
        listed = ", ".join(f"{category} {count}" for category, count in common.items())
        parts.append(f"Tokens before the first that differs from llama.cpp's: {listed}.")
    return parts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True, help="a .gguf file")
    parser.add_argument("--draft", type=Path, help="a .gguf file with the same vocabulary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--peer-draft-tokens", type=int, default=3, help="llama.cpp's draft length (default 3, its own)"
    )
    add_record_option(parser)
    return parser.parse_args(arguments)


def main() -> int:
    """Run, print the tables and the JSON line."""
    options = parse()
    plain = LLM(options.target, draft=None, threads=options.threads, max_context=CONTEXT)
    prompts = {p.category: plain.prompt_format.encode([Message("user", p.text)]).token_ids for p in PROMPTS}
    runners: dict[str, Runner] = {OURS: draftsmith_runner(plain, options.max_new_tokens)}
    if options.draft is not None:
        drafted = LLM(plain.target, draft=options.draft, threads=options.threads, max_context=CONTEXT)
        runners[OURS_DRAFT] = draftsmith_runner(drafted, options.max_new_tokens)
    peer = None
    try:
        runners |= llama_cpp_runners(options)
        peer = system_info()
        print(f"llama.cpp: {peer}", file=sys.stderr)
    except PeerMissingError as error:
        print(error, file=sys.stderr)
    result = summary(measure(runners, prompts, options.repeat))
    pair = options.target.name + (f" with {options.draft.name}" if options.draft else "")
    how = f"{pair}, {options.threads} threads, {options.max_new_tokens} tokens, {options.repeat} repetitions."
    names = {"target": options.target.name, "draft": options.draft.name if options.draft else None}
    settings = {"threads": options.threads, "max_new_tokens": options.max_new_tokens, "repeat": options.repeat}
    report(
        f"Decoding beside llama.cpp: {pair}",
        [how, *shown(result), f"llama.cpp's build: {peer or 'not installed'}"],
        {**names, **settings, "prompts": result, "llama_cpp": peer},
        options.record,
        files=[options.target, *([options.draft] if options.draft else [])],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
