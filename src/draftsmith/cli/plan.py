"""``draftsmith plan``: which drafter to use, and how many tokens to draft."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from draftsmith.cli.measuring import MeasureOptions, ResultOptions, Ticker
from draftsmith.cli.options import ModelOptions
from draftsmith.cli.plan_for import EngineOptions, launch_of
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

__all__ = ["plan"]


def plan(
    *,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF|lookup", help="A drafter to consider; repeatable. --draft counts too.", show_default=False
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="Randomness; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of sampled replies.")] = 0,
    engine: EngineOptions,
    measure: MeasureOptions,
    result: ResultOptions,
    model: ModelOptions,
) -> None:
    """Tell which drafter to use.

    The target answers the prompts once. Each candidate is read along those answers, which tells for every draft length
    what it would gain; the best are then measured, with lengths chosen round by round too. Without candidates: whatever
    needs no other file. With --for the costs are those of another engine, nothing is measured here but the texts, and
    the command that starts that engine is told.
    """
    result.check()
    engine.check()
    names = list(dict.fromkeys([*(candidate or []), *([model.draft] if model.draft not in ("auto", "none") else [])]))
    if model.num_draft_tokens != "auto":
        raise UsageError("plan chooses the draft length itself; leave --num-draft-tokens out")
    if model.rule != "coupled":
        raise UsageError("plan forecasts the coupled rule, whose texts do not depend on the drafter; leave --rule out")
    items = measure.items()
    costs = engine.known_costs()
    from draftsmith.types import SamplingParams

    sampling = SamplingParams(max_new_tokens=measure.max_new_tokens, temperature=temperature, seed=seed)
    given = dataclasses.replace(model, draft="none").for_llm()
    with ProgressBars(quiet=result.quiet) as progress:
        from draftsmith.engine import LLM
        from draftsmith.engine.loading import known_drafters
        from draftsmith.measure.origin import measurement_origin
        from draftsmith.measure.planning import make_plan, plan_json, plan_text

        target = LLM(progress=progress, **given)
    names = names or (["lookup"] if engine.for_ is not None else known_drafters(target.target))
    options = {name: value for name, value in given.items() if name not in ("target", "draft")}
    ticker = Ticker(result.quiet)
    try:
        found = make_plan(target, names, items, sampling, options=options, costs=costs, report=ticker)
    finally:
        ticker.close()
    told = {"temperature": temperature, "seed": seed, "max_new_tokens": measure.max_new_tokens, **options}
    roles = {"target": model.target} | {f"candidate {number}": name for number, name in enumerate(names, start=1)}
    origin = measurement_origin(roles, told, measure.path)
    value = plan_json(found, origin)
    if engine.for_ is not None:
        chosen, k = value["recommendation"]["draft"], value["recommendation"]["num_draft_tokens"]
        value["for"] = {"engine": engine.for_, **launch_of(engine.for_, model.target, chosen, k or 0)}
    result.give(value, plan_text(value))
