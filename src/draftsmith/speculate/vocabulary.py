"""Whether a draft model speaks the target's vocabulary. Compared by content: sizes say nothing.

Rows of logits may be wider than the tokenizer (padding), and differently wide for target and draft: that is fine.
"""

from __future__ import annotations

from draftsmith.errors import TokenizerError

__all__ = ["check_same_vocabulary"]


def check_same_vocabulary(target_fingerprint: str, draft_fingerprint: str, target: str, draft: str) -> None:
    """Raise TokenizerError unless both tokenizers map the same ids to the same bytes (``Tokenizer.fingerprint()``).

    ``target`` and ``draft`` are the models' names, for the message.
    """
    if target_fingerprint != draft_fingerprint:
        raise TokenizerError(
            f"The draft {draft} has another vocabulary than the target {target} (the same ids stand for different "
            "text); choose a draft that was trained with the target's tokenizer, or use --draft lookup"
        )
