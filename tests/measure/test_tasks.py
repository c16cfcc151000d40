"""eval's tasks of several facts, and the Alpaca format over turns: models that can and models that cannot."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.engine import LLM, LoadedModel
from draftsmith.errors import UsageError
from draftsmith.measure.adherence import measure_adherence
from draftsmith.measure.prompts import PromptItem
from draftsmith.measure.ruler import RulerTask, make_question, measure_ruler
from draftsmith.types import SamplingParams
from tests.support.fakes import EOS, VOCAB_SIZE, FakeModel, byte_tokenizer, fake_target


class Scripted(FakeModel):
    """Writes, after a prompt, what ``answer`` makes of it; ``end`` puts EOS behind it."""

    def __init__(self, max_context: int = 4096, *, end: bool = True) -> None:
        super().__init__(max_context=max_context)
        self._end = end

    def answer(self, prompt: str) -> str:
        raise NotImplementedError

    def _row(self, ids: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        text = bytes(min(i, 255) if i < 256 else 0 for i in ids).decode("latin-1")
        head = "### Response:\n" if "### Response:\n" in text else "assistant\n"
        prompt, _, reply = text.rpartition(head)
        answer = self.answer(prompt)
        row = np.zeros(VOCAB_SIZE, np.float32)
        row[ord(answer[len(reply)]) if len(reply) < len(answer) else EOS if self._end else ord(".")] = 9
        return row


class Solver(Scripted):
    """Solves both tasks as a program would, but reads no more than ``reach`` letters."""

    reach = 10_000

    def answer(self, prompt: str) -> str:
        seen = prompt[-self.reach :]
        if value := re.search(r"hold the value (\d+)", seen):
            names = re.findall(rf"VAR (\w+) = {value[1]}", seen)
            for name in names:  # it grows: the names that follow from each
                names += re.findall(rf"VAR (\w+) = VAR {name}\.", seen)
            return ", ".join(names) or "none"
        words = Counter(re.findall(r"\d+\. (\w+)", seen))
        return ", ".join(word for word, _ in words.most_common(5))


def solver(reach: int = 10_000) -> LLM:
    model = Solver()
    model.reach = reach
    return LLM(LoadedModel("solver", model, byte_tokenizer()), "none")


@pytest.mark.parametrize("task", ["variables", "words"])
def test_who_reads_all_of_it_names_all_of_it(task: RulerTask) -> None:
    rows = measure_ruler(solver(), task, [700, 1500], trials=2)
    assert [(row.length, row.trials, row.asked, row.found, row.perfect) for row in rows] == [
        (700, 2, 10, 10, 2), (1500, 2, 10, 10, 2),
    ]  # fmt: skip
    near = measure_ruler(solver(300), "variables", [1500], trials=2)[0]
    assert near.found < near.asked
    assert near.perfect == 0


@pytest.mark.parametrize("task", ["variables", "words"])
def test_questions_have_the_length_that_was_asked_for(task: RulerTask) -> None:
    llm = solver()
    for length in (400, 2000):
        question = make_question(llm, task, length, random.Random(length))  # noqa: S311
        assert 0.5 * length < len(question.message) + 60 <= length + 90  # a byte a token, and the format
        assert len(set(question.answers)) == 5
        if task == "words":
            counts = Counter(re.findall(r"\d+\. (\w+)", question.message))
            assert {word for word, _ in counts.most_common(5)} == set(question.answers)
        else:
            assert all(question.message.count(f"VAR {name} =") == 1 for name in question.answers)
    assert make_question(llm, task, 400, random.Random(1)) == make_question(llm, task, 400, random.Random(1))  # noqa: S311


def test_lengths_out_of_range_are_refused() -> None:
    llm = LLM(fake_target(), "none")
    with pytest.raises(UsageError, match="words needs 384 to the context's 512"):
        measure_ruler(llm, "words", [200])
    with pytest.raises(UsageError, match="trials is 0"):
        measure_ruler(llm, "words", [400], trials=0)


class Talker(Scripted):
    """Replies to ``a`` as it should, to ``b`` with another block, to ``c`` with nothing, to ``d`` without end."""

    def answer(self, prompt: str) -> str:
        last = (prompt.rstrip() or "d")[-1]
        return {"a": "fine", "b": "so\n\n### Input:\nmore", "c": " ", "d": "x" * 500}.get(last, "")


def test_replies_are_counted_by_how_they_end() -> None:
    llm = LLM(LoadedModel("talker", Talker(), byte_tokenizer()), "none")
    items = [PromptItem("1", "x", ("a", "a", "b")), PromptItem("2", "x", ("b", "c", "a")), PromptItem("3", "x", ("d",))]
    first, second, third = measure_adherence(llm, items, SamplingParams(greedy=True, max_new_tokens=40), system="be a")
    assert (first.replies, first.kept, first.began_another, first.ran_on, first.empty) == (3, 1, 1, 1, 0)
    assert (second.replies, second.kept, second.empty) == (2, 1, 1)
    assert (third.replies, third.kept, third.began_another) == (2, 1, 1)


def test_prompts_that_do_not_fit_leave_nothing_to_count() -> None:
    llm = LLM(LoadedModel("talker", Talker(64), byte_tokenizer()), "none")
    with pytest.raises(UsageError, match="no prompt fits"):
        measure_adherence(llm, [PromptItem("1", "x", ("a" * 99,))], SamplingParams(greedy=True))
