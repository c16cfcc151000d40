"""Data sets of a hub in recipes: the official client against a stub on the loopback interface."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftsmith.checkpoint.hub_data import fetch_data
from draftsmith.cli import main
from draftsmith.errors import HubError, UsageError
from draftsmith.train.files import list_files
from tests.support.stub_hub import StubHub, stub_hub
from tests.support.tiny import tiny_folder

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LINE = (json.dumps(ROW) + "\n").encode()
FILES = {
    "data/train-0.jsonl": LINE * 3,
    "data/train-1.jsonl": LINE * 2,
    "data/test-0.jsonl": LINE,
    "data/deep/train-2.jsonl": LINE,
    "README.md": b"# rows",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with stub_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_files_of_a_data_set_are_fetched_once(hub: StubHub) -> None:
    commit = hub.add("org/rows", FILES)
    found = list_files(fetch_data("hf://datasets/org/rows/data/train-*.jsonl"))
    assert [file.name for file in found] == ["train-0.jsonl", "train-1.jsonl"]
    assert found[0].parents[1].name == commit
    assert sorted(hub.downloads) == ["data/train-0.jsonl", "data/train-1.jsonl"]
    fetch_data(f"hf://datasets/org/rows@{commit}/data/train-*.jsonl")
    assert len(hub.downloads) == 2
    [one] = list_files(fetch_data("hf://datasets/org/rows/data/test-0.jsonl"))
    assert one.read_bytes() == LINE


def test_a_recipe_trains_on_it(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/rows", FILES, revision="v1")
    tiny_folder(tmp_path / "tiny")
    data = "hf://datasets/org/rows@v1/data/train-*.jsonl"
    (tmp_path / "r.toml").write_text(
        f'output = "out"\n[stage.sft]\nmodel = "tiny"\ndata = "{data}"\nmax_length = 128\nsteps = 1\n'
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "r.toml", "--audit", "0"]) == 0
    assert "sft: 5 rows, 5 documents" in capsys.readouterr().out
    assert main(["train", "r.toml"]) == 0
    record = json.loads((tmp_path / "out/sft/stage.json").read_text())
    assert record["data"]["rows"] == 5
    assert record["settings"]["data"][0]["path"] == data


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("hf://datasets/org/rows", UsageError, "names no files of a data set"),
        ("hf://datasets/org/rows/../x.jsonl", UsageError, "names no files of a data set"),
        ("hf://datasets/org/rows/data/val-*.jsonl", HubError, "org/rows has no file data/val-"),
        ("hf://datasets/org/none/data/a.jsonl", HubError, "the hub has no org/none"),
        ("hf://datasets/org/rows@v9/data/a.jsonl", HubError, "org/rows has no revision 'v9'"),
    ],
)
def test_what_is_wrong_is_one_sentence(hub: StubHub, reference: str, error: type[Exception], said: str) -> None:
    hub.add("org/rows", FILES)
    with pytest.raises(error, match=said):
        fetch_data(reference)


def test_a_hub_that_is_out_of_order(hub: StubHub) -> None:
    hub.failing = 503
    with pytest.raises(HubError, match="could not be reached for org/rows"):
        fetch_data("hf://datasets/org/rows/data/a.jsonl")
