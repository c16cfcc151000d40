"""Text that the target writes: what is stored is what the engine says, once for each prompt, resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftsmith.engine import LLM
from draftsmith.errors import CheckpointError, DraftsmithError, TokenizerError, UsageError
from draftsmith.train.parts import part_metadata, read_parts
from draftsmith.train.prompts import prompt_key, read_prompts, that_fit, write_prompts
from draftsmith.train.replies import parts_of, write_replies, write_replies_together
from draftsmith.train.schema import DataSource, GenerateStage
from draftsmith.types import Completion, FinishReason, Message, SamplingParams
from tests.support.fakes import EOS
from tests.support.tiny import tiny_folder

STAGE = GenerateStage(
    name="replies", kind="generate", temperature=1.0, max_new_tokens=9, top_logprobs=5, rows_per_part=2, draft="lookup"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny_folder(tmp_path_factory.mktemp("model") / "tiny"), "lookup", threads=1)


def prompts(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("user", text),) for text in texts]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_part_holds_what_the_engine_says(llm: LLM, tmp_path: Path) -> None:
    counts = write_replies(llm, STAGE, prompts("hi", "so", "then"), tmp_path, lambda _: None)
    assert counts == {"prompts": 3, "replies": 3}
    parts = sorted(tmp_path.iterdir())
    assert [path.name for path in parts] == ["part-00000.safetensors", "part-00001.safetensors"]
    documents = [document for part in parts for document in read_parts(part, llm.tokenizer.fingerprint())]
    assert len(documents) == 3
    by_prompt = {tuple(document.ids[~document.mask].tolist()): document for document in documents}
    for text in ("hi", "so", "then"):  # in an order drawn by the seed
        prompt = llm.prompt_format.encode([Message("user", text)]).token_ids
        document = by_prompt[prompt]
        assert document.mask.tolist() == [False] * len(prompt) + [True] * 9
        assert document.top_ids is not None
        assert document.top_logprobs is not None
        assert document.top_ids.shape == document.top_logprobs.shape == (9, 5)
        [again] = llm.generate(list(prompt), SamplingParams(max_new_tokens=1, greedy=True, logprobs=5))
        assert again.logprobs is not None
        assert document.top_ids[0].tolist() == [token for token, _ in again.logprobs[0].top]
        expected = [logprob for _, logprob in again.logprobs[0].top]
        assert document.top_logprobs[0].astype(float) == pytest.approx(expected, abs=2e-3)


class Interrupted(Exception):
    pass


class FewReplies:
    """A writer that breaks off after some replies."""

    def __init__(self, llm: LLM, count: int) -> None:
        self._llm, self._left = llm, count
        self.name, self.tokenizer, self.prompt_format = llm.name, llm.tokenizer, llm.prompt_format
        self.max_context = llm.max_context

    def generate(self, prompts: Any, sampling: Any) -> list[Completion]:
        self._left -= len(prompts)
        if self._left < 0:
            raise Interrupted
        return self._llm.generate(prompts, sampling)


def test_interrupted_work_goes_on_and_nothing_is_written_twice(llm: LLM, tmp_path: Path) -> None:
    asked = prompts("a", "b", "c", "d", "e")
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    write_replies(llm, STAGE, asked, tmp_path / "whole", lambda _: None)
    with pytest.raises(Interrupted):
        write_replies(FewReplies(llm, 3), STAGE, asked, tmp_path / "parts", lambda _: None)
    assert len(contents(tmp_path / "parts")) == 1
    write_replies(FewReplies(llm, 3), STAGE, asked, tmp_path / "parts", lambda _: None)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    write_replies(FewReplies(llm, 0), STAGE, asked, tmp_path / "parts", lambda _: None)


def test_samples_of_one_prompt_differ_and_the_seed_decides(llm: LLM, tmp_path: Path) -> None:
    def written(name: str, stage: GenerateStage) -> list[list[int]]:
        (tmp_path / name).mkdir()
        write_replies(llm, stage, prompts("hi"), tmp_path / name, lambda _: None)
        parts = sorted((tmp_path / name).iterdir())
        return [d.ids.tolist() for part in parts for d in read_parts(part, llm.tokenizer.fingerprint())]

    three = written("a", replace(STAGE, samples=3))
    assert len({tuple(ids) for ids in three}) == 3
    assert written("b", replace(STAGE, samples=3)) == three
    assert written("c", replace(STAGE, samples=3, seed=1)) != three


def test_every_turn_of_a_conversation_is_answered(llm: LLM, tmp_path: Path) -> None:
    asked = [(Message("user", "hi"), Message("user", "so"))]
    write_replies(llm, STAGE, asked, tmp_path, lambda _: None)
    first, second = read_parts(tmp_path / "part-00000.safetensors", llm.tokenizer.fingerprint())
    reply = llm.tokenizer.decode(first.ids[first.mask].tolist())
    history = [Message("user", "hi"), Message("assistant", reply), Message("user", "so")]
    assert tuple(second.ids[~second.mask]) == llm.prompt_format.encode(history).token_ids


def test_replies_that_are_given_stay(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    said = [("user", "hi"), ("assistant", "yes?"), ("user", "so"), ("assistant", "well")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}))
    asked = read_prompts([DataSource(path=str(path))], pytest.fail, given=True)
    messages = [Message(role, text) for role, text in said]
    assert asked == [(messages[0],), tuple(messages[:3])]
    assert that_fit(asked, llm, pytest.fail) == asked
    write_replies(llm, STAGE, asked, tmp_path / "replies", lambda _: None)
    documents = read_parts(tmp_path / "replies/part-00000.safetensors", llm.tokenizer.fingerprint())
    prompts_seen = {tuple(document.ids[~document.mask].tolist()) for document in documents}
    assert prompts_seen == {llm.prompt_format.encode(prompt).token_ids for prompt in asked}


def test_all_turns_of_a_conversation_are_held_out_together() -> None:
    stage = replace(STAGE, heldout_share=0.5)
    asked: list[tuple[Message, ...]] = []
    for number in range(20):
        opening = Message("user", f"write {number}")
        asked += [(opening,), (opening, Message("assistant", "yes"), Message("user", "more"))]
    sides = {job.key.partition("-")[0]: part.held_out for part in parts_of(asked, stage) for job in part.jobs}
    of = [sides[prompt_key(prompt)[:24]] for prompt in asked]
    assert of[0::2] == of[1::2]
    assert 3 < sum(of[0::2]) < 17


def test_prompts_come_once_and_bad_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "what  now"}, {"turns": ["what now"]}, {"instruction": "what\nnow"}, {"prompt": "else"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = DataSource(path=str(path))
    assert read_prompts([source, source], pytest.fail) == prompts("what  now", "else")
    assert read_prompts([replace(source, limit=1)], pytest.fail) == prompts("what  now")
    path.write_text('{"prompt": "a"}\n{"odd": 1}\nno json\n')
    told: list[str] = []
    with pytest.raises(UsageError, match="2 rows cannot be used as prompts, and nothing was generated"):
        read_prompts([source], told.append)
    assert [line.split(":")[0] for line in told] == [f"{path}, row 2", f"{path}, row 3"]
    assert read_prompts([source], told.append, skip=True) == prompts("a")
    assert len(told) == 4


class MadeUp(FewReplies):
    """A target whose user turns are numbers, of which every third is cut off and every fifth a repetition."""

    def __init__(self, llm: LLM, count: int) -> None:
        super().__init__(llm, count)
        self.starts: list[list[int]] = []

    def generate(self, prompts: Any, sampling: Any) -> list[Completion]:
        written = super().generate(prompts, [replace(each, max_new_tokens=1) for each in sampling])
        self.starts += map(list, prompts)
        numbers = [each.seed or 0 for each in sampling]
        texts = ["again" if number % 5 == 0 else f" ask {number} " for number in numbers]
        ends: list[FinishReason] = ["length" if number % 3 == 0 else "stop" for number in numbers]
        return [
            replace(completion, text=text, finish_reason=end)
            for completion, text, end in zip(written, texts, ends, strict=True)
        ]


def test_the_target_makes_prompts_up_and_goes_on_after_a_break(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftsmith.train.prompts.AT_ONCE", 3)
    stage = replace(STAGE, num_prompts=6, prompt_starts=("", "Say"))
    whole, path = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    writer = MadeUp(llm, 100)
    made = write_prompts(writer, stage, whole, lambda _: None)
    assert len(made) == len(set(made)) == 6
    contents = [message.content for [message] in made]
    assert all(text.startswith(("ask ", "again", "Say ask ", "Sayagain")) for text in contents)
    assert {text.startswith("Say") for text in contents} == {True, False}
    assert [llm.tokenizer.decode(ids) for ids in writer.starts[:2]] == ["<|im_start|>user\n", "<|im_start|>user\nSay"]
    with pytest.raises(Interrupted):
        write_prompts(MadeUp(llm, 4), stage, path, lambda _: None)
    path.write_bytes(path.read_bytes() + b'{"prompt": "half a li')
    assert write_prompts(MadeUp(llm, 100), stage, path, lambda _: None) == made
    assert path.read_bytes() == whole.read_bytes()


def test_damaged_and_foreign_parts_are_told(llm: LLM, tmp_path: Path) -> None:
    write_replies(llm, STAGE, prompts("hi"), tmp_path, lambda _: None)
    path = tmp_path / "part-00000.safetensors"
    assert part_metadata(path)["target"] == llm.name
    with pytest.raises(TokenizerError, match="another vocabulary"):
        list(read_parts(path, "other"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="is damaged"):
        list(read_parts(path, llm.tokenizer.fingerprint()))


def test_replies_end_with_the_token_that_ends_them(llm: LLM, tmp_path: Path) -> None:
    """EOS is part of what is learnt: a draft that never learns it never stops."""

    class Ending(FewReplies):
        def generate(self, prompts: Any, sampling: Any) -> list[Completion]:
            [written] = super().generate(prompts, sampling)
            assert written.logprobs is not None
            return [replace(written, token_ids=(*written.token_ids[:3], EOS), logprobs=written.logprobs[:4])]

    write_replies(Ending(llm, 5), STAGE, prompts("hi"), tmp_path, lambda _: None)
    [document] = read_parts(tmp_path / "part-00000.safetensors", llm.tokenizer.fingerprint())
    assert document.ids[-1] == EOS
    assert document.mask[-4:].all()
    assert np.count_nonzero(document.mask) == 4


def test_what_is_longer_than_the_context_is_told_and_left_out(llm: LLM) -> None:
    told: list[str] = []
    kept = that_fit(prompts("hi", "x" * 5000, "so"), llm, told.append)
    assert kept == prompts("hi", "so")
    assert len(told) == 1
    assert f"the context has {llm.max_context} ('xxx" in told[0]


def test_a_conversation_ends_where_it_outgrows_the_context(llm: LLM, tmp_path: Path) -> None:
    turns = (Message("user", "hi"), Message("user", "y" * 5000), Message("user", "so"))
    write_replies(llm, STAGE, [turns], tmp_path, lambda _: None)
    [part] = tmp_path.iterdir()
    assert len(list(read_parts(part, llm.tokenizer.fingerprint()))) == 1


def test_held_out_prompts_are_kept_apart_whatever_else_is_asked(llm: LLM, tmp_path: Path) -> None:
    stage = replace(STAGE, heldout_share=0.4, samples=2, max_new_tokens=3)
    texts = [f"write {number}" for number in range(12)]

    def sides(folder: Path, *texts: str) -> tuple[set[str], set[str]]:
        counts = write_replies(llm, stage, prompts(*texts), folder, lambda _: None)
        keys = [
            {key for path in place.glob("part-*") for key in part_metadata(path)["prompts"]}
            for place in (folder, folder / "heldout")
        ]
        assert counts == {"prompts": len(texts), "replies": 2 * len(texts), "held_out": len(keys[1])}
        return keys[0], keys[1]

    learnt, held = sides(tmp_path / "all", *texts)
    assert len(learnt) + len(held) == 24
    assert 4 <= len(held) <= 18
    prompt_of = {key: key.rpartition("-")[0] for key in learnt | held}
    assert not {prompt_of[key] for key in learnt} & {prompt_of[key] for key in held}  # samples are on one side
    fewer = sides(tmp_path / "some", *texts[::-1][:7])
    assert fewer[0] <= learnt
    assert fewer[1] <= held


def test_a_target_that_says_nothing_is_told(llm: LLM, tmp_path: Path) -> None:
    class Silent(FewReplies):
        def generate(self, prompts: Any, sampling: Any) -> list[Completion]:
            return super().generate(prompts, [replace(each, logit_bias={EOS: 1e4}) for each in sampling])

    with pytest.raises(DraftsmithError, match="wrote no reply to any prompt"):
        write_replies(Silent(llm, 5), STAGE, prompts("hi"), tmp_path, lambda _: None)


PARENT = """
import os, time
from draftsmith.train.replies import pool_of

if __name__ == "__main__":
    pool = pool_of(1)
    pool.submit(os.getpid).result()
    pool.submit(time.sleep, 120)
    print("busy", flush=True)
    time.sleep(120)
"""


def test_no_process_writes_on_when_its_parent_was_killed(tmp_path: Path) -> None:
    """Both have the same standard output, which ends when the last of them has ended."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"busy\n"
        parent.kill()
        assert parent.communicate(timeout=60)[0] == b""


def test_processes_write_what_one_would(llm: LLM, tmp_path: Path) -> None:
    stage = replace(STAGE, processes=2, threads=1)
    asked = prompts("a", "b", "c", "d", "e")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_replies(llm, stage, asked, tmp_path / "one", lambda _: None)
    told: list[str] = []
    write_replies_together(llm.name, stage, asked, tmp_path / "two", told.append)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert told[-1] == "5 of 5 written"


def test_a_share_of_the_replies_is_greedy(llm: LLM, tmp_path: Path) -> None:
    """What is written greedily is the likeliest at every place; what is drawn is not."""

    def likeliest(share: float) -> list[bool]:
        folder = tmp_path / str(share)
        folder.mkdir()
        write_replies(llm, replace(STAGE, greedy_share=share), prompts(*"abcdefgh"), folder, lambda _: None)
        parts = sorted(folder.iterdir())
        documents = [d for part in parts for d in read_parts(part, llm.tokenizer.fingerprint())]
        return [bool((d.ids[d.mask] == d.top_ids[:, 0]).all()) for d in documents if d.top_ids is not None]

    assert all(likeliest(1.0))
    assert not any(likeliest(0.0))
    some = likeliest(0.5)
    assert any(some)
    assert not all(some)
