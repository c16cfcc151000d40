"""Whole recipes from the command line: every stage end to end, what is recorded, and what is not done again."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from draftsmith.cli import main
from draftsmith.engine import LLM
from draftsmith.train.vocabulary import read_kept_ids
from draftsmith.types import Message, SamplingParams
from tests.support.tiny import tiny_folder

RECIPE = """
output = "out"
[stage.extend]
model = "tiny"
data = "doc.txt"
max_context = 1024
rope_theta = 50000.0
position_skips = true
max_length = 600
batch_tokens = 600
steps = 2
[stage.sft]
data = "chat.jsonl"
eval_data = {path = "chat.jsonl", limit = 4}
acceptance_target = "tiny"
prompt_format = "alpaca"
max_length = 256
batch_tokens = 256
steps = 3
log_every = 1
save_dtype = "float32"
[stage.dpo]
data = "pairs.jsonl"
eval_data = "pairs.jsonl"
learning_rate = 1e-3
max_length = 128
batch_tokens = 256
steps = 3
[stage.replies]
kind = "generate"
model = "tiny"
prompts = {path = "chat.jsonl", limit = 9}
heldout_share = 0.55
temperature = 1.0
max_new_tokens = 12
top_logprobs = 8
[stage.init]
model = "tiny"
num_layers = 1
keep_vocabulary = 40
data = "stage:replies"
[stage.distill]
data = "stage:replies"
eval_data = "stage:replies"
acceptance_target = "data"
loss = "tv"
max_length = 256
batch_tokens = 256
steps = 30
eval_every = 1
learning_rate = 3e-3
[stage.online]
kind = "distill"
data = "stage:replies"
eval_data = "stage:replies/heldout"
target = "tiny"
acceptance_target = "tiny"
loss = "accepted_length"
round_to = "Q8_0"
max_length = 256
batch_tokens = 256
steps = 2
[stage.pack]
title = "Tiny draft"
blocks = "Q8_0"
[stage.again]
kind = "init"
model = "tiny"
packed = "stage:pack"
[stage.further]
kind = "distill"
data = "stage:replies"
eval_data = "stage:replies/heldout"
acceptance_target = "data"
loss = "tv"
max_length = 256
batch_tokens = 256
steps = 2
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_folder(tmp_path / "tiny")
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"abc {i} def"}]}
        for i in range(24)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": f"q{i}", "chosen": "yes a", "rejected": "no b"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "doc.txt").write_text("the quick brown fox " * 60)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_stage_runs_end_to_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = place / "out/.replies.work/.part-00000.safetensors.1c2d.part"  # of a run that was killed
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    assert main(["train", "r.toml", "--json"]) == 0
    said = capsys.readouterr()
    stages = json.loads(said.out)["stages"]
    assert list(stages) == ["extend", "sft", "dpo", "replies", "init", "distill", "online", "pack", "again", "further"]
    assert "sft: step 3 of 3 · loss" in said.err
    assert "accepted length" in said.err
    assert {"eval_loss", "eval_acceptance", "eval_greedy_match"} <= stages["sft"]["metrics"].keys()
    assert stages["dpo"]["metrics"]["eval_preference_accuracy"] == 1.0
    lines = (place / "out/distill/metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["eval_acceptance"] > first["eval_acceptance"] + 0.1
    assert last["eval_length_sampled"] > first["eval_length_sampled"]
    packed, again = (json.loads((place / "out" / stage / "stage.json").read_text()) for stage in ("pack", "again"))
    assert again["packed"]["reference"] == str(Path("out/pack"))
    kept = [read_kept_ids(place / "out" / stage, 260) for stage in ("online", "again", "further")]
    assert kept[0] is not None
    assert all(ids is not None and ids.tolist() == kept[0].tolist() for ids in kept)
    assert again["parameters"] > packed["parameters"]  # with the rows of all ids
    # none of the unfinished work is left
    assert not list((place / "out/replies").glob(".*"))
    assert sorted(path.name for path in (place / "out").iterdir()) == sorted(stages)
    check_record(json.loads((place / "out/sft/stage.json").read_text()))
    assert (place / "out/sft/curves.png").read_bytes().startswith(b"\x89PNG")
    # what was made can be used: the last model writes, and a draft of its family speeds the target up or not
    llm = LLM(str(place / "out/dpo"), str(place / "out/online"), threads=1)
    assert llm.prompt_format.encode([Message("user", "a")]).text == "### Input:\na\n\n### Response:\n"
    assert llm.chat([Message("user", "a")], SamplingParams(max_new_tokens=5, greedy=True)).token_ids
    packed = LLM(str(place / "tiny"), str(place / "out/pack/draft.gguf"), threads=1, num_draft_tokens=2)
    written = packed.chat([Message("user", "a")], SamplingParams(max_new_tokens=8, greedy=True))
    assert written.speculation is not None
    assert written.speculation.num_draft_tokens > 0
    packing = json.loads((place / "out/pack/stage.json").read_text())
    assert packing["bytes"] == (place / "out/pack/draft.gguf").stat().st_size
    assert len({path.stat().st_mode for path in (place / "out/sft").iterdir()}) == 1
    # and nothing is done twice
    before = (place / "out/sft/model.safetensors").stat().st_mtime_ns
    assert main(["train", "r.toml"]) == 0
    assert "sft: done before" in capsys.readouterr().err
    assert (place / "out/sft/model.safetensors").stat().st_mtime_ns == before
    assert main(["train", "r.toml", "--audit", "0"]) == 0
    assert "not made yet" not in capsys.readouterr().out


def test_a_context_can_be_extended_without_training(place: Path) -> None:
    """steps = 0: other positions, the same weights; nothing else may have no steps or no data."""
    command = ["train", "r.toml", "--stage", "extend", "extend.steps=0", "extend.data=[]"]
    assert main(command) == 0
    made, parent = place / "out/extend", place / "tiny"
    config = json.loads((made / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (50000.0, 1024)
    new, old = (load_file(folder / "model.safetensors") for folder in (made, parent))
    assert all(torch.equal(new[name].float(), old[name].bfloat16().float()) for name in old)
    assert main(["train", "r.toml", "--stage", "sft", "sft.steps=0"]) == 2
    assert main(["train", "r.toml", "--stage", "extend", "extend.data=[]"]) == 2


def check_record(record: dict[str, Any]) -> None:
    assert (record["name"], record["kind"]) == ("sft", "sft")
    assert record["settings"]["learning_rate"] == 2e-5
    assert len(record["parent"]["sha256"]) == 64
    assert record["data"] == {"rows": 24, "bad_rows": 0, "too_long": 0}
    assert record["versions"]["torch"]
    assert record["provenance"]["cpu"]
    assert record["metrics"]["step"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "none"], "the recipe has no stage 'none'"),
        (["sft.data=gone.jsonl", "--stage", "sft", "sft.model=tiny"], "there is no data file gone.jsonl"),
        (["extend.max_context=600", "extend.max_length=601", "extend.batch_tokens=601"], "the model's context is 600"),
        (["sft.model=tiny", "--stage", "sft", "sft.device=abacus"], "device is 'abacus'"),
        (["--stage", "distill", "distill.data=chat.jsonl", "distill.model=tiny"], "its data no log-probabilities of"),
        (["--stage", "distill", "distill.model=tiny"], "there is no data file out/replies"),
        (["--stage", "sft", "sft.model=tiny", "sft.data=pairs.jsonl"], "8 of 8 rows cannot be used"),
        (["--stage", "sft", "sft.model=tiny", "sft.eval_data=[]"], "acceptance_target needs eval_data"),
        (["--stage", "sft", "sft.model=nowhere"], "nowhere"),
        (["--stage", "replies", "replies.heldout_share=0.01"], "which draws none or all of 9 prompts"),
        (["--stage", "replies", "replies.max_context=8"], "no prompt fits into the context of 8 tokens"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del place
    code = main(["train", "r.toml", *arguments])
    assert code in (1, 2)
    [last] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("draftsmith: ")]
    assert said in last
    assert "internal error" not in last


def test_other_settings_need_another_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "r.toml", "--stage", "extend"]
    assert main(command) == 0
    assert main([*command, "extend.learning_rate=1e-3"]) == 2
    assert "was made with learning_rate = 2e-05, the recipe says 0.001" in capsys.readouterr().err
    file = place / "out/extend/stage.json"
    record = json.loads(file.read_text())
    del record["settings"]["learning_rate"]  # made before there was such a key: then it was what is now its default
    file.write_text(json.dumps(record))
    assert main(command) == 0
    assert main([*command, "extend.learning_rate=1e-3"]) == 2
    file.unlink()
    assert main(command) == 2
    assert "is no finished stage" in capsys.readouterr().err


def test_two_programs_do_not_share_a_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out").mkdir()
    descriptor = os.open(place / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert main(["train", "r.toml", "--stage", "extend"]) == 2
    assert "another program is training in out" in capsys.readouterr().err
    os.close(descriptor)
    assert main(["train", "r.toml", "--stage", "extend"]) == 0


def test_a_target_with_another_vocabulary_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_folder(place / "other", swap=True)
    arguments = ["--stage", "sft", "sft.model=tiny", "sft.acceptance_target=other"]
    assert main(["train", "r.toml", *arguments]) == 1
    assert "has another vocabulary" in capsys.readouterr().err


def test_the_audit_shows_grey_what_is_not_learnt(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r.toml", "--stage", "sft", "--audit", "1", "--color", "always"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[2m### Input:\nsay 0\n\n### Response:\n\x1b[0mabc 0 def<|im_end|>" in out
    assert "sft: 24 rows, 24 documents" in out
    assert not (place / "out").exists()
    assert main(["train", "r.toml", "--audit", "0", "dpo.data=['pairs.jsonl', 'stage:replies']"]) == 0
    out = capsys.readouterr().out
    assert "dpo: stage:replies is not made yet, and not looked at\ndpo: 8 rows, 16 documents" in out
    assert "distill: stage:replies is not made yet" in out
    assert "distill: 0 rows" not in out
    long = ["sft.max_length=1025", "sft.batch_tokens=1025", "--audit", "0"]
    assert main(["train", "r.toml", "--stage", "sft", *long]) == 2  # the context that extend will give it
    assert "sft.max_length is 1025, but the model's context is 1024" in capsys.readouterr().err
    assert main(["train", "r.toml", "--stage", "sft", "sft.model=tiny", *long]) == 2
    assert "the model's context is 512" in capsys.readouterr().err
    (place / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n{\n')
    assert main(["train", "r.toml", "--stage", "sft", "--audit", "0"]) == 2
    said = capsys.readouterr()
    assert "chat.jsonl, row 1: the last message is from user" in said.out
    assert "2 rows cannot be trained on" in said.err
