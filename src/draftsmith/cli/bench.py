"""``draftsmith bench``: what the drafter gains on these prompts, on this machine."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from draftsmith.cli.bench_endpoints import EndpointOptions, bench_endpoints, own_pair_asked
from draftsmith.cli.measuring import MeasureOptions, ResultOptions, Ticker, origin_of
from draftsmith.cli.options import ModelOptions
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

__all__ = ["bench"]


def bench(
    *,
    context: typer.Context,
    temperature: Annotated[float, typer.Option(metavar="T", help="Randomness; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of sampled replies.")] = 0,
    repeat: Annotated[int, typer.Option(metavar="N", help="Answer all prompts N times; medians are kept.")] = 1,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Write on after the end-of-text token.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also tell where a round's time goes, kernel by kernel.")
    ] = False,
    endpoints: EndpointOptions,
    measure: MeasureOptions,
    result: ResultOptions,
    model: ModelOptions,
) -> None:
    """Measure what a drafter gains.

    Every prompt is answered plainly and with the drafter in turn, in one run. Told are the speeds with 95 % intervals,
    by category, the acceptance by position, the costs c and v(m) of steps, the speed-up that they predict, and memory.
    With --endpoint servers are asked the same prompts, in turn, streaming: how soon, how fast, which of them faster.
    """
    result.check()
    endpoints.check()
    if profile and endpoints.endpoint:
        raise UsageError("--profile looks into our own engine and --endpoint at servers; give one of them")
    items = measure.items()
    from draftsmith.types import SamplingParams

    sampling = SamplingParams(
        max_new_tokens=measure.max_new_tokens, temperature=temperature, seed=seed, ignore_eos=ignore_eos
    )
    if endpoints.endpoint:
        own = model if own_pair_asked(context) else None
        bench_endpoints(endpoints, dataclasses.replace(sampling, top_k=0), repeat, measure, result, own)
        return
    with ProgressBars(quiet=result.quiet) as progress:
        from draftsmith.measure import load_pair, run_bench
        from draftsmith.measure.bench_output import bench_details, bench_json, bench_text
        from draftsmith.measure.profile import measure_profile, profile_json, profile_text

        pair = load_pair(progress=progress, **model.for_llm())
    ticker = Ticker(result.quiet)
    try:
        found = run_bench(pair, items, sampling, repeats=repeat, report=ticker)
        profiled = measure_profile(pair, items, sampling, report=ticker) if profile else None
    finally:
        ticker.close()
    options = {"temperature": temperature, "seed": seed, "repeat": repeat, "max_new_tokens": measure.max_new_tokens}
    value = bench_json(found, pair, origin_of(model, measure.path, options))
    text = bench_text(value)
    if profiled is not None:
        value["profile"] = profile_json(profiled)
        text = f"{text}\n\n{profile_text(value['profile'])}"
    result.give(value, text, bench_details(found))
