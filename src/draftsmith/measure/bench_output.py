"""What ``bench`` tells: the JSON object for programs, the tables for people. Schema: docs/schemas/bench.json."""

from __future__ import annotations

from typing import Any

from draftsmith.measure.bench import BenchResult, Group
from draftsmith.measure.costs import CostCurves
from draftsmith.measure.pair import Pair

__all__ = ["bench_details", "bench_json", "bench_text"]

SHOWN_SIZES = (2, 4, 8, 16)
_DEFINITIONS = (
    "tokens/s: tokens after a reply's first / time from the first to the last, prompt reading not counted.\n"
    "Speed-up: speculative tokens/s / plain tokens/s, both from this run, prompt by prompt in turn.\n"
    "Acceptance: accepted / draft tokens. Length: mean acceptance length, 1 + accepted / rounds with a draft (bonus\n"
    "token included). By position: accepted / drafts that had a token there. Brackets: 95 % intervals, bootstrap over\n"
    "prompts. Costs: c a draft step, d a call of the draft, v(m) checking m tokens; predicted: tokens over the sum of\n"
    "d + k c + v(k + 1) of all rounds, d and c only where a model drafted."
)


def bench_json(result: BenchResult, pair: Pair, provenance: dict[str, Any]) -> dict[str, Any]:
    """The object that ``bench --json`` prints; its top-level keys are a promise."""
    overall = result.overall
    plain, fast, gain = overall.intervals
    times = [prompt.time for prompt in result.prompts]
    whole = sum(t.target_s + t.draft_s + t.other_s for t in times) or 1.0
    return {
        "prompts": len(result.prompts),
        "tokens": sum(p.tokens for p in result.prompts),
        "plain": {
            "tokens_per_s": overall.plain_rate,
            "tokens_per_s_ci95": list(plain),
            "step_s": result.costs.plain_s,
            "prefill_s": sum(p.prefill_s[0] for p in result.prompts),
        },
        "speculative": {
            "tokens_per_s": overall.speculative_rate,
            "tokens_per_s_ci95": list(fast),
            "speedup_ci95": list(gain),
            "predicted_speedup": overall.predicted_speedup(result.costs),
            "end_to_end_speedup": overall.end_to_end_speedup,
            "drafter": pair.speculative.drafter_name,
            "prefill_s": sum(p.prefill_s[1] for p in result.prompts),
            **_counts(overall),
            "time_share": {
                "target": sum(t.target_s for t in times) / whole,
                "draft": sum(t.draft_s for t in times) / whole,
                "other": sum(t.other_s for t in times) / whole,
            },
            "memory": pair.memory.as_dict(),
        },
        "speedup": overall.speedup,
        "identical": all(p.identical for p in result.prompts),
        "worst_prompt_speedup": min(p.speedup for p in result.prompts),
        "acceptance_rate": overall.acceptance_rate,
        "mean_acceptance_length": overall.mean_acceptance_length,
        "by_category": {name: _category(group, result.costs) for name, group in result.categories.items()},
        "draft_cost_c": result.costs.draft_cost,
        "draft_call_cost": result.costs.draft_call,
        "verify_cost_v": {str(size): result.costs.verify_cost(size) for size in SHOWN_SIZES},
        "provenance": {**provenance, "cost_context": result.costs.context, "skipped": list(result.skipped)},
    }


def bench_details(result: BenchResult) -> dict[str, Any]:
    """What ``bench --output`` adds: every prompt, the whole cost curves, and a few rounds to look at."""
    return {
        "prompts": [
            {
                "id": p.id,
                "category": p.category,
                "tokens": p.tokens,
                "plain_s": p.plain_s,
                "speculative_s": p.speculative_s,
                "speedup": p.speedup,
                "identical": p.identical,
                "num_draft_tokens": p.num_draft_tokens,
                "num_accepted_tokens": sum(p.accepted_per_pos),
            }
            for p in result.prompts
        ],
        "verify_cost_v": {str(size): cost for size, cost in result.costs.verify.items()},
        "timeline": [{"drafted": drafted, "accepted": accepted} for drafted, accepted in result.timeline],
        "roofline": None if result.roofline is None else result.roofline.as_dict(),
    }


def bench_text(value: dict[str, Any]) -> str:
    """The tables for people, from the JSON object, in Markdown."""
    plain, fast = value["plain"], value["speculative"]
    rows = [("all", {**value, "tokens_per_s": fast["tokens_per_s"], "speedup_ci95": fast["speedup_ci95"]})]
    rows += list(value["by_category"].items())
    lines = ["| category | prompts | tokens/s | speed-up | acceptance | length |", "|---|--:|--:|--:|--:|--:|"]
    for name, row in rows:
        low, high = row["speedup_ci95"]
        lines.append(
            f"| {name} | {row['prompts']} | {row['tokens_per_s']:.1f} | {row['speedup']:.2f} [{low:.2f}, {high:.2f}] "
            f"| {row['acceptance_rate']:.0%} | {row['mean_acceptance_length']:.2f} |"
        )
    share, curve = fast["time_share"], value["verify_cost_v"]
    positions = " ".join(f"{rate:.0%}" for rate in fast["acceptance_by_position"][:8])
    return "\n".join(
        [
            f"plain {plain['tokens_per_s']:.1f} tokens/s, {fast['drafter']} {fast['tokens_per_s']:.1f} tokens/s: "
            f"{value['speedup']:.2f}x (predicted {fast['predicted_speedup']:.2f}x, worst prompt "
            f"{value['worst_prompt_speedup']:.2f}x, with prompt reading {fast['end_to_end_speedup']:.2f}x); "
            f"identical: {'yes' if value['identical'] else 'no'}",
            "",
            *lines,
            "",
            f"acceptance by position: {positions or 'nothing drafted'}",
            f"costs in plain steps of {plain['step_s'] * 1000:.1f} ms: c {value['draft_cost_c']:.3f}, "
            f"d {value['draft_call_cost']:.3f}, " + ", ".join(f"v({size}) {cost:.2f}" for size, cost in curve.items()),
            f"time: target {share['target']:.0%}, draft {share['draft']:.0%}, everything else {share['other']:.0%}",
            f"memory: target {fast['memory']['target_bytes'] / 1e6:.0f} MB, draft "
            f"{fast['memory']['draft_bytes'] / 1e6:.0f} MB, peak {fast['memory']['peak_bytes'] / 1e6:.0f} MB",
            "",
            _DEFINITIONS,
        ]
    )


def _counts(group: Group) -> dict[str, Any]:
    accepted, drafted = group.accepted_per_pos, group.drafted_per_pos
    return {
        "num_drafts": sum(p.num_drafts for p in group.prompts),
        "num_draft_tokens": sum(p.num_draft_tokens for p in group.prompts),
        "num_accepted_tokens": sum(accepted),
        "num_accepted_tokens_per_pos": list(accepted),
        "acceptance_by_position": [
            kept / proposed for kept, proposed in zip(accepted, drafted, strict=False) if proposed
        ],
    }


def _category(group: Group, costs: CostCurves) -> dict[str, Any]:
    return {
        "prompts": len(group.prompts),
        "tokens_per_s": group.speculative_rate,
        "plain_tokens_per_s": group.plain_rate,
        "speedup": group.speedup,
        "speedup_ci95": list(group.intervals[2]),
        "predicted_speedup": group.predicted_speedup(costs),
        "worst_prompt_speedup": min(p.speedup for p in group.prompts),
        "acceptance_rate": group.acceptance_rate,
        "mean_acceptance_length": group.mean_acceptance_length,
        "identical": all(p.identical for p in group.prompts),
    }
