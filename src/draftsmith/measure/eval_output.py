"""What ``eval`` tells: the JSON object (schema: docs/schemas/eval.json) and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from draftsmith.measure.acceptance import AcceptanceRow
from draftsmith.measure.needles import GridCell
from draftsmith.measure.perplexity import PerplexityResult
from draftsmith.measure.statistics import wilson_interval

__all__ = ["acceptance_json", "eval_text", "grid_json", "perplexity_json"]


def perplexity_json(result: PerplexityResult) -> dict[str, Any]:
    """Perplexity over all tokens and by position."""
    return {
        "perplexity": result.overall.perplexity,
        "tokens": result.overall.tokens,
        "windows": result.windows,
        "context": result.context,
        "by_position": [
            {"start": b.start, "end": b.end, "tokens": b.tokens, "perplexity": b.perplexity} for b in result.buckets
        ],
    }


def grid_json(cells: Sequence[GridCell]) -> dict[str, Any]:
    """Accuracy over all cells, with Wilson's interval, and each cell."""
    hits, trials = sum(cell.hits for cell in cells), sum(cell.trials for cell in cells)
    return {
        "accuracy": hits / trials,
        "accuracy_ci95": list(wilson_interval(hits, trials)),
        "cells": [{"length": c.length, "depth": c.depth, "hits": c.hits, "trials": c.trials} for c in cells],
    }


def acceptance_json(rows: Sequence[AcceptanceRow]) -> list[dict[str, Any]]:
    """One row for each temperature and range of context lengths."""
    return [
        {
            "temperature": row.temperature,
            "context": row.context,
            "replies": row.replies,
            "num_drafts": row.num_drafts,
            "num_draft_tokens": row.num_draft_tokens,
            "num_accepted_tokens": row.num_accepted_tokens,
            "acceptance_rate": row.num_accepted_tokens / row.num_draft_tokens if row.num_draft_tokens else 0.0,
            "mean_acceptance_length": 1 + (row.num_accepted_tokens / row.num_drafts if row.num_drafts else 0.0),
        }
        for row in rows
    ]


def eval_text(value: dict[str, Any]) -> str:
    """The tables for people, from the JSON object."""
    lines: list[str] = []
    for task, found in value["tasks"].items():
        lines += [f"## {task}", "", *_TABLES[task](found), ""]
    return "\n".join(lines)


def _perplexity_lines(found: dict[str, Any]) -> list[str]:
    rows = [f"| {b['start']} to {b['end'] - 1} | {b['tokens']} | {b['perplexity']:.3f} |" for b in found["by_position"]]
    whole = f"| all | {found['tokens']} | {found['perplexity']:.3f} |"
    note = f"exp(mean -ln p) of the tokens at these places of {found['windows']} windows of {found['context']} tokens."
    return ["| position | tokens | perplexity |", "|---|--:|--:|", *rows, whole, "", note]


def _grid_lines(found: dict[str, Any]) -> list[str]:
    lengths = list(dict.fromkeys(cell["length"] for cell in found["cells"]))
    depths = list(dict.fromkeys(cell["depth"] for cell in found["cells"]))
    cells = {(cell["length"], cell["depth"]): f"{cell['hits']}/{cell['trials']}" for cell in found["cells"]}
    rows = [f"| {depth:.0%} | " + " | ".join(cells[length, depth] for length in lengths) + " |" for depth in depths]
    low, high = found["accuracy_ci95"]
    share = f"{found['accuracy']:.0%} [{low:.0%}, {high:.0%}]"
    note = f"Found {share}. Columns: tokens of the prompt; rows: depth of the fact."
    return ["| | " + " | ".join(map(str, lengths)) + " |", "|---|" + "--:|" * len(lengths), *rows, "", note]


def _acceptance_lines(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {row['temperature']:g} | {row['context']} | {row['replies']} | {row['num_draft_tokens']} "
        f"| {row['acceptance_rate']:.0%} | {row['mean_acceptance_length']:.2f} |"
        for row in found
    ]
    head = "| temperature | prompt tokens from | replies | draft tokens | acceptance | length |"
    note = "Acceptance: accepted / draft tokens. Length: 1 + accepted / rounds with a draft, bonus token included."
    return [head, "|--:|--:|--:|--:|--:|--:|", *rows, "", note]


_TABLES: dict[str, Callable[[Any], list[str]]] = {
    "perplexity": _perplexity_lines,
    "passkey": _grid_lines,
    "needle": _grid_lines,
    "acceptance": _acceptance_lines,
}
