"""Chosen draft lengths in batches: recorded drafts written again by the engine itself, so many texts at once.

    python -m benchmarks.orders_in_batches --saved FILE [--sizes 1,4,8]

``--saved``: a recording of ``benchmarks.orders``. A target that knows the replies and a draft model that knows its
drafts take the places of real ones; scheduling, drafters, pauses and lengths are the engine's own. Steps last what
calibrated costs say, as in ``benchmarks.load_by_costs``, and a draft model's reading of prompts is paid for. Each file
is written with each fixed length and with ``auto``, which goes on from file to file with what it has learnt; its texts
come ``--repeat`` times, mixed, so that places are filled again and how the last texts end counts for little.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.by_costs import add_cost_options, costs_said
from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.load_by_costs import Way, Written, compare
from benchmarks.orders import LENGTHS, WAYS, RecordedSession, Text, cut, drafter_of, read_recording
from draftsmith.engine.batch import Engine
from draftsmith.engine.limits import EngineLimits
from draftsmith.errors import UsageError
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.speculate import CostModel
from draftsmith.types import Request, VerificationRule


class KnownCache:
    """The tokens themselves."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.ids)

    def truncate(self, length: int) -> None:
        """Forget all tokens from there on."""
        del self.ids[length:]


class KnownTarget:
    """Writes known replies; the first token of a prompt says which. See ``draftsmith.model.protocol.Model``."""

    max_context = 1 << 16

    def __init__(self, texts: Sequence[Text]) -> None:
        """``texts``: the prompt of number i begins with the token ``vocab_size`` - 1 - i, which occurs nowhere else."""
        self._whole = {text.prompt_ids[0]: [*text.prompt_ids, *text.reply_ids] for text in texts}
        self.vocab_size = 1 + max(max(ids) for ids in self._whole.values())

    def new_cache(self, capacity: int | None = None) -> KnownCache:
        """An empty one."""
        capacity = self.max_context if capacity is None else capacity
        if capacity > self.max_context:
            raise UsageError(f"the capacity is {capacity}; it must be at most {self.max_context}")
        return KnownCache(capacity)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """The recorded token after each place is the likeliest, whatever was read."""
        return [self._forward(run) for run in runs]

    def _forward(self, run: TokenRun) -> Logits:
        cache = cast("KnownCache", run.cache)
        cache.ids += run.token_ids
        logits = np.zeros((run.num_logits, self.vocab_size), np.float32)
        whole = self._whole[cache.ids[0]]
        for row, end in enumerate(range(cache.length - run.num_logits + 1, cache.length + 1)):
            if end < len(whole):
                logits[row, whole[end]] = 1.0
        return logits


class KnownDrafter:
    """A ``Drafter`` of recorded drafts; the first token of a prompt says which. ``wrong``: as many, and never right."""

    name = "recorded"

    def __init__(self, texts: Sequence[Text], *, wrong: bool) -> None:
        self._texts = {text.prompt_ids[0]: text for text in texts}
        self._wrong = wrong

    def start(self, request: Request, rule: VerificationRule) -> RecordedSession:
        """A session of that text."""
        del rule
        return RecordedSession(self._texts[request.prompt_ids[0]], wrong=self._wrong)


def numbered(texts: Sequence[Text], repeat: int) -> list[Text]:
    """All texts so many times, each under a number of its own, mixed within their files; ids as small as they can be.

    ``KnownTarget`` tells by the number what to write; small ids keep its logits small.
    """
    small: dict[int, int] = {}

    def packed(ids: Sequence[int]) -> list[int]:
        return [small.setdefault(one, len(small)) for one in ids]

    plain = [
        Text(t.file, t.id, packed(t.prompt_ids), packed(t.reply_ids), [(packed(ids), sure) for ids, sure in t.drafts])
        for t in texts
    ]
    dice, order = random.Random(1), []  # noqa: S311 (a simulation)
    for file in dict.fromkeys(text.file for text in plain):
        for _ in range(repeat):
            mine = [text for text in plain if text.file == file]
            order += dice.sample(mine, len(mine))
    return [Text(t.file, t.id, [len(small) + i, *t.prompt_ids], t.reply_ids, t.drafts) for i, t in enumerate(order)]


def at_once(size: int) -> EngineLimits:
    """So many texts. Prompts are read in one step: while one is read, fewer write, and where v rises steeply that may
    be worth more than all drafts; which of two ways has more of it is chance.
    """
    whole = KnownTarget.max_context
    return EngineLimits(max_running=size, share_prompts=False, prefill_tokens=whole, prefill_tokens_beside=whole)


def write_files(engine: Engine, texts: Sequence[Text], costs: CostModel, size: int) -> dict[str, Written]:
    """All files, one after the other, by one engine."""
    way = Way(engine, costs, 1.0)
    files: dict[str, list[Text]] = {}
    for text in texts:
        files.setdefault(text.file, []).append(text)
    return {
        file: way.run([tuple(t.prompt_ids) for t in mine], size, [len(t.reply_ids) for t in mine])
        for file, mine in files.items()
    }


def judge(texts: Sequence[Text], costs: CostModel, size: int, way: str, plain: Mapping[str, Written]) -> dict[str, Any]:
    """A row: ``auto`` and fixed lengths against plain, file by file."""

    def speeds(length: int | None) -> dict[str, float]:
        drafter = drafter_of(way, partial(KnownDrafter, texts))
        engine = Engine(
            KnownTarget(texts), drafter=drafter, costs=lambda: costs, num_draft_tokens=length, limits=at_once(size)
        )
        written = write_files(engine, texts, costs, size)
        return {file: compare(plain[file], one, size)["all"] for file, one in written.items()}

    auto, fixed = speeds(None), {length: speeds(length) for length in LENGTHS}
    best = {file: max((1.0, 0), *((fixed[k][file], k) for k in LENGTHS)) for file in auto}
    return {
        "size": size,
        "way": way,
        "auto": auto,
        "best": {file: speed for file, (speed, _) in best.items()},
        "best_length": {file: length for file, (_, length) in best.items()},
        "auto_over_best": {file: auto[file] / best[file][0] for file in auto},
    }


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--saved", type=Path, required=True, help="a recording of benchmarks.orders")
    parser.add_argument("--sizes", default="1,4,8", help="texts at once, comma-separated")
    parser.add_argument("--length", type=int, default=128, help="of replies at most")
    parser.add_argument("--repeat", type=int, default=4)
    add_cost_options(parser)
    add_record_option(parser)
    return parser.parse_args()


def lines_of(row: Mapping[str, Any], parts: Mapping[str, float]) -> list[list[object]]:
    """For people: a line for each file; ``parts``: the faster of the mix's two parts, where it is of the mix."""
    return [
        [
            row["size"], row["way"], file, row["auto"][file], f"{row['best'][file]:.2f} (k={row['best_length'][file]})",
            row["auto_over_best"][file], f"{row['auto'][file] / parts[file]:.2f}" if parts else "",
        ]
        for file in row["auto"]
    ]  # fmt: skip


def main() -> int:
    """Print the table and the JSON line."""
    options = parse()
    recorded, replies = read_recording(options.saved)
    costs, texts = costs_said(options) or recorded, numbered(cut(replies, options.length), options.repeat)
    rows, lines = [], []
    for size in map(int, options.sizes.split(",")):
        plain = write_files(Engine(KnownTarget(texts), limits=at_once(size)), texts, costs, size)
        here = {}
        for way in WAYS:
            row = here[way] = judge(texts, costs, size, way, plain)
            parts = {}
            if way == "mix":
                parts = {file: max(here["model"]["auto"][file], here["lookup"]["auto"][file]) for file in row["auto"]}
                row["over_faster_part"] = {file: row["auto"][file] / parts[file] for file in parts}
            rows.append(row)
            lines += lines_of(row, parts)
            worst = min(row["auto_over_best"].values())
            print(f"{size} at once, {way}: auto at least {worst:.2f} of the best fixed length", file=sys.stderr)
    head = ["at once", "drafts of", "file", "auto / plain", "best fixed", "auto / best fixed", "mix / faster part"]
    result: dict[str, Any] = {"saved": options.saved.name, "texts": len(texts), "costs": asdict(costs), "rows": rows}
    report(f"Chosen lengths in batches: {options.saved.stem}", [table(head, lines)], result, options.record)
    return 0


if __name__ == "__main__":
    run_script(main)
