"""Preferences from a model's own replies: every reply without an end beside one that ended, to the same prompt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.cli import main
from draftsmith.engine import LLM
from draftsmith.errors import UsageError
from draftsmith.text import choose_format
from draftsmith.train.encode import Document, TooLongChoice
from draftsmith.train.pairs import pairs_of_replies
from draftsmith.train.parts import pack_part, read_parts, write_part
from draftsmith.train.prepare import DataPlan, documents_of, prepare
from draftsmith.train.schema import DataSource
from tests.support.fakes import EOS
from tests.support.tiny import tiny_folder

END, OTHER_END = 90, 91
KEY = "a vocabulary"


def reply(prompt: list[int], written: list[int], top: bool = False) -> Document:
    ids = np.array([*prompt, *written], np.uint32)
    mask = np.arange(ids.size) >= len(prompt)
    if not top:
        return Document(ids, mask)
    return Document(ids, mask, np.zeros((len(written), 2), np.uint32), np.zeros((len(written), 2), np.float16))


def write(folder: Path, *parts: list[Document], fingerprint: str = KEY) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"part-{number:05d}.safetensors" for number in range(len(parts))]
    for path, documents in zip(paths, parts, strict=True):
        write_part(path, pack_part(documents, {"fingerprint": fingerprint, "prompts": []}))
    return paths


def pairs(files: list[Path]) -> list[tuple[str, int, list[int], list[int]]]:
    found = pairs_of_replies(files, KEY, (END, OTHER_END))
    return [(file.name, number, chosen.ids.tolist(), other.ids.tolist()) for file, number, (chosen, other) in found]


def test_a_reply_that_does_not_end_is_beside_one_that_does(tmp_path: Path) -> None:
    files = write(
        tmp_path,
        [
            reply([1, 2], [5, END], top=True),
            reply([1, 2], [6, 7, 8], top=True),
            reply([1, 3], [6, 7, 8], top=True),  # none to this prompt ended
            reply([1, 4], [9, END], top=True),  # all to this one did
        ],
        [reply([1, 2], [8, 8]), reply([1, 2], [7, OTHER_END]), reply([1, 2], [END, 9]), reply([1, 4], [END])],
    )
    assert pairs(files) == [
        ("part-00000.safetensors", 2, [1, 2, 5, END], [1, 2, 6, 7, 8]),
        ("part-00001.safetensors", 1, [1, 2, 7, OTHER_END], [1, 2, 8, 8]),
        ("part-00001.safetensors", 3, [1, 2, 5, END], [1, 2, END, 9]),
    ]
    [(_, _, (chosen, rejected)), *_] = pairs_of_replies(files, KEY, (END, OTHER_END))
    assert chosen.mask.tolist() == [False, False, True, True]
    assert rejected.mask.tolist() == [False, False, True, True, True]
    assert chosen.top_ids is None is rejected.top_ids


replies = st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(80, 91), min_size=1, max_size=4)), min_size=1)


@given(written=replies, split=st.integers(0, 100))
def test_all_that_did_not_end_are_paired_evenly(
    written: list[tuple[int, list[int]]], split: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    documents = [reply([7, prompt], ids) for prompt, ids in written]
    split %= len(documents)
    files = write(tmp_path_factory.mktemp("parts"), *filter(None, [documents[:split], documents[split:]]))
    found = pairs(files)
    ended = [(prompt, ids) for prompt, ids in written if ids[-1] in (END, OTHER_END)]
    expected = [(p, ids) for p, ids in written if ids[-1] not in (END, OTHER_END) and any(p == q for q, _ in ended)]
    assert [(other[1], other[2:]) for _, _, _, other in found] == expected
    for prompt in range(4):
        taken = Counter(tuple(chosen[2:]) for _, _, chosen, _ in found if chosen[1] == prompt)
        offered = Counter(tuple(ids) for p, ids in ended if p == prompt)
        assert taken.keys() <= offered.keys()
        total = taken.total()
        for ids, times in offered.items():  # every one that ended is taken as often as any other, but for one
            least = times * (total // max(1, offered.total()))
            assert least <= taken[ids] <= least + times


def plan(folder: Path, tiny: Path, too_long: TooLongChoice = "stop") -> DataPlan:
    tokenizer = LLM(tiny, "none", threads=1).tokenizer
    return DataPlan(
        sources=(DataSource(path=str(folder)),),
        tokenizer=tokenizer,
        prompt_format=choose_format(tokenizer),
        max_length=8,
        too_long=too_long,
        group=2,
    )


def test_what_cannot_be_a_pair_is_told(tmp_path: Path) -> None:
    tiny = tiny_folder(tmp_path / "tiny")
    fingerprint = LLM(tiny, "none", threads=1).tokenizer.fingerprint()
    long = reply([1, 2], [5] * 9)
    write(tmp_path / "replies", [reply([1, 2], [5, EOS]), reply([1, 2], [6]), long], fingerprint=fingerprint)
    kept, problem = documents_of(plan(tmp_path / "replies", tiny))
    assert [[d.ids.tolist() for d in group] for group in kept] == [[[1, 2, 5, EOS], [1, 2, 6]]]  # type: ignore[union-attr]
    assert str(problem).startswith(f"{tmp_path}/replies/part-00000.safetensors, row 3: has 11 tokens, but max_length")
    store = prepare(plan(tmp_path / "replies", tiny, too_long="skip"), tmp_path / "store", lambda _: None)
    assert (len(store), store.group, store.report["too_long"]) == (1, 2, 1)
    # there is a pair: what is missing is room, not samples
    longer = [reply([1, 2], [5] * 9), reply([1, 2], [5] * 8 + [EOS])]
    write(tmp_path / "longer", longer, fingerprint=fingerprint)
    with pytest.raises(UsageError, match=r"1 are too long\); check the data"):
        prepare(plan(tmp_path / "longer", tiny, too_long="skip"), tmp_path / "store", lambda _: None)
    write(tmp_path / "ended", [reply([1, 2], [5, EOS]), reply([1, 2], [6, EOS])], fingerprint=fingerprint)
    with pytest.raises(UsageError, match=r"is left to train on.*some ended and some did not; give more samples"):
        prepare(plan(tmp_path / "ended", tiny), tmp_path / "store", lambda _: None)


RECIPE = """
output = "out"
[stage.sft]
model = "tiny"
data = "chat.jsonl"
max_length = 256
batch_tokens = 512
steps = 40
learning_rate = 3e-3
[stage.samples]
kind = "generate"
prompts = "chat.jsonl"
turns = "given"
samples = 6
temperature = 1.0
max_new_tokens = 12
top_logprobs = 0
heldout_share = 0.55
[stage.dpo]
data = "stage:samples"
eval_data = "stage:samples/heldout"
learning_rate = 3e-4
max_length = 256
batch_tokens = 512
steps = 24
"""


def test_a_model_learns_to_end_from_its_own_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_folder(tmp_path / "tiny")
    said = [("user", "say"), ("assistant", "abc def"), ("user", "more"), ("assistant", "ghi")]
    rows = [{"messages": [{"role": role, "content": f"{text} {i}"} for role, text in said]} for i in range(12)]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "r.toml"]) == 0
    record = json.loads((tmp_path / "out/dpo/stage.json").read_text())
    assert record["data"]["rows"] >= 10

    def ended(model: str) -> float:
        assert main(["train", "r.toml", "--stage", "samples", f"samples.model={model}", f"output={model}-said"]) == 0
        tokenizer = LLM(tmp_path / model, "none", threads=1).tokenizer
        files = sorted((tmp_path / f"{model}-said/samples").rglob("part-*"))
        documents = [document for file in files for document in read_parts(file, tokenizer.fingerprint())]
        assert len(documents) == 24 * 6  # both turns of each conversation
        return float(np.mean([document.ids[-1] == EOS for document in documents]))

    before, after = ended("out/sft"), ended("out/dpo")
    assert 0.05 < before < 0.95
    assert after > before + 0.05
