"""``draftsmith certify``: evidence that the drafter changes nothing, for this pair on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from draftsmith.cli.measuring import MeasureOptions, ResultOptions, Ticker, check_folder, origin_of, write_text
from draftsmith.cli.options import ModelOptions
from draftsmith.cli.progress import ProgressBars
from draftsmith.errors import UsageError

__all__ = ["certify"]

DRAFT_TOKENS = "4"  # with auto a drafter that does not pay would draft nothing, and nothing would be tested


def certify(
    *,
    temperature: Annotated[float, typer.Option(metavar="T", help="Randomness of the sampled replies.")] = 1.0,
    top_k: Annotated[int, typer.Option(metavar="K", help="Keep the K likeliest tokens; 0 is off.")] = 50,
    top_p: Annotated[float, typer.Option(metavar="P", help="Keep the likeliest tokens of mass P; 1 is off.")] = 0.95,
    seed: Annotated[int, typer.Option(metavar="N", help="The first seed; others follow it.")] = 0,
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds to compare plain and speculative replies at.")] = 1,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Replies a prompt, each way, for the test of distribution.")
    ] = 100,
    sample_prompts: Annotated[int, typer.Option(metavar="N", help="Prompts for the test of distribution.")] = 4,
    sample_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of each of those replies.")] = 8,
    error_rate: Annotated[float, typer.Option(metavar="P", help="False alarms of the test of distribution.")] = 0.001,
    page: Annotated[
        str | None, typer.Option(metavar="FILE.html|FILE.md", help="Also write the certificate as a page.")
    ] = None,
    measure: MeasureOptions,
    result: ResultOptions,
    model: ModelOptions,
) -> None:
    """Certify that a drafter changes nothing.

    Greedy replies and sampled ones with equal seeds are compared token by token, and the distribution of sampled
    replies is tested against plain ones and against the target's own probabilities. The verdict is identical,
    identical in distribution, or differs, which is exit code 1. With --num-draft-tokens auto, 4 are drafted a round.
    """
    result.check()
    _check_page(page)
    items = measure.items()
    from draftsmith.measure.certify import CertifyPlan
    from draftsmith.types import SamplingParams

    plan = CertifyPlan(
        sampling=SamplingParams(
            max_new_tokens=measure.max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        ),
        seeds=seeds,
        samples=samples,
        sample_tokens=sample_tokens,
        sample_prompts=min(sample_prompts, len(items)),
        error_rate=error_rate,
    )
    if model.num_draft_tokens == "auto":
        model = dataclasses.replace(model, num_draft_tokens=DRAFT_TOKENS)
    with ProgressBars(quiet=result.quiet) as progress:
        from draftsmith.measure.certificate import certificate_json, certificate_page
        from draftsmith.measure.certify import certify as run_certify
        from draftsmith.measure.document import as_html, as_markdown
        from draftsmith.measure.pair import load_pair

        pair = load_pair(progress=progress, **model.for_llm())
    ticker = Ticker(result.quiet)
    try:
        certificate = run_certify(pair, items, plan, report=ticker)
    finally:
        ticker.close()
    origin = origin_of(model, measure.path, {"seed": seed, "max_new_tokens": measure.max_new_tokens})
    value = certificate_json(certificate, plan, pair.speculative.drafter_name, origin)
    document = certificate_page(value)
    if page is not None:
        write_text(Path(page).expanduser(), as_markdown(document) if page.endswith(".md") else as_html(document))
    result.give(value, as_markdown(document))
    if certificate.verdict == "differs":
        raise typer.Exit(1)


def _check_page(page: str | None) -> None:
    if page is None:
        return
    if not page.endswith((".html", ".md")):
        raise UsageError(f"--page is {page}; give a name that ends in .html or .md")
    check_folder("--page", page)
