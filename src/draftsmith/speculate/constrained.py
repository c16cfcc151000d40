"""What a grammar does for drafting: tokens that must follow need no drafter, and tokens that may not need no check."""

from __future__ import annotations

from dataclasses import replace

from draftsmith.sampling import TextState
from draftsmith.types import Draft

__all__ = ["forced_draft", "without_forbidden"]

_MOST = 16  # tokens checked at once


def forced_draft(text: TextState, room: int) -> Draft | None:
    """At most ``room`` tokens that must follow by the grammar; None where there is a choice."""
    forced = text.forced()[: min(room, _MOST)] if room > 0 else ()
    return Draft(tuple(forced), free=True, forced=True) if forced else None


def without_forbidden(draft: Draft, text: TextState) -> Draft:
    """``draft`` up to its first token that the grammar forbids.

    A draft that was drawn from distributions stays whole, as the rejection rule asks.
    """
    if draft.forced or draft.distributions is not None:
        return draft
    length = text.count_valid(draft.token_ids)
    if length == len(draft.token_ids):
        return draft
    copied = max(0, draft.num_copied - (len(draft.token_ids) - length))
    return replace(draft, token_ids=draft.token_ids[:length], confidences=draft.confidences[:length], num_copied=copied)
