"""draftsmith and its peers on the same GGUF files, prompts and threads, interleaved in one run.

    python -m benchmarks.peers --target TARGET.gguf [--draft DRAFT.gguf] [--peers llama.cpp,ik_llama.cpp,...]
                               [--prompts FILE.jsonl --per-category 20] [--threads 2] [--max-new-tokens 128]

Greedy, a fixed number of tokens (end-of-text tokens are written like others), a batch of one. Every engine lives in a
process of its own; they answer one after the other, prompt by prompt and repeated, so that a slow minute of the machine
meets all of them. The median and the best of the speeds are reported; on a machine that others use too, the best says
more. The speed-up is the mean over the prompts of speed / draftsmith's plain speed. llama.cpp is driven over its C
interface from Python, which costs it about 1 %; its speculative decoding is the loop of its ``speculative-simple``
example with a fixed draft length. A peer whose package is missing is left out, and a sentence says so.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import PROMPTS, PeerMissingError, Reply, add_record_option, report, run_script, table
from benchmarks.workers import Runner, Worker
from draftsmith.checkpoint import open_checkpoint
from draftsmith.measure.prompts import read_prompts, select_prompts
from draftsmith.text import choose_format
from draftsmith.types import Message

CONTEXT = 2048
OURS, OURS_DRAFT = "draftsmith plain", "draftsmith speculative"
THEIRS, THEIRS_DRAFT = "llama.cpp plain", "llama.cpp speculative"


@dataclass(frozen=True, slots=True)
class Setting:
    """What every engine is given alike, but for llama.cpp's draft length and for what draftsmith drafts with."""

    target: Path
    draft: Path | None
    threads: int
    num_tokens: int
    peer_draft_tokens: int
    drafter: str | None = None  # draftsmith's, where it is not the draft alone
    other_targets: tuple[Path, ...] = ()


def make_draftsmith(setting: Setting) -> dict[str, Runner]:
    """Plain and, with a draft, speculative with the automatic draft length."""
    from draftsmith import LLM, SamplingParams

    params = SamplingParams(greedy=True, max_new_tokens=setting.num_tokens, ignore_eos=True)

    def runner(llm: LLM) -> Runner:
        def run(prompt_ids: Sequence[int]) -> Reply:
            [done] = llm.generate([prompt_ids], params)
            stats = done.speculation
            counts = (stats.num_draft_tokens, stats.num_accepted_tokens) if stats else (0, 0)
            return Reply(done.token_ids, done.timing.prefill_s, done.timing.decode_s, *counts)

        return run

    plain = LLM(setting.target, draft=None, threads=setting.threads, max_context=CONTEXT)
    runners = {OURS: runner(plain)}
    if setting.draft is not None:
        drafted = LLM(
            plain.target, draft=setting.drafter or setting.draft, threads=setting.threads, max_context=CONTEXT
        )
        runners[OURS_DRAFT] = runner(drafted)
    return runners


def make_llama_cpp(setting: Setting) -> dict[str, Runner]:
    """Plain, also with the other quantisations, and with a draft speculative."""
    return _like_llama_cpp(setting, "llama.cpp")


def make_ik_llama_cpp(setting: Setting) -> dict[str, Runner]:
    """The same for the fork."""
    return _like_llama_cpp(setting, "ik_llama.cpp")


def _like_llama_cpp(setting: Setting, peer: str) -> dict[str, Runner]:
    from benchmarks.llama_cpp_peer import LlamaCpp, speculate, system_info

    def load(path: Path) -> LlamaCpp:
        return LlamaCpp(path, threads=setting.threads, context=CONTEXT, peer=peer)

    def plain(model: LlamaCpp) -> Runner:
        return lambda ids: model.greedy(ids, setting.num_tokens)

    print(f"{peer}: {system_info(peer)}", file=sys.stderr)
    target = load(setting.target)
    runners = {f"{peer} plain": plain(target)}
    for path in setting.other_targets:
        runners[f"{peer} plain, {path.stem}"] = plain(load(path))
    if setting.draft is not None:
        draft, k = load(setting.draft), setting.peer_draft_tokens
        runners[f"{peer} speculative"] = lambda ids: speculate(target, draft, ids, setting.num_tokens, k)
    return runners


def make_openvino(setting: Setting) -> dict[str, Runner]:
    """Plain, and with its own prompt lookup: it takes no GGUF draft with blocks that it does not know."""
    from benchmarks.openvino_peer import OpenVino

    plain = OpenVino(setting.target, threads=setting.threads)
    lookup = OpenVino(setting.target, threads=setting.threads, prompt_lookup=True)
    return {
        "OpenVINO plain": lambda ids: plain.greedy(ids, setting.num_tokens),
        "OpenVINO prompt lookup": lambda ids: lookup.greedy(ids, setting.num_tokens),
    }


def make_transformers(setting: Setting) -> dict[str, Runner]:
    """Plain and, with a draft, assisted; in bfloat16."""
    from benchmarks.transformers_peer import Transformers

    model = Transformers(setting.target, setting.draft, threads=setting.threads)
    runners: dict[str, Runner] = {"transformers plain": lambda ids: model.greedy(ids, setting.num_tokens)}
    if setting.draft is not None:
        runners["transformers assisted"] = lambda ids: model.greedy(ids, setting.num_tokens, assisted=True)
    return runners


PACKAGES = ("llama-cpp-python", "ik-llama-cpp-python", "openvino-genai", "transformers", "torch")
PEERS: dict[str, Callable[[Setting], dict[str, Runner]]] = {
    "llama.cpp": make_llama_cpp,
    "ik_llama.cpp": make_ik_llama_cpp,
    "openvino": make_openvino,
    "transformers": make_transformers,
}


def measure(
    runners: Mapping[str, Runner], prompts: Sequence[tuple[str, Sequence[int]]], repeat: int
) -> dict[str, dict[str, list[Reply]]]:
    """Replies by category and runner, in the same order for every runner, after one that is not kept (a warm-up)."""
    replies: dict[str, dict[str, list[Reply]]] = {category: {name: [] for name in runners} for category, _ in prompts}
    for run in runners.values():
        run(prompts[0][1])
    for turn in range(repeat):
        for number, (category, prompt_ids) in enumerate(prompts, start=1):
            for name, run in runners.items():
                reply = run(prompt_ids)
                replies[category][name].append(reply)
                where = f"{turn + 1}/{repeat} {category}, prompt {number}"
                print(f"  {where}, {name}: {reply.tokens_per_s:.1f} tokens/s", file=sys.stderr)
    return replies


def _same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two replies have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def summary(replies: Mapping[str, Mapping[str, list[Reply]]]) -> dict[str, dict[str, Any]]:
    """Per category: speeds, speed-up and acceptance of each runner, and how far the texts agree."""
    result: dict[str, dict[str, Any]] = {}
    for category, by_name in replies.items():
        ours = by_name[OURS]
        row: dict[str, Any] = {"runners": {name: _speeds(some, ours) for name, some in by_name.items()}}
        if OURS_DRAFT in by_name:
            pairs = zip(ours, by_name[OURS_DRAFT], strict=True)
            row["identical"] = all(plain.token_ids == drafted.token_ids for plain, drafted in pairs)
        if THEIRS in by_name:
            pairs = zip(ours, by_name[THEIRS], strict=True)
            common = [_same_start(one.token_ids, other.token_ids) for one, other in pairs]
            row["tokens_in_common_with_llama_cpp"] = statistics.median(common)
        result[category] = row
    return result


def _speeds(replies: Sequence[Reply], plain: Sequence[Reply]) -> dict[str, float]:
    speeds = [reply.tokens_per_s for reply in replies]
    ratios = [reply.tokens_per_s / base.tokens_per_s for reply, base in zip(replies, plain, strict=True)]
    row = {"median_tokens_per_s": statistics.median(speeds), "best_tokens_per_s": max(speeds)}
    row |= {"speedup": statistics.mean(ratios), "worst_speedup": min(ratios)}
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
            cells = [speeds[key] for key in ("median_tokens_per_s", "best_tokens_per_s", "speedup", "worst_speedup")]
            rows.append([category, name, *cells, "" if rate is None else f"{rate:.0%}"])
    header = ["prompts", "engine", "median tokens/s", "best tokens/s", "x our plain", "worst", "accepted"]
    parts = [table(header, rows)]
    same = [row["identical"] for row in result.values() if "identical" in row]
    if same:
        parts.append(f"draftsmith's two texts are identical: {'yes' if all(same) else 'NO'}.")
    common = {category: row.get("tokens_in_common_with_llama_cpp") for category, row in result.items()}
    if any(count is not None for count in common.values()):
        listed = ", ".join(f"{category} {count:g}" for category, count in common.items())
        parts.append(f"Tokens before the first that differs from llama.cpp's (median): {listed}.")
    return parts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True, help="a .gguf file")
    parser.add_argument("--draft", type=Path, help="a .gguf file with the same vocabulary")
    parser.add_argument(
        "--lookup", action="store_true", help="draftsmith drafts with the mix of draft and prompt lookup"
    )
    parser.add_argument("--peers", default=",".join(PEERS), help="which to run beside (default: %(default)s)")
    parser.add_argument(
        "--peer-target",
        type=Path,
        action="append",
        default=[],
        help="the target in another quantisation, for llama.cpp",
    )
    parser.add_argument("--prompts", type=Path, help="a .jsonl file; without it three prompts are asked")
    parser.add_argument("--per-category", type=int, metavar="N", help="the first N prompts of each category")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--peer-draft-tokens", type=int, default=3, help="llama.cpp's draft length (default 3, its own)"
    )
    add_record_option(parser)
    options = parser.parse_args(arguments)
    options.peers = [name for name in options.peers.split(",") if name]
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"there is no peer {sorted(unknown)[0]!r}; there are {', '.join(PEERS)}")
    return options


def encoded_prompts(options: argparse.Namespace) -> list[tuple[str, Sequence[int]]]:
    """Category and ids of every prompt, in the target's own chat format."""
    with open_checkpoint(options.target) as checkpoint:
        prompt_format = choose_format(checkpoint.tokenizer(), None)
    texts = [(prompt.category, prompt.text) for prompt in PROMPTS]
    if options.prompts is not None:
        items = select_prompts(read_prompts(options.prompts), None, options.per_category)
        texts = [(item.category, item.turns[0]) for item in items]
    encoded = [(category, prompt_format.encode([Message("user", text)]).token_ids) for category, text in texts]
    return [(category, ids) for category, ids in encoded if len(ids) + options.max_new_tokens < CONTEXT]


def main() -> int:
    """Run, print the tables and the JSON line."""
    options = parse()
    others = tuple(options.peer_target)
    setting = Setting(
        options.target,
        options.draft,
        options.threads,
        options.max_new_tokens,
        options.peer_draft_tokens,
        f"{options.draft}+lookup" if options.draft and options.lookup else None,
        others,
    )
    prompts = encoded_prompts(options)
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        runners = dict(stack.enter_context(Worker(make_draftsmith, setting=setting)).runners)
        for name in options.peers:
            try:
                runners |= stack.enter_context(Worker(PEERS[name], setting=setting)).runners
            except PeerMissingError as error:
                left_out[name] = str(error)
                print(error, file=sys.stderr)
        result = summary(measure(runners, prompts, options.repeat))
    pair = options.target.name + (f" with {options.draft.name}" if options.draft else "")
    how = f"{pair}, {options.threads} threads, {options.max_new_tokens} tokens, {options.repeat} repetitions, "
    how += "draftsmith's drafter: draft + prompt lookup, " if setting.drafter else ""
    how += f"{len(prompts)} prompts. x our plain: the mean, over prompts, of speed / draftsmith's plain speed."
    names = {"target": options.target.name, "draft": options.draft.name if options.draft else None}
    settings = {
        "threads": options.threads,
        "max_new_tokens": options.max_new_tokens,
        "repeat": options.repeat,
        "lookup": options.lookup,
    }
    missing = [f"Left out: {reason}" for reason in left_out.values()]
    report(
        f"Decoding beside other engines: {pair}",
        [how, *shown(result), *missing],
        {**names, **settings, "num_prompts": len(prompts), "prompts": result, "left_out": left_out},
        options.record,
        files=[options.target, *([options.draft] if options.draft else []), *others],
        packages=PACKAGES if options.peers else (),
    )
    return 0


if __name__ == "__main__":
    run_script(main)
