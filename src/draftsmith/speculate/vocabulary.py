"""How the draft's vocabulary relates to the target's. Compared by content: sizes say nothing.

Rows of logits may be wider than the tokenizer (padding), and differently wide for target and draft: that is fine.

The two ways to draft with a foreign vocabulary are those of Timor et al., "Accelerating LLM Inference with Lossless
Speculative Decoding Algorithms for Heterogeneous Vocabularies" (arXiv:2502.05202): with the tokens that both have, or
through the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from draftsmith.errors import TokenizerError
from draftsmith.text import Tokenizer

__all__ = ["TranslationMethod", "VocabularyMap", "check_same_vocabulary", "compare_vocabularies"]

TranslationMethod = Literal["ids", "tokens", "text"]

SAME_IDS = 0.999  # from this share on, ids are used as they are: the others are rare, and a wrong draft is only slow
COMMON_TOKENS = 0.8  # from this share on, sampled drafts are drawn from the common tokens

Content = tuple[bool, bytes]  # whether the token is a control token, and its bytes


@dataclass(frozen=True, slots=True)
class VocabularyMap:
    """Which ids of target and draft stand for the same text.

    ``target_ids`` and ``draft_ids``: int64 [C], pairs of the C tokens that both vocabularies have; no id comes twice.
    ``overlap`` is the share of a text that these tokens make up, in the vocabulary where it is smaller; ``same_ids``
    the share where even the ids agree. Both are estimates by Zipf's law, for ids are given roughly by frequency.
    """

    target: Tokenizer
    draft: Tokenizer
    target_ids: npt.NDArray[np.int64]
    draft_ids: npt.NDArray[np.int64]
    overlap: float
    same_ids: float

    def method(self, *, sampled: bool) -> TranslationMethod:
        """``ids`` (they mean the same), ``tokens`` (draw from the common ones) or ``text`` (translate the string).

        Greedy drafts go through the text whatever the overlap: that may use all tokens of both. For sampled ones the
        common tokens have the advantage that target and draft can draw with the same noise.
        """
        if self.same_ids >= SAME_IDS:
            return "ids"
        return "tokens" if sampled and self.overlap >= COMMON_TOKENS else "text"

    def describe(self) -> str:
        """One clause for the user: which way is used and why."""
        if self.same_ids >= SAME_IDS:
            return "its token ids mean the same as the target's"
        share = f"the common tokens make up about {100 * self.overlap:.0f} % of a text"
        if self.overlap >= COMMON_TOKENS:
            return f"its vocabulary differs, so it drafts by exact text, or by common tokens when sampling ({share})"
        return f"its vocabulary differs, so it drafts by exact text ({share})"


def compare_vocabularies(target: Tokenizer, draft: Tokenizer) -> VocabularyMap:
    """Match tokens by content; takes about a second for vocabularies of 150,000."""
    if target.fingerprint() == draft.fingerprint():
        same = np.arange(min(target.vocab_size, draft.vocab_size))
        return VocabularyMap(target, draft, same, same, 1.0, 1.0)
    theirs, ours = _by_content(target), _by_content(draft)
    pairs = {draft_id: theirs[content] for content, draft_id in ours.items() if content in theirs}
    use, target_use = _use(ours), _use(theirs)
    overlap = min(sum(use.get(i, 0.0) for i in pairs), sum(target_use.get(i, 0.0) for i in pairs.values()))
    same_ids = sum(share for i, share in use.items() if _content(draft, i) == _content(target, i))
    pairs |= {d: t for d, t in _by_role(target, draft) if d not in pairs and t not in pairs.values()}
    draft_ids, target_ids = (np.array(side, np.int64) for side in (list(pairs), list(pairs.values())))
    return VocabularyMap(target, draft, target_ids, draft_ids, overlap, same_ids)


def _by_content(tokenizer: Tokenizer) -> dict[Content, int]:
    """One id for each content: the one that encoding gives; of others with the same content, the lowest."""
    ids: dict[Content, int] = {}
    again: set[Content] = set()
    for token_id in range(tokenizer.vocab_size):
        content = _content(tokenizer, token_id)
        if content[1] and ids.setdefault(content, token_id) != token_id:
            again.add(content)
    for content in again:  # a byte token and a piece, for example
        encoded = None if content[0] else _encoded(tokenizer, content[1])
        if encoded is not None:
            ids[content] = encoded
    return ids


def _use(ids: dict[Content, int]) -> dict[int, float]:
    """The share of a text's tokens that each ordinary id may be expected to make up."""
    ordinary = sorted(token_id for (special, _), token_id in ids.items() if not special)
    weights = [1.0 / (rank + 100.0) for rank in range(len(ordinary))]
    total = sum(weights)
    return {token_id: weight / total for token_id, weight in zip(ordinary, weights, strict=True)}


def _content(tokenizer: Tokenizer, token_id: int) -> Content:
    return tokenizer.is_special(token_id), tokenizer.token_bytes(token_id)


def _encoded(tokenizer: Tokenizer, data: bytes) -> int | None:
    try:
        return tokenizer.id_of(data.decode())
    except UnicodeDecodeError:
        return None


def _by_role(target: Tokenizer, draft: Tokenizer) -> Iterator[tuple[int, int]]:
    """Pairs (draft id, target id) of control tokens with the same task, however they are written."""
    if target.bos_id is not None and draft.bos_id is not None:
        yield draft.bos_id, target.bos_id
    if target.eos_ids and draft.eos_ids:
        yield draft.eos_ids[0], target.eos_ids[0]


def check_same_vocabulary(target_fingerprint: str, draft_fingerprint: str, target: str, draft: str) -> None:
    """Raise TokenizerError unless both tokenizers map the same ids to the same bytes (``Tokenizer.fingerprint()``).

    For what cannot be translated, such as training a draft on a target's logits. ``target`` and ``draft`` are the
    models' names, for the message.
    """
    if target_fingerprint != draft_fingerprint:
        raise TokenizerError(
            f"The draft {draft} has another vocabulary than the target {target} (the same ids stand for different "
            "text); choose a draft that was trained with the target's tokenizer"
        )
