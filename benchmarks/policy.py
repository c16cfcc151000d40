"""Whether ``auto`` draft lengths ever lose: against plain decoding, every fixed length, and each part of a mix.

    python -m benchmarks.policy --target REF --draft REF --draft lookup --draft REF+lookup --prompts FILE.jsonl ...

Plain decoding and all drafts with ``auto`` and with ``--lengths`` take turns on every prompt, in one process, greedily;
of ``--repeat`` times the median counts. Reading the prompt is not in it. ``auto`` goes on from prompt to prompt with
what it has learnt, as in ``LLM``; with ``--cold`` every reply starts with nothing. A draft ``shuffled:REF`` is REF with
the rows of its weights in random order: as dear as REF and never right. ``--edits`` makes prompts of a file whose
references complete functions: each is to be written again with one thing changed. Fails when a reply is not identical.
``--by-costs``: seconds are not a clock's; every round is taken to last what calibrated costs say of it, or ``ERROR``
times that where drafts and checks are concerned. Then two runs give the same figures, whatever the machine does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.by_costs import ByCosts
from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.checkpoint import open_checkpoint, resolve
from draftsmith.engine.calibrate import StepCosts
from draftsmith.engine.calibration import Calibration
from draftsmith.engine.live import LiveCosts
from draftsmith.engine.loading import LoadedDrafter, LoadedModel, load_drafter, load_model
from draftsmith.engine.options import EngineOptions
from draftsmith.measure.prompts import PromptItem, read_prompts
from draftsmith.model.native import NativeModel
from draftsmith.speculate import (
    AutoLength,
    CostModel,
    DraftSession,
    FixedLength,
    LengthPolicy,
    MixedDrafter,
    RoundTimes,
    generate,
)
from draftsmith.text import choose_format
from draftsmith.types import Message, Request, SamplingParams

__all__ = ["Draft", "Prompt", "Reply", "Way", "edits", "judge", "load_shuffled", "main", "row", "run"]

PLAIN = "plain"
SHORT = 32  # tokens: what shorter replies took says little


@dataclass(slots=True)
class Draft:
    """A drafter with what it is measured with. ``policy``: what ``auto`` has learnt so far."""

    name: str
    loaded: LoadedDrafter
    calibration: Calibration
    policy: AutoLength
    session: DraftSession | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """How to write a reply. ``length``: None chooses."""

    draft: Draft | None
    length: int | None = None

    @property
    def name(self) -> str:
        """For tables."""
        return PLAIN if self.draft is None else f"{self.draft.name} {'auto' if self.length is None else self.length}"


@dataclass(frozen=True, slots=True)
class Reply:
    """``seconds``: from the first token to the last; by costs, in plain steps. ``rounds``: tokens written, drafted and
    accepted in each.
    """

    token_ids: tuple[int, ...]
    seconds: float
    rounds: tuple[tuple[int, int, int], ...]
    times: tuple[RoundTimes, ...]


@dataclass(slots=True)
class Prompt:
    """All replies to one prompt by the way that they were written."""

    file: str
    id: str
    replies: dict[str, list[Reply]] = field(default_factory=dict)

    def seconds(self, way: str) -> float:
        """A median reply's."""
        return median(reply.seconds for reply in self.replies[way])


class Writer:
    """A target that writes replies, each way in turn; prompts are read once and stay in the caches.

    ``error``: rounds last what costs say, drafts and checks so many times that; None: what a clock says.
    """

    def __init__(self, target: LoadedModel, *, cold: bool, max_new_tokens: int, error: float | None = None) -> None:
        self.target = target
        self._cold = cold
        self._error = error
        self._params = SamplingParams(greedy=True, max_new_tokens=max_new_tokens)
        self._cache = target.model.new_cache()
        self._held: tuple[int, ...] = ()

    @cached_property
    def _format(self) -> Any:
        return choose_format(self.target.tokenizer)

    def prompt_ids(self, item: PromptItem) -> tuple[int, ...]:
        """The first turn as a chat, or its beginning where the context is short."""
        ids = tuple(self._format.encode([Message("user", item.turns[0])], add_generation_prompt=True).token_ids)
        return ids[: self.target.model.max_context - self._params.max_new_tokens - 1]

    def write(self, prompt_ids: tuple[int, ...], way: Way) -> Reply:
        """One reply, with what ``auto`` knew before this prompt."""
        request = Request(prompt_ids=prompt_ids, sampling=self._params)
        self._cache.truncate(len(prompt_ids) - 1 if self._held == prompt_ids else 0)
        self._held = prompt_ids
        times: list[RoundTimes] = []
        chooses = way.draft is not None and way.length is None
        by_costs: ByCosts | None = None

        def hear(round_times: RoundTimes) -> None:
            told = round_times if by_costs is None else by_costs.times(round_times)
            times.append(told)
            if way.draft is not None and chooses:
                way.draft.calibration.live.see(told)

        policy = self._policy(way)
        if way.draft is not None:
            way.draft.calibration.live.follow(len(prompt_ids))
        rounds = generate(
            self.target.model,
            self._cache,
            request,
            eos_ids=self.target.tokenizer.eos_ids,
            session=self._session(way.draft, request),
            policy=policy,
            on_round=hear,
        )
        written = [next(rounds)]
        if self._error is not None:
            steps = way.draft.calibration.steps if way.draft is not None else StepCosts(1.0, CostModel(0.0))
            by_costs = ByCosts(steps, self._error, policy._unread if isinstance(policy, AutoLength) else 0)
        began = time.perf_counter()
        for one in rounds:
            written.append(one)
            if by_costs is not None:
                by_costs.wrote(len(one.token_ids))
        seconds = time.perf_counter() - began if by_costs is None else by_costs.steps
        if way.draft is not None and chooses:
            way.draft.calibration.live.end_text()
        counts = tuple((len(r.token_ids), r.num_draft_tokens, r.num_accepted) for r in written[1:])
        return Reply(tuple(i for r in written for i in r.token_ids), seconds, counts, tuple(times))

    def _session(self, draft: Draft | None, request: Request) -> DraftSession | None:
        if draft is None:
            return None
        if draft.session is None or self._cold:
            draft.session = draft.loaded.drafter.start(request, "coupled")
        else:
            draft.session.restart(request)
        return draft.session

    def _policy(self, way: Way) -> LengthPolicy:
        if way.draft is None or way.length is not None:
            return FixedLength(way.length or 0)
        way.draft.policy = AutoLength(way.draft.calibration.live) if self._cold else way.draft.policy.successor()
        return way.draft.policy


def run(writer: Writer, items: Sequence[tuple[str, PromptItem]], ways: Sequence[Way], repeat: int) -> Iterator[Prompt]:
    """Every prompt with all replies to it. The ways change places from turn to turn."""
    drafts = {id(way.draft): way.draft for way in ways if way.draft is not None}
    for number, (file, item) in enumerate(items):
        prompt, ids = Prompt(file, item.id), writer.prompt_ids(item)
        writer.write(ids, ways[0])  # reads the prompt and warms up
        known = {key: draft.policy for key, draft in drafts.items()}
        for turn in range(repeat):
            for key, draft in drafts.items():
                draft.policy = known[key]
            first = (number + turn) % len(ways)
            for way in [*ways[first:], *ways[:first]]:
                prompt.replies.setdefault(way.name, []).append(writer.write(ids, way))
        yield prompt


def load_drafts(names: Sequence[str], target: LoadedModel, options: EngineOptions) -> list[Draft]:
    """The drafts with their costs measured. Models that several of them use are loaded once."""
    models: dict[str, LoadedModel] = {}
    drafts = []
    for name in names:
        model_ref, plus, free = name.rpartition("+")
        ref = model_ref if plus else free
        if ref.startswith("shuffled:"):
            models.setdefault(ref, load_shuffled(ref.removeprefix("shuffled:"), options))
        elif ref not in ("lookup", "suffix", "embedded", "auto"):
            models.setdefault(ref, load_model(ref, options.for_draft()))
        loaded = load_drafter(models.get(ref, ref), target, options)
        copies = load_drafter(free, target, options) if plus else None
        if loaded is None or (plus and copies is None):
            raise SystemExit(f"{name} is no draft; give a model, lookup, suffix, embedded or MODEL+lookup")
        if copies is not None:
            loaded = dataclasses.replace(loaded, drafter=MixedDrafter(copies.drafter, loaded.drafter))
        calibration = Calibration(target, loaded, options.threads)
        shown = "+".join(Path(part).stem for part in name.split("+"))
        shown = f"shuffled {shown}" if ref.startswith("shuffled:") else shown
        drafts.append(Draft(shown, loaded, calibration, AutoLength(calibration.live)))
    return drafts


def share_costs(drafts: Sequence[Draft]) -> None:
    """The target's checks cost the same whoever drafted, and one model's drafts in every mix, as first measured."""
    first = drafts[0].calibration.steps
    by_model: dict[int, StepCosts] = {}
    for draft in drafts:
        measured = draft.calibration.steps
        told = first.costs
        costs = dataclasses.replace(
            measured.costs, verify=told.verify, context_step=told.context_step, context_row=told.context_row
        )
        shared = dataclasses.replace(first, plain_s=measured.plain_s, costs=costs)
        if draft.loaded.model is not None:
            shared = by_model.setdefault(id(draft.loaded.model), shared)
        draft.calibration.steps, draft.calibration.live = shared, LiveCosts(shared)
        draft.policy = AutoLength(draft.calibration.live)


def load_shuffled(ref: str, options: EngineOptions) -> LoadedModel:
    """``ref`` with the rows of every matrix in random order: it costs what ``ref`` costs and knows nothing."""
    dice = np.random.default_rng(0)
    checkpoint = open_checkpoint(resolve(ref).path)
    tokenizer, tensors = checkpoint.tokenizer(), dict(checkpoint.tensors)
    for name, tensor in tensors.items():
        if tensor.num_rows > 1:
            tensors[name] = dataclasses.replace(tensor, row_order=dice.permutation(tensor.num_rows))
    # Another name and identity, or the packed weights of ``ref`` itself would be taken from the cache.
    path, identity = checkpoint.path.with_name(f"shuffled {checkpoint.path.name}"), f"{checkpoint.fingerprint} shuffled"
    checkpoint = dataclasses.replace(checkpoint, tensors=tensors, path=path, fingerprint=identity)
    model = NativeModel.load(checkpoint, threads=options.threads)
    return LoadedModel(f"shuffled {Path(ref).stem}", model, tokenizer)


def edits(items: Sequence[PromptItem]) -> list[PromptItem]:
    """Functions that ``items`` begin and their references complete, to be written again with an earlier return."""
    asked = "Add a check for empty arguments at the top of this function and return all of it:\n\n```python\n{}\n```"
    return [
        dataclasses.replace(item, id=f"edit/{item.id}", turns=(asked.format(_function(item)),))
        for item in items
        if item.reference
    ]


def _function(item: PromptItem) -> str:
    _, _, code = item.turns[0].partition("\n\n")
    return f"{code.rstrip()}\n{item.reference}".strip()


def judge(prompts: Sequence[Prompt], ways: Sequence[Way]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for every file and draft, and one for every file and mix whose parts were measured too."""
    files = [*dict.fromkeys(prompt.file for prompt in prompts), "all"]
    drafts = list(dict.fromkeys(way.draft.name for way in ways if way.draft is not None))
    rows, mixes = [], []
    for file in files:
        part = [prompt for prompt in prompts if file in (prompt.file, "all")]
        speeds = {way.name: _speedup(part, way.name) for way in ways}
        for draft in drafts:
            fixed = {w.name: speeds[w.name] for w in ways if w.draft and w.draft.name == draft and w.length}
            rows.append({"prompts": file, "draft": draft, **row(part, f"{draft} auto", fixed)})
            model, plus, free = draft.rpartition("+")
            if plus and {model, free} <= set(drafts):
                better = max(speeds[f"{model} auto"], speeds[f"{free} auto"])
                parts = {"model": speeds[f"{model} auto"], "copies": speeds[f"{free} auto"]}
                both = {"both": speeds[f"{draft} auto"], "both / better": speeds[f"{draft} auto"] / better}
                mixes.append({"prompts": file, "draft": draft, **parts, **both})
    return rows, mixes


def _speedup(prompts: Sequence[Prompt], way: str) -> float:
    """Times plain, over the tokens of all ``prompts``."""
    return sum(p.seconds(PLAIN) for p in prompts) / sum(p.seconds(way) for p in prompts)


def row(prompts: Sequence[Prompt], auto: str, fixed: Mapping[str, float]) -> dict[str, Any]:
    """How ``auto`` did on ``prompts``, beside the speeds of ``fixed`` lengths."""
    best = max(fixed, key=lambda name: fixed[name], default=None)
    speed = _speedup(prompts, auto)
    ratios = [p.seconds(PLAIN) / p.seconds(auto) for p in prompts if len(p.replies[PLAIN][0].token_ids) >= SHORT]
    last = [prompt.replies[auto][-1] for prompt in prompts]
    rounds = [counts for reply in last for counts in reply.rounds]
    drafted, accepted = sum(r[1] for r in rounds), sum(r[2] for r in rounds)
    return {
        "best fixed": "" if best is None else best.rpartition(" ")[2],
        "its speed": "" if best is None else round(fixed[best], 3),
        "auto": speed,
        "auto / best": "" if best is None else round(speed / fixed[best], 3),
        "slowest": min(ratios, default=speed),
        "tokens a round": sum(r[0] for r in rounds) / max(1, len(rounds)),
        "acceptance": accepted / max(1, drafted),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="path, hub id or alias")
    parser.add_argument("--draft", action="append", required=True, help="as for draftsmith, or shuffled:REF")
    parser.add_argument("--lengths", default="", help="fixed lengths, comma-separated")
    parser.add_argument("--prompts", action="append", default=[], type=Path, help="a .jsonl file")
    parser.add_argument("--edits", type=Path, help="a .jsonl file of functions to make edits of")
    parser.add_argument("--per-file", type=int, default=3)
    parser.add_argument("--skip", type=int, default=0, help="prompts of each file to leave out before these")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="every reply starts with nothing learnt and nothing read")
    parser.add_argument("--by-costs", type=float, metavar="ERROR", nargs="?", const=1.0, help="costs, not a clock")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=Path, metavar="FILE", help="also write every round of every reply as JSON")
    add_record_option(parser)
    return parser.parse_args(arguments)


def _items(options: argparse.Namespace) -> list[tuple[str, PromptItem]]:
    files = {path.stem: read_prompts(path) for path in options.prompts} or {"built-in": read_prompts(None)}
    if options.edits is not None:
        files["edits"] = tuple(edits(read_prompts(options.edits)))
    last = options.skip + options.per_file
    return [(name, item) for name, items in files.items() for item in items[options.skip : last]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables and the JSON line; exit code 1 when a reply differs."""
    options = parse(arguments)
    engine = EngineOptions(threads=options.threads)
    target = load_model(options.target, engine)
    drafts = load_drafts(options.draft, target, engine)
    if options.by_costs is not None:
        share_costs(drafts)
    lengths = [int(length) for length in options.lengths.split(",") if length]
    ways = [Way(None), *(Way(draft, length) for draft in drafts for length in (None, *lengths))]
    writer = Writer(target, cold=options.cold, max_new_tokens=options.max_new_tokens, error=options.by_costs)
    prompts = []
    for prompt in run(writer, _items(options), ways, options.repeat):
        prompts.append(prompt)
        shown = ", ".join(f"{way.name} {prompt.seconds(PLAIN) / prompt.seconds(way.name):.3f}" for way in ways[1:])
        print(f"  {prompt.file} {prompt.id}: {shown}", file=sys.stderr)
    if options.rounds is not None:
        options.rounds.write_text(json.dumps([dataclasses.asdict(prompt) for prompt in prompts]), encoding="utf-8")
    different = [p.id for p in prompts if len({r.token_ids for replies in p.replies.values() for r in replies}) > 1]
    rows, mixes = judge(prompts, ways)
    costs = {draft.name: _costs(draft) for draft in drafts}
    result = {"target": target.name, "identical": not different, "different": different, "costs": costs}
    result |= {
        "max_new_tokens": options.max_new_tokens,
        "repeat": options.repeat,
        "cold": options.cold,
        "by_costs": options.by_costs,
    }
    result |= {"rows": rows, "mixes": mixes}
    tables = [table(list(part[0]), [list(row.values()) for row in part]) for part in (rows, mixes) if part]
    report(f"The length policy: {Path(target.name).name}", tables, result, options.record)
    return int(bool(different))


def _costs(draft: Draft) -> dict[str, Any]:
    steps, live = draft.calibration.steps, draft.calibration.live
    sizes, end = (2, 3, 4, 5, 6, 7, 8, 9, 12, 16), live.steps()
    return {
        "plain_s": round(steps.plain_s, 5),
        "c": round(steps.costs.draft_step, 3),
        "c at the end": round(live.draft_step, 3),
        "start": round(steps.costs.draft_start, 3),
        "read": round(steps.costs.draft_read, 4),
        "v": {m: round(steps.costs.verify_cost(m), 3) for m in sizes},
        "v at the end": {m: round(end.costs.verify_cost(m), 3) for m in sizes},
        "for 1,024 tokens of context": [round(steps.costs.context_step, 3), round(steps.costs.context_row, 3)],
    }


if __name__ == "__main__":
    run_script(main)
