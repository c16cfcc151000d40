"""What ``eval`` tells: the JSON object (schema: docs/schemas/eval.json) and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from draftsmith.measure.acceptance import AcceptanceRow
from draftsmith.measure.adherence import TurnRow
from draftsmith.measure.needles import GridCell
from draftsmith.measure.perplexity import PerplexityResult
from draftsmith.measure.ruler import LengthRow
from draftsmith.measure.statistics import wilson_interval

__all__ = ["acceptance_json", "adherence_json", "eval_text", "grid_json", "perplexity_json", "ruler_json"]


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


def ruler_json(rows: Sequence[LengthRow]) -> dict[str, Any]:
    """The share of the names that were found, over all prompts and by length."""
    return {
        "accuracy": sum(row.found for row in rows) / sum(row.asked for row in rows),
        "by_length": [
            {
                "length": row.length,
                "trials": row.trials,
                "accuracy": row.found / row.asked,
                "asked": row.asked,
                "found": row.found,
                "perfect": row.perfect,
            }
            for row in rows
        ],
    }


def adherence_json(rows: Sequence[TurnRow], temperature: float) -> dict[str, Any]:
    """The share of replies that kept to the format, with Wilson's interval, and the counts by turn. ``temperature``: of
    the replies."""
    kept, replies = sum(row.kept for row in rows), sum(row.replies for row in rows)
    return {
        "adherence": kept / replies,
        "adherence_ci95": list(wilson_interval(kept, replies)),
        "replies": replies,
        "temperature": temperature,
        "by_turn": [
            {
                "turn": row.turn,
                "replies": row.replies,
                "kept": row.kept,
                "began_another": row.began_another,
                "ran_on": row.ran_on,
                "empty": row.empty,
            }
            for row in rows
        ],
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


def _ruler_lines(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| {r['length']} | {r['accuracy']:.0%} | {r['found']}/{r['asked']} | {r['perfect']}/{r['trials']} |"
        for r in found["by_length"]
    ]
    note = f"Named {found['accuracy']:.0%} of what was asked for. Perfect: replies that named all of it."
    return ["| tokens | named | names | perfect |", "|--:|--:|--:|--:|", *rows, "", note]


def _adherence_lines(found: dict[str, Any]) -> list[str]:
    keys = ("turn", "replies", "kept", "began_another", "ran_on", "empty")
    rows = ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in found["by_turn"]]
    low, high = found["adherence_ci95"]
    note = (
        f"Kept to the format: {found['adherence']:.0%} [{low:.0%}, {high:.0%}] of {found['replies']} replies, which "
        "say something, begin no other block and end with the end-of-text token. Ran on: longer than --max-new-tokens. "
        f"Replies at temperature {found['temperature']:g}."
    )
    return ["| turn | replies | kept | began another | ran on | empty |", "|--:|--:|--:|--:|--:|--:|", *rows, "", note]


def _harness_lines(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, task in found.items():
        for metric, value in task["metrics"].items():
            error = task["standard_errors"].get(metric)
            spread = "" if error is None else f" ± {error:.4f}"
            rows.append(f"| {name} | {metric} | {value:.4f}{spread} | {task['questions'] or ''} |")
    note = "Metrics are those of lm-eval's tasks, by their names there; ±: the standard error that it gives."
    return ["| task | metric | value | questions |", "|---|---|--:|--:|", *rows, "", note]


_TABLES: dict[str, Callable[[Any], list[str]]] = {
    "perplexity": _perplexity_lines,
    "passkey": _grid_lines,
    "needle": _grid_lines,
    "variables": _ruler_lines,
    "words": _ruler_lines,
    "format": _adherence_lines,
    "acceptance": _acceptance_lines,
    "lm_eval": _harness_lines,
}
