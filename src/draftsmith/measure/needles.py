"""Finding one fact in a long text: grids of length and depth. The texts are ours, made from seeds.

- passkey: a number in filler that repeats itself (after Mohtashami and Jaggi 2023).
- needle: a sentence about a person in varied filler; the question names the person, others are there to confuse.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from draftsmith.engine import LLM
from draftsmith.errors import UsageError
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.types import Message, SamplingParams

__all__ = ["GridCell", "Haystack", "NeedleTask", "make_haystack", "measure_needles"]

NeedleTask = Literal["passkey", "needle"]

_FILLER = (
    "The river is low in August and high in March.",
    "A cart went by, and after it a dog.",
    "Somebody had left a ladder against the wall.",
    "In the afternoon the wind turned to the north.",
)
_SUBJECTS = (
    "The miller",
    "The teacher",
    "A sailor",
    "The gardener",
    "An old woman",
    "The postman",
    "A boy",
    "The smith",
)
_VERBS = ("repaired", "carried", "sold", "painted", "found", "forgot", "borrowed", "counted")
_OBJECTS = (
    "a lamp",
    "two chairs",
    "the fence",
    "a basket of plums",
    "the keys",
    "an anchor",
    "three books",
    "the clock",
)
_PLACES = ("by the canal", "behind the church", "at the market", "near the station", "on the bridge", "in the yard")
_NAMES = ("Adele", "Bruno", "Clara", "Dario", "Elin", "Farid", "Greta", "Hugo")
_TOWNS = ("Lisbon", "Tampere", "Bergen", "Cadiz", "Ghent", "Kaunas", "Ravenna", "Tartu", "Porto", "Graz")
_OVERHEAD = 96  # tokens for the question and the prompt format


@dataclass(frozen=True, slots=True)
class Haystack:
    """A user's message and what the reply must hold."""

    message: str
    answer: str


@dataclass(frozen=True, slots=True)
class GridCell:
    """``hits`` of ``trials`` at prompts of about ``length`` tokens with the fact at ``depth`` (0 beginning, 1 end)."""

    length: int
    depth: float
    hits: int
    trials: int


def measure_needles(
    llm: LLM,
    task: NeedleTask,
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    trials: int = 1,
    seed: int = 0,
    report: Report = tell_nobody,
) -> tuple[GridCell, ...]:
    """Ask ``trials`` times in each cell, greedily. Raises UsageError when a length does not fit into the context."""
    for length in lengths:
        if not 2 * _OVERHEAD <= length <= llm.target.model.max_context:
            largest = llm.target.model.max_context
            raise UsageError(f"a length is {length}; it must be from {2 * _OVERHEAD} to the context's {largest}")
    if trials < 1 or not all(0 <= depth <= 1 for depth in depths):
        raise UsageError("trials must be at least 1 and depths from 0 to 1")
    params = SamplingParams(greedy=True, max_new_tokens=24)
    cells: list[GridCell] = []
    total = len(lengths) * len(depths) * trials
    for length in lengths:
        for depth in depths:
            hits = 0
            for trial in range(trials):
                report(len(cells) * trials + trial, total, f"{task} {length} at {depth:.0%}")
                rng = random.Random(f"{seed}/{task}/{length}/{depth}/{trial}")  # noqa: S311 (texts, no secrets)
                haystack = make_haystack(llm, task, length, depth, rng)
                reply = llm.chat([Message("user", haystack.message)], params)
                hits += haystack.answer.lower() in reply.text.lower()
            cells.append(GridCell(length, depth, hits, trials))
    return tuple(cells)


def make_haystack(llm: LLM, task: NeedleTask, length: int, depth: float, rng: random.Random) -> Haystack:
    """A text of about ``length`` tokens, question and format included, never more."""
    if task == "passkey":
        answer = str(rng.randrange(10_000, 100_000))
        needle = f"The pass key is {answer}. Remember it: {answer} is the pass key."
        question = "What is the pass key in the text?"
        filler: Iterator[str] = iter(lambda: " ".join(_FILLER), "")
        others: list[str] = []
    else:
        names = rng.sample(_NAMES, 3)
        towns = rng.sample(_TOWNS, 3)
        answer = towns[0]
        needle, *others = (f"{name} was born in {town}." for name, town in zip(names, towns, strict=True))
        question = f"Where was {names[0]} born?"
        filler = _sentences(rng)
    room = length - _OVERHEAD - len(llm.tokenizer.encode(" ".join([needle, *others])))
    sentences: list[str] = []
    for sentence in filler:
        room -= len(llm.tokenizer.encode(" " + sentence)) + 1
        if room < 0:
            break
        sentences.append(sentence)
    place = round(depth * len(sentences))
    sentences.insert(place, needle)
    for other in others:
        sentences.insert(rng.randrange(len(sentences) + 1), other)
    text = " ".join(sentences)
    return Haystack(f"Read this text and answer the question after it.\n\n{text}\n\n{question}", answer)


def _sentences(rng: random.Random) -> Iterator[str]:
    while True:
        parts = (rng.choice(words) for words in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES))
        yield " ".join(parts) + "."
