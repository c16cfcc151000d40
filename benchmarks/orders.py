"""Whether chosen draft lengths ever lose, whatever came before: drafts that were recorded once, in many orders.

    python -m benchmarks.orders --target REF --draft REF --prompts FILE.jsonl ... [--edits FILE.jsonl] [--saved FILE]

The target writes every reply greedily, and at each place of it the draft model drafts ``--depth`` tokens after what is
right. That settles what any policy would meet, so replies are then written again without models: with the package's own
drafters and policies, by calibrated costs (or ``--verify``), ``auto`` with what it has learnt from the texts before, in
``--orders`` orders. Ways: the draft model, prompt lookup, both mixed, and a draft as dear as the model that is never
right. ``--saved``: where the recording is kept; read if it is there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from benchmarks.by_costs import add_cost_options, costs_said
from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.policy import Way, Writer, edits
from draftsmith.engine.calibration import Calibration
from draftsmith.engine.loading import load_drafter, load_model
from draftsmith.engine.options import EngineOptions
from draftsmith.measure.prompts import read_prompts
from draftsmith.model.protocol import Model
from draftsmith.speculate import (
    AutoLength,
    CostModel,
    Drafter,
    DraftSession,
    DraftSteps,
    FixedLength,
    LengthPolicy,
    MixedDrafter,
    PromptLookupDrafter,
    WantsMore,
    begin_text,
)
from draftsmith.speculate.drafters.protocol import Until
from draftsmith.types import Draft, Request, SamplingParams, Verdict, VerificationRule

SHORT = 32  # tokens: what shorter replies take says little
LENGTHS = (1, 2, 3, 4, 6, 8)
AIM = 0.97


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, the reply to it, and what the draft model drafts after each token of the reply but the last."""

    file: str
    id: str
    prompt_ids: list[int]
    reply_ids: list[int]
    drafts: list[tuple[list[int], list[float]]]


@dataclass(frozen=True, slots=True)
class Written:
    """A reply written again: plain steps saved by drafts are those between ``tokens`` and ``cost``."""

    file: str
    tokens: int
    cost: float

    @property
    def speed(self) -> float:
        """Times plain."""
        return self.tokens / self.cost


class Recorded:
    """A ``Drafter`` that drafts what was recorded of one text; ``wrong``: as much, and never right."""

    name = "recorded"

    def __init__(self, text: Text, *, wrong: bool = False) -> None:
        self._text, self._wrong = text, wrong

    def start(self, request: Request, rule: VerificationRule) -> RecordedSession:
        """A session of the one text."""
        del request, rule
        return RecordedSession(self._text, wrong=self._wrong)


class RecordedSession:
    """See ``SteppedDraftSession``; there is nothing for a model to do."""

    model = cast("Model", None)  # no forward is ever asked of it

    def __init__(self, text: Text, *, wrong: bool) -> None:
        self._text, self._wrong = text, wrong

    def read(self, token_ids: Sequence[int]) -> None:
        """Nothing to do."""

    def restart(self, request: Request) -> None:
        """Nothing to do."""

    def commit(self, verdict: Verdict) -> None:
        """Nothing to forget."""

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        """See ``DraftSession``."""
        tokens, confidences = self._text.drafts[len(token_ids) - len(self._text.prompt_ids) - 1]
        return self._cut(tokens, confidences, max_tokens, wants_more, None)

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        """See ``SteppedDraftSession``."""
        tokens, confidences = self._text.drafts[len(token_ids) - len(self._text.prompt_ids) - 1]
        yield from ()
        return self._cut(tokens, confidences, max_tokens, wants_more, until)

    def _cut(
        self, tokens: list[int], confidences: list[float], max_tokens: int, wants_more: WantsMore, until: Until | None
    ) -> Draft:
        k = 0
        while k < min(max_tokens, len(tokens)) and wants_more(confidences[:k], None):
            k += 1
            if until is not None and until(tokens[:k], confidences[:k]):
                break
        return Draft(tuple([-1] * k if self._wrong else tokens[:k]), None, tuple(confidences[:k]))


def drafter_of(way: str, recorded: Callable[..., Drafter]) -> Drafter:
    """What drafts; ``recorded(wrong=...)`` gives the drafter of recorded drafts."""
    if way == "lookup":
        return PromptLookupDrafter()
    drafter = recorded(wrong=way == "never right")
    return MixedDrafter(PromptLookupDrafter(), drafter) if way == "mix" else drafter


def read_recording(path: Path) -> tuple[CostModel, list[Text]]:
    """Costs and texts, as ``--saved`` keeps them."""
    saved = json.loads(path.read_text())
    costs = CostModel(**{**saved["costs"], "verify": tuple(saved["costs"]["verify"])})
    return costs, [Text(**text) for text in saved["texts"]]


def cut(texts: Sequence[Text], length: int) -> list[Text]:
    """Replies of so many tokens at most, without those that are too short to say much."""
    whole = [replace(text, reply_ids=text.reply_ids[:length]) for text in texts]
    return [text for text in whole if len(text.reply_ids) >= SHORT]


def write(text: Text, drafter: Drafter, policy: LengthPolicy, costs: CostModel) -> Written:
    """One reply. What a draft model has to read is paid for, except for a prompt that is read at once."""
    request = Request(prompt_ids=tuple(text.prompt_ids), sampling=SamplingParams(greedy=True))
    session = drafter.start(request, "coupled")
    ids, start = [*text.prompt_ids, *text.reply_ids], len(text.prompt_ids)
    place, cost, unread = start + 1, 0.0, start
    if begin_text(policy, start, len(ids) - start - 1):
        unread = 0
    while place < len(ids):
        room = len(ids) - place - 1
        draft = session.draft(ids[:place], room, policy.wants_more) if room else Draft(())
        drafted = draft.token_ids
        hits = next((i for i, token in enumerate(drafted) if token != ids[place + i]), len(drafted))
        verdict = Verdict(tuple(ids[place : place + hits + 1]), hits, len(drafted))
        session.commit(verdict)
        policy.learn(draft, verdict)
        cost += costs.verify_cost(len(drafted) + 1) + costs.draft_cost(draft.num_drawn)
        cost += unread * costs.draft_read if draft.num_drawn else 0.0
        unread = 0 if draft.num_drawn else unread + hits + 1
        place += hits + 1
    return Written(text.file, len(ids) - start - 1, cost)


def write_all(
    texts: Sequence[Text], way: str, new_policy: Callable[[], LengthPolicy], costs: CostModel
) -> list[Written]:
    """All replies, one after the other; ``auto`` goes on with what it has learnt."""
    policy, written = new_policy(), []
    for text in texts:
        policy = policy.successor() if isinstance(policy, AutoLength) else policy
        written.append(write(text, drafter_of(way, partial(Recorded, text)), policy, costs))
    return written


def by_file(written: Sequence[Written]) -> Mapping[str, float]:
    """Times plain of each file: all its tokens over all their cost."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in written:
        sums[one.file][0] += one.tokens
        sums[one.file][1] += one.cost
    return {file: tokens / cost for file, (tokens, cost) in sums.items()}


def judge(texts: Sequence[Text], way: str, costs: CostModel, orders: int) -> dict[str, Any]:
    """A row: ``auto`` against plain and against the best fixed length of each file, over all orders."""
    fixed = [by_file(write_all(texts, way, lambda k=k: FixedLength(k), costs)) for k in LENGTHS]  # type: ignore[misc]
    best = {file: max(1.0, *(one[file] for one in fixed)) for file in fixed[0]}
    files = list(best)
    dice, speeds, ratios, slowest = random.Random(1), [], [], []  # noqa: S311 (a simulation)
    for number in range(orders):
        order = list(texts) if number == 0 else dice.sample(list(texts), len(texts))
        written = write_all(order, way, lambda: AutoLength(costs), costs)
        slowest += [one.speed for one in written]
        found = by_file(written)
        speeds += [found[file] for file in files]
        ratios += [found[file] / best[file] for file in files]
    return {
        "way": way,
        "auto": sum(speeds) / len(speeds),
        "auto_over_best": sum(ratios) / len(ratios),
        "worst_file": min(ratios),
        "slowest": min(slowest),
        "by_file": {file: sum(speeds[place :: len(best)]) / orders for place, file in enumerate(files)},
        "below": sum(one < AIM for one in slowest),
        "replies": len(slowest),
    }


def record_texts(options: argparse.Namespace) -> tuple[CostModel, list[Text]]:
    """Costs and texts, from models."""
    engine_options = EngineOptions(threads=options.threads)
    target = load_model(options.target, engine_options)
    drafter = load_drafter(options.draft, target, engine_options)
    if drafter is None:
        raise SystemExit(f"--draft is {options.draft}, which drafts nothing; give a model")
    writer = Writer(target, cold=False, max_new_tokens=options.max_new_tokens)
    items = [(path.stem, item) for path in options.prompts for item in read_prompts(path)[: options.per_file]]
    if options.edits:
        items += [("edits", item) for item in edits(read_prompts(options.edits)[: options.per_file])]
    texts = []
    for file, item in items:
        ids = list(writer.prompt_ids(item))
        reply = list(writer.write(tuple(ids), Way(None)).token_ids)
        sampling = SamplingParams(greedy=True, max_new_tokens=options.max_new_tokens)
        session = drafter.drafter.start(Request(prompt_ids=tuple(ids), sampling=sampling), "coupled")
        texts.append(Text(file, item.id, ids, reply, list(_drafts(session, ids, reply, options.depth))))
        print(f"{file} {item.id}: {len(reply)} tokens", file=sys.stderr)
    return Calibration(target, drafter, options.threads).steps.costs, texts


def _drafts(
    session: DraftSession, prompt: list[int], reply: list[int], depth: int
) -> Iterator[tuple[list[int], list[float]]]:
    for i in range(1, len(reply)):
        draft = session.draft([*prompt, *reply[:i]], depth, lambda *_, **__: True)
        yield list(draft.token_ids), list(draft.confidences)
        session.commit(Verdict((reply[i],), 0, len(draft.token_ids)))


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="path, hub id or alias")
    parser.add_argument("--draft", default="embedded", help="the draft model")
    parser.add_argument("--prompts", type=Path, action="append", default=[], help="a .jsonl file")
    parser.add_argument("--edits", type=Path, help="a .jsonl file of functions to make edits of")
    parser.add_argument("--per-file", type=int, default=10)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--lengths", default="64,128", help="of replies, which are cut to these, comma-separated")
    parser.add_argument("--depth", type=int, default=8, help="tokens that the draft model drafts at each place")
    parser.add_argument("--orders", type=int, default=4)
    add_cost_options(parser)
    parser.add_argument("--saved", type=Path, help="where the recording is kept")
    parser.add_argument("--threads", type=int)
    add_record_option(parser)
    return parser.parse_args()


def main() -> int:
    """Print the table and the JSON line; exit code 1 when a reply falls below 0.97 of plain."""
    options = parse()
    if options.saved and options.saved.exists():
        costs, texts = read_recording(options.saved)
    else:
        costs, texts = record_texts(options)
        if options.saved:
            kept = {"costs": asdict(costs), "texts": [asdict(text) for text in texts]}
            options.saved.write_text(json.dumps(kept))
    costs = costs_said(options) or costs
    if not texts:
        raise SystemExit("there are no replies to write again; give --prompts or --edits, or --saved with a recording")
    rows: list[dict[str, Any]] = []
    for length in map(int, options.lengths.split(",")):
        long = cut(texts, length)
        here = {way: {"length": length, **judge(long, way, costs, options.orders)} for way in WAYS}
        parts = [here["model"]["by_file"], here["lookup"]["by_file"]]
        mix = here["mix"]
        mix["over_faster_part"] = min(mix["by_file"][file] / max(part[file] for part in parts) for file in parts[0])
        rows += here.values()
    head = ["tokens", "drafts of", "auto / plain", "auto / best fixed", "worst file", "slowest reply", "below 0.97"]
    head.append("mix / faster part, worst file")
    keys = ("length", "way", "auto", "auto_over_best", "worst_file", "slowest")
    lines = [
        [*(row[key] for key in keys), f"{row['below']} of {row['replies']}", row.get("over_faster_part", "")]
        for row in rows
    ]
    name = options.target.rsplit("/", 1)[-1].removesuffix(".gguf")
    result = {"target": name, "draft": options.draft.rsplit("/", 1)[-1], "texts": len(texts)}
    result |= {"costs": asdict(costs), "rows": rows}
    report(f"Chosen lengths in many orders: {name}", [table(head, lines)], result, options.record)
    return int(any(row["below"] for row in rows))


WAYS = ("model", "lookup", "mix", "never right")


if __name__ == "__main__":
    run_script(main)
