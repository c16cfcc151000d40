"""How much the batched engine takes on at once, and how prompts share the time that is given to reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftsmith.errors import UsageError

__all__ = ["EngineLimits", "share_reading"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Raises UsageError on construction for values out of range.

    ``max_running``: texts in the batch. ``max_waiting``: requests in the queue; more are refused. ``prefill_tokens``:
    prompt tokens read in a step while nobody writes; ``prefill_tokens_beside`` while others do, who wait for them in
    every round. ``kv_bytes``: memory for keys and values, None for half of what is free. ``max_kept_texts``: texts
    whose caches are kept for prompts that begin alike, as long as memory lasts. ``share_prompts``: whether what prompts
    begin with is read once for all of them; who is read faster can tell that somebody else began like that.
    """

    max_running: int = 16
    max_waiting: int = 128
    prefill_tokens: int = 256
    prefill_tokens_beside: int = 64
    kv_bytes: int | None = None
    max_kept_texts: int = 64
    share_prompts: bool = True

    def __post_init__(self) -> None:
        least = {"max_running": 1, "max_waiting": 1, "prefill_tokens": 1, "prefill_tokens_beside": 1, "kv_bytes": 1}
        for name, low in {**least, "max_kept_texts": 0}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}; it must be at least {low}")


def share_reading(unread: Sequence[int], tokens: int) -> list[int]:
    """How many of ``tokens`` each text gets to read, given what it has ``unread``; texts are in order of arrival.

    Half is for the text that came first, so that a long prompt is read to its end; the rest goes to the texts that have
    least left, so that a short prompt need not wait for a long one.
    """
    shares = [0] * len(unread)
    if unread:
        shares[0] = min(unread[0], (tokens + 1) // 2)
        tokens -= shares[0]
    for i in sorted(range(len(unread)), key=lambda i: unread[i]):
        more = min(unread[i] - shares[i], tokens)
        shares[i] += more
        tokens -= more
    return shares
