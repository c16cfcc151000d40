"""Two tasks after RULER (arXiv:2404.06654) that ask for more than one fact; the texts are ours, made from seeds.

- variables: assignments in filler, some of them a chain (``VAR K = 12345``, ``VAR B = VAR K``, ...). Asked: all
  variables that hold the value. The other chain has another value.
- words: a numbered list in which five words take half of the places and the others occur three times each (or
  less often, in short lists). Asked: the five commonest.

Told is the share of what was asked for that the reply names (recall, as in the paper).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from draftsmith.engine import LLM
from draftsmith.errors import UsageError
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.types import Message, SamplingParams

__all__ = ["LengthRow", "Question", "RulerTask", "make_question", "measure_ruler"]

RulerTask = Literal["variables", "words"]

MIN_LENGTH = 384
CHAIN = 5  # variables that hold the value: one that is given it, four hops
COMMON = 5
_OVERHEAD = 128  # tokens for the question and the prompt format
_FILLER = (
    "The ferry leaves when the tide is in.",
    "Snow lay on the roofs until noon.",
    "Nobody had wound the clock that week.",
    "The bakery opens before the school does.",
)
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True, slots=True)
class Question:
    """A user's message and the names that the reply must hold."""

    message: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LengthRow:
    """``found`` of ``asked`` names, over ``trials`` prompts of about ``length`` tokens; ``perfect``: with all."""

    length: int
    trials: int
    asked: int
    found: int
    perfect: int


def measure_ruler(
    llm: LLM,
    task: RulerTask,
    lengths: Sequence[int],
    *,
    trials: int = 1,
    seed: int = 0,
    report: Report = tell_nobody,
) -> tuple[LengthRow, ...]:
    """Ask ``trials`` times at each length, greedily. Raises UsageError when a length does not fit into the context."""
    for length in lengths:
        if not MIN_LENGTH <= length <= llm.target.model.max_context:
            largest = llm.target.model.max_context
            raise UsageError(f"a length is {length}; {task} needs {MIN_LENGTH} to the context's {largest}")
    if trials < 1:
        raise UsageError(f"trials is {trials}; it must be at least 1")
    params = SamplingParams(greedy=True, max_new_tokens=64)
    rows = []
    for place, length in enumerate(lengths):
        found = asked = perfect = 0
        for trial in range(trials):
            report(place * trials + trial, len(lengths) * trials, f"{task} {length}")
            rng = random.Random(f"{seed}/{task}/{length}/{trial}")  # noqa: S311 (texts, no secrets)
            question = make_question(llm, task, length, rng)
            reply = llm.chat([Message("user", question.message)], params)
            named = set(re.findall(r"\w+", reply.text))
            hits = sum(answer in named for answer in question.answers)
            found, asked = found + hits, asked + len(question.answers)
            perfect += hits == len(question.answers)
        rows.append(LengthRow(length, trials, asked, found, perfect))
    return tuple(rows)


def make_question(llm: LLM, task: RulerTask, length: int, rng: random.Random) -> Question:
    """A text of about ``length`` tokens, question and format included, never more."""
    room = length - _OVERHEAD
    return _variables(llm, room, rng) if task == "variables" else _words(llm, room, rng)


def _variables(llm: LLM, room: int, rng: random.Random) -> Question:
    names = rng.sample(["".join(letters) for letters in _triples()], 2 * CHAIN)
    value, other = rng.sample(range(10_000, 100_000), 2)
    chains = [_chain(names[:CHAIN], value), _chain(names[CHAIN:], other)]
    sentences: list[str] = []
    room -= _tokens(llm, " ".join([*chains[0], *chains[1]]))
    while (cost := _tokens(llm, " " + (sentence := _FILLER[len(sentences) % len(_FILLER)])) + 1) <= room:
        sentences.append(sentence)
        room -= cost
    for chain in chains:  # a chain stays in order: a variable is assigned before it is read
        places = sorted(rng.randrange(len(sentences) + 1) for _ in chain)
        for shift, (place, line) in enumerate(zip(places, chain, strict=True)):
            sentences.insert(place + shift, line)
    question = f"Which {CHAIN} variables hold the value {value}, directly or through others? List their names."
    text = " ".join(sentences)
    return Question(f"Track the variables in this text.\n\n{text}\n\n{question}", tuple(names[:CHAIN]))


def _chain(names: Sequence[str], value: int) -> list[str]:
    return [f"VAR {names[0]} = {value}."] + [f"VAR {b} = VAR {a}." for a, b in pairwise(names)]


def _triples() -> list[str]:
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    return [a + b + c for a in letters for b in letters for c in letters if len({a, b, c}) == 3]


def _words(llm: LLM, room: int, rng: random.Random) -> Question:
    syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    pool = ["".join(parts) for parts in ((a, b) for a in syllables for b in syllables if a != b)]
    rng.shuffle(pool)
    each = max(1, _tokens(llm, "\n".join(f"{i}. {word}" for i, word in enumerate(pool[:100], start=1))) // 100 + 2)
    count = room // each  # the two tokens to spare are for numbers with more digits
    often = max(2, count // (2 * COMMON))
    seldom = max(1, min(3, often // 2))
    common, others = pool[:COMMON], pool[COMMON : COMMON + (count - COMMON * often) // seldom]
    words = common * often + others * seldom
    rng.shuffle(words)
    listed = "\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1))
    question = f"Which {COMMON} words occur most often in the list? Name them."
    return Question(f"Remember which words occur most often in this list.\n\n{listed}\n\n{question}", tuple(common))


def _tokens(llm: LLM, text: str) -> int:
    return len(llm.tokenizer.encode(text))
