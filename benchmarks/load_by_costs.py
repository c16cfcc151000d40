"""Many chats at once by what their steps cost, not by a clock: whether drafting loses, free of a machine's noise.

    python -m benchmarks.load_by_costs --target REF [--draft REF|lookup|auto] [--sizes 1,4,8,16] [--errors 1,1.3]

Real models write real replies of different lengths, with drafts and without, ``size`` at a time: who ends makes room
for the next prompt, and counting ends when no prompt is left. But every step is taken to last what calibrated costs
say: the forward by its rows, the draft model by its drafts and by what it reads. So two runs are the same to the last
digit, and drafting that loses a hundredth shows. That the target reads prompts is taken to cost nothing, though drafts
beside them do: it is the same for both, but one prompt more or less before counting ends would weigh more than all
drafts. ``--errors``: checks and drafts really cost so many times what the engine was told, which it has to find out
from the seconds of its steps, as on a machine that has changed since it was measured. ``--verify``: v(1), v(2), ... of
another machine, with ``--draft-step``, ``--draft-start`` and ``--draft-read``; ``--told``: the v of which the engine is
told instead. What Python takes is not in it; for that, see ``benchmarks.load``.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.by_costs import add_cost_options, costs_said, numbers
from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.load import in_turn, limits_of
from draftsmith.engine.batch import Engine
from draftsmith.engine.calibration import Calibration
from draftsmith.engine.drafting import BatchDrafter, nobody
from draftsmith.engine.handle import Handle
from draftsmith.engine.limits import EngineLimits
from draftsmith.engine.loading import load_drafter, load_model
from draftsmith.engine.options import EngineOptions
from draftsmith.engine.task import Task
from draftsmith.measure.prompts import built_in_prompts, read_prompts
from draftsmith.speculate import CostModel
from draftsmith.text import choose_format
from draftsmith.types import Message, Request, SamplingParams

UNIT_S = 0.03  # how long a plain step of one text is taken to last; only ratios are told


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="path, hub id or alias")
    parser.add_argument("--draft", default="auto", help="path, hub id, alias, lookup or auto")
    parser.add_argument("--sizes", default="1,4,8,16", help="chats at once, comma-separated; one after the other")
    parser.add_argument("--chats", type=int, default=6, help="chats for each place")
    parser.add_argument("--errors", default="1,1.3", help="factors on what drafts and checks cost, comma-separated")
    add_cost_options(parser)
    parser.add_argument("--told", help="v(1),v(2),... as the engine believes it; by default the same")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a reply at most, on average over all")
    parser.add_argument("--prompts", type=Path, help="a file of prompts; by default the built-in ones")
    parser.add_argument("--threads", type=int)
    add_record_option(parser)
    return parser.parse_args()


@dataclass(slots=True)
class Clock:
    """Seconds that steps were taken to last, and the tokens written by each moment."""

    now: float = 0.0
    moments: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def note(self, tokens: int) -> None:
        """So many tokens have been written by now."""
        self.moments.append(self.now)
        self.written.append(tokens)

    def time_to(self, tokens: float) -> float:
        """When so many had been written, in between by the rule of three."""
        place = bisect.bisect_left(self.written, tokens)
        before, since = (self.written[place - 1], self.moments[place - 1]) if place else (0, 0.0)
        if place == len(self.written):
            return self.moments[-1]
        share = (tokens - before) / max(1, self.written[place] - before)
        return since + share * (self.moments[place] - since)


class DrafterByCosts(BatchDrafter):
    """A ``BatchDrafter`` that is told, in place of what steps took, what they should have taken."""

    def __init__(self, inner: BatchDrafter, costs: CostModel, error: float) -> None:
        self.__dict__.update(inner.__dict__)
        self._told, self._error = costs, error
        self.clock = Clock()
        self._draft_s = self._check_s = 0.0
        self.num_drafts = 0

    def draft(
        self, parts: Mapping[Task, int], running: int, before_models: Callable[[], object] = nobody
    ) -> list[tuple[Task, Exception]]:
        """As ever; notes what the step consists of."""
        read_before = {task: task.drafter_read for task in parts}
        failed = super().draft(parts, running, before_models)
        drafts = [task for task in parts if task.has_draft]
        drawn = [task.num_drawn for task in drafts if task.num_drawn]
        read = sum(task.drafter_read - before for task, before in read_before.items()) - len(drawn)
        told, rows, writes = self._told, sum(parts.values()), [task for task in parts if task.writing]
        context = sum(len(task.ids) for task in writes) / max(1, len(writes))
        more = sum(task.rows(0) for task in drafts)
        checks = told.verify_cost(rows + more) - told.verify_cost(rows) + more * told.growth(context)[1]
        drawing = told.draft_cost(max(drawn)) * told.batch_cost(len(drawn), context) if drawn else 0.0
        reading = told.draft_read * max(0, read) * told.batch_cost(1, context)
        self._draft_s = UNIT_S * self._error * (drawing + reading)
        self._check_s = UNIT_S * ((told.batch_cost(len(writes), context) if writes else 0.0) + self._error * checks)
        self.num_drafts += len(drafts)
        return failed

    def see_times(self, draft_s: float, check_s: float) -> None:
        """The step lasted what it should have."""
        del draft_s, check_s
        self.clock.now += self._draft_s + self._check_s
        super().see_times(self._draft_s, self._check_s)


def write(
    engine: Engine, clock: Clock, prompts: Sequence[tuple[int, ...]], size: int, limits: Sequence[int]
) -> list[tuple[int, ...]]:
    """Replies to all prompts, of as many tokens as ``limits`` say at most, ``size`` at a time.

    ``clock`` notes what is written while all places are taken.
    """
    handles: list[Handle] = []
    replies: list[tuple[int, ...]] = []
    while len(handles) < len(prompts) or not engine.idle:
        running = sum(not handle.finished for handle in handles)
        for prompt, limit in list(zip(prompts, limits, strict=True))[len(handles) :][: size - running]:
            params = SamplingParams(greedy=True, max_new_tokens=limit)
            handles.append(engine.submit(Request(prompt_ids=prompt, sampling=params)))
            replies.append(())
        engine.step()
        for i, handle in enumerate(handles):
            replies[i] += tuple(token for written in handle.take() for token in written.token_ids)
            if handle.error is not None:
                raise handle.error
        if len(handles) < len(prompts) or sum(not handle.finished for handle in handles) == size:
            clock.note(sum(map(len, replies)))
    return replies


@dataclass(frozen=True, slots=True)
class Written:
    """All replies of a size, and when they had been written. ``drafts``: how many were checked."""

    replies: list[tuple[int, ...]]
    clock: Clock
    drafts: int


class Way:
    """An engine whose steps last what ``costs`` say; it stays, as a server does, from one size to the next."""

    def __init__(self, engine: Engine, costs: CostModel, error: float) -> None:
        self._engine = engine
        self._drafter = engine._drafter = DrafterByCosts(engine._drafter, costs, error)

    def run(self, prompts: Sequence[tuple[int, ...]], size: int, limits: Sequence[int]) -> Written:
        """All replies; clock and count begin anew. See ``write``."""
        self._drafter.clock, self._drafter.num_drafts = Clock(), 0
        replies = write(self._engine, self._drafter.clock, prompts, size, limits)
        return Written(replies, self._drafter.clock, self._drafter.num_drafts)


def compare(plain: Written, drafting: Written, size: int) -> dict[str, float]:
    """Drafting / plain over the first replies, as many as there are places, and over all. Raises where texts differ."""
    if drafting.replies != plain.replies:
        raise RuntimeError(f"with drafting, texts of {size} at once are other texts")
    every = min(plain.clock.written[-1], drafting.clock.written[-1])
    first = min(every, sum(map(len, plain.replies[:size])))
    return {
        "first": plain.clock.time_to(first) / drafting.clock.time_to(first),
        "all": plain.clock.time_to(every) / drafting.clock.time_to(every),
        "tokens": every,
        "drafts": drafting.drafts,
    }


def main() -> int:
    """Print the table and the JSON line; exit code 1 when texts differ."""
    options = parse()
    engine_options = EngineOptions(threads=options.threads)
    loaded = load_model(options.target, engine_options)
    drafter = load_drafter(options.draft, loaded, engine_options)
    if drafter is None:
        raise SystemExit(f"--draft is {options.draft}, which drafts nothing; give a model, lookup or auto")
    costs = costs_said(options) or Calibration(loaded, drafter, options.threads).steps.costs
    believed = dataclasses.replace(costs, verify=numbers(options.told)) if options.told else costs
    sizes = [int(size) for size in options.sizes.split(",")]
    # Nothing is shared: each way gets every prompt once, and who is asked later must not find it read.
    limits = EngineLimits(max_running=max(sizes), share_prompts=False)
    items = read_prompts(options.prompts) if options.prompts else built_in_prompts()
    shown, asked, place = choose_format(loaded.tokenizer, None), in_turn(items), 0
    prompts: dict[int, list[tuple[int, ...]]] = {}
    for size in sizes:
        texts = [f"({size}.{i}) {asked[(place + i) % len(asked)]}" for i in range(max(4, size) * options.chats)]
        place += len(texts)
        chats = [shown.encode([Message("user", text)], add_generation_prompt=True) for text in texts]
        prompts[size] = [tuple(chat.token_ids) for chat in chats]

    def run(way: Way) -> dict[int, Written]:
        return {
            size: way.run(prompts[size], size, limits_of(len(prompts[size]), options.max_new_tokens)) for size in sizes
        }

    eos_ids, rows = loaded.tokenizer.eos_ids, []
    plain = run(Way(Engine(loaded.model, eos_ids=eos_ids, limits=limits), costs, 1.0))
    for error in map(float, options.errors.split(",")):
        engine = Engine(
            loaded.model, eos_ids=eos_ids, drafter=drafter.drafter, draft_model=drafter.model, costs=lambda: believed,
            limits=limits,
        )  # fmt: skip
        for size, drafting in run(Way(engine, costs, error)).items():
            rows.append({"error": error, "size": size, **compare(plain[size], drafting, size)})
            print(f"costs times {error}, {size} at once: {rows[-1]['all']:.3f}", file=sys.stderr)
    head = ["costs / as told", "chats at once", "drafting / plain, first chats", "all chats", "tokens", "drafts"]
    lines = [[r["error"], r["size"], r["first"], r["all"], int(r["tokens"]), int(r["drafts"])] for r in rows]
    told = {"draft_step": costs.draft_step, "draft_read": costs.draft_read, "verify": list(costs.verify)}
    told |= {"told": list(believed.verify), "context_step": costs.context_step, "context_row": costs.context_row}
    name = options.target.rsplit("/", 1)[-1].removesuffix(".gguf")
    result = {"target": name, "draft": options.draft.rsplit("/", 1)[-1], "costs": told, "rows": rows}
    report(f"Many chats at once, by costs: {name}", [table(head, lines)], result, options.record)
    return 0


if __name__ == "__main__":
    run_script(main)
