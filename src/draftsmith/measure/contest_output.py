"""What ``bench --endpoint`` tells: the JSON object and the table. Schema: docs/schemas/bench-endpoint.json."""

from __future__ import annotations

from typing import Any

from draftsmith.measure.contest import ContestResult, SideResult

__all__ = ["contest_details", "contest_json", "contest_text"]

_DEFINITIONS = (
    "First token: from sending the prompt to the first text of the reply, median. tokens/s: tokens after a reply's\n"
    "first / time from the first text to the end. Ratio: tokens/s over the first line's, from this run, prompt by\n"
    "prompt in turn; brackets: 95 % intervals, bootstrap over prompts. Same text: replies equal to the first line's.\n"
    "Acceptance: accepted / draft tokens, where it is told. A server may still hold a prompt that it has read before."
)


def contest_json(result: ContestResult, provenance: dict[str, Any]) -> dict[str, Any]:
    """The object that ``bench --endpoint URL --json`` prints. ``provenance`` names the endpoints, never a key."""
    first = result.sides[0]
    return {
        "prompts": len(first.answers),
        "sides": [
            {
                **_figures(side, first),
                "by_category": {name: _figures(side.of(name), first.of(name)) for name in result.categories},
            }
            for side in result.sides
        ],
        "provenance": {**provenance, "skipped": dict(result.skipped)},
    }


def contest_details(result: ContestResult) -> dict[str, Any]:
    """What ``--output`` adds: every prompt."""
    return {
        "prompts": [
            {
                "id": answers[0].id,
                "category": answers[0].category,
                "sides": [
                    {"side": side.name, "tokens": one.num_tokens, "rest_s": one.rest_s, "first_s": list(one.first_s)}
                    for side, one in zip(result.sides, answers, strict=True)
                ],
            }
            for answers in zip(*(side.answers for side in result.sides), strict=True)
        ]
    }


def contest_text(value: dict[str, Any]) -> str:
    """The tables for people, from the JSON object, in Markdown."""
    lines = [
        "| who writes | tokens | first token | tokens/s | ratio | same text | acceptance |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for side in value["sides"]:
        low, high = side["ratio_ci95"]
        accepted = "" if side["acceptance_rate"] is None else f"{side['acceptance_rate']:.0%}"
        lines.append(
            f"| {side['side']} | {side['tokens']} | {side['first_token_s'] * 1000:.0f} ms | {side['tokens_per_s']:.1f} "
            f"| {side['ratio']:.2f} [{low:.2f}, {high:.2f}] | {side['same_text']:.0%} | {accepted} |"
        )
    names = [side["side"] for side in value["sides"]]
    lines += ["", f"| tokens/s of | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for category in value["sides"][0]["by_category"]:
        rates = (f"{side['by_category'][category]['tokens_per_s']:.1f}" for side in value["sides"])
        lines.append(f"| {category} | {' | '.join(rates)} |")
    notes = [
        f"{side['side']} does not count its tokens: chunks of text were counted, which may hold several."
        for side in value["sides"]
        if side["tokens_counted_by"] == "chunks"
    ]
    skipped = value["provenance"]["skipped"]
    if skipped:
        notes.append(f"Prompts left out: {len(skipped)}; the first: {next(iter(skipped.values()))}.")
    return "\n".join([*lines, "", *notes, *([""] if notes else []), _DEFINITIONS])


def _figures(side: SideResult, first: SideResult) -> dict[str, Any]:
    ratio, interval = side.ratio(first)
    return {
        "side": side.name,
        "tokens": side.num_tokens,
        "tokens_counted_by": side.counted,
        "first_token_s": side.first_s,
        "tokens_per_s": side.rate,
        "tokens_per_s_ci95": list(side.rate_interval),
        "ratio": ratio,
        "ratio_ci95": list(interval),
        "same_text": side.same_text(first),
        "acceptance_rate": side.acceptance_rate,
    }
