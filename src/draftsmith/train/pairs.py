"""Preferences that nobody has to write: of a model's own replies to one prompt, those that end over those that do not.

Small models run in circles until they are cut off, or begin the user's turn themselves. A ``generate`` stage with
several ``samples`` shows both kinds side by side, and a ``dpo`` stage that has its folder for data learns from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from draftsmith.train.encode import Document
from draftsmith.train.parts import read_parts

__all__ = ["pairs_of_replies"]

PromptIds = tuple[int, ...]


def pairs_of_replies(
    files: Sequence[Path], fingerprint: str, eos_ids: Collection[int]
) -> Iterator[tuple[Path, int, tuple[Document, Document]]]:
    """(file, number from 1, (chosen, rejected)) for each reply that does not end with one of ``eos_ids`` though another
    to the same prompt does. Those that end take turns where one prompt has several.

    The files are read twice, and only what is in pairs is held. Raises what ``read_parts`` raises.
    """
    ends: defaultdict[PromptIds, set[bool]] = defaultdict(set)
    for _, _, prompt, document in _replies(files, fingerprint):
        ends[prompt].add(_ends(document, eos_ids))
    both = {prompt for prompt, found in ends.items() if len(found) == 2}
    ended: defaultdict[PromptIds, list[Document]] = defaultdict(list)
    others: list[tuple[Path, int, PromptIds, Document]] = []
    for file, number, prompt, document in _replies(files, fingerprint):
        if prompt in both:
            kept = Document(document.ids.copy(), document.mask.copy())  # so that the rest of the part can go
            if _ends(document, eos_ids):
                ended[prompt].append(kept)
            else:
                others.append((file, number, prompt, kept))
    turn: defaultdict[PromptIds, int] = defaultdict(int)
    for file, number, prompt, document in others:
        chosen = ended[prompt][turn[prompt] % len(ended[prompt])]
        turn[prompt] += 1
        yield file, number, (chosen, document)


def _replies(files: Sequence[Path], fingerprint: str) -> Iterator[tuple[Path, int, PromptIds, Document]]:
    """Every reply with its place and the ids before it."""
    for file in files:
        for number, document in enumerate(read_parts(file, fingerprint), start=1):
            prompt = tuple(document.ids[: int(document.mask.argmax())].tolist())
            yield file, number, prompt, document


def _ends(document: Document, eos_ids: Collection[int]) -> bool:
    return int(document.ids[-1]) in eos_ids
