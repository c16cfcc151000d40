"""What is told about a finished reply: the JSON object for programs and the status line for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draftsmith.types import Completion

__all__ = ["completion_json", "status_line"]


def completion_json(completion: Completion) -> dict[str, Any]:
    """The object that ``generate --json`` prints; its shape is a promise (docs/cli.md)."""
    timing, stats = completion.timing, completion.speculation
    return {
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "usage": {"prompt_tokens": completion.num_prompt_tokens, "completion_tokens": len(completion.token_ids)},
        "timing": {
            "load_s": timing.load_s,
            "prefill_s": timing.prefill_s,
            "decode_s": timing.decode_s,
            "tokens_per_s": timing.tokens_per_s,
        },
        "speculation": None
        if stats is None
        else {
            "drafter": stats.drafter,
            "num_drafts": stats.num_drafts,
            "num_draft_tokens": stats.num_draft_tokens,
            "num_accepted_tokens": stats.num_accepted_tokens,
            "num_accepted_tokens_per_pos": list(stats.num_accepted_tokens_per_pos),
            "acceptance_rate": stats.acceptance_rate,
            "mean_acceptance_length": stats.mean_acceptance_length,
        },
    }


def status_line(completion: Completion, plain_step_s: float | None) -> str:
    """One line: tokens, speed, acceptance, and the speed-up over ``plain_step_s``, the time of one plain step.

    The plain step is an estimate, not a plain run of the same text: hence the ≈ before the speed-up.
    """
    timing, stats = completion.timing, completion.speculation
    parts = [f"{len(completion.token_ids)} tokens", f"{timing.tokens_per_s:.0f} tokens/s"]
    if stats is None:
        parts.append("no drafter")
    elif stats.num_draft_tokens == 0:
        parts.append(f"{stats.drafter}: nothing drafted")
    else:
        parts.append(
            f"{stats.drafter}: {stats.num_accepted_tokens} of {stats.num_draft_tokens} accepted"
            f" ({stats.acceptance_rate:.0%})"
        )
    if stats is not None and plain_step_s is not None and timing.decode_s > 0:
        parts.append(f"≈{plain_step_s * timing.num_decoded / timing.decode_s:.1f}x plain")
    if completion.finish_reason == "length":
        parts.append("cut at the length limit")
    return " · ".join(parts)
