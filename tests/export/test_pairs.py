"""Pairs for other engines: what each demands is checked, what it is started with is what it documents."""

from __future__ import annotations

import configparser
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from draftsmith.checkpoint import open_checkpoint
from draftsmith.checkpoint.gguf_reader import read_gguf
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.cli import main
from draftsmith.errors import TokenizerError, UsageError
from draftsmith.export.deploy import PairPlan
from draftsmith.export.engines import Deployment, llama_cpp_files, sglang_files, vllm_files
from draftsmith.export.pair import fit
from draftsmith.export.source import opened
from draftsmith.export.weights import weights_of
from draftsmith.export.yaml_text import yaml_text
from draftsmith.text import Tokenizer
from tests.support.fakes import VOCAB_SIZE
from tests.support.schemas import check_schema
from tests.support.tiny import tiny_folder
from tests.support.tiny_models import random_tensors, save_safetensors, small_config


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft of another size of vocabulary, one with other tokens, one that is pruned."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("target", 0), ("draft", 1), ("small", 2), ("pruned", 3)):
        tiny_folder(folder / name, seed=seed)
    tiny_folder(folder / "other", swap=True)
    _widen(folder / "target", 270)
    save_file({"token_ids": np.array([101, 97, 256, 32], np.int32)}, folder / "pruned" / "draft_vocabulary.safetensors")
    return folder


def _widen(folder: Path, rows: int) -> None:
    """Make the embedding and output layer of a model longer, as padding does."""
    config = small_config(vocab_size=rows, intermediate_size=128, max_context=512)
    save_safetensors(folder / "model.safetensors", random_tensors(config))
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "vocab_size": rows}))


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    said = capsys.readouterr()
    return code, said.out, said.err


def configs(folder: Path) -> dict[str, Any]:
    found = {path.name: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    check_schema(found, "engines")
    return found


def test_vllm(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pair"
    arguments = ("export", "vllm", models / "draft", out, "--target", models / "target")
    code, _, error = run(capsys, *arguments)
    assert (code, out.exists()) == (2, False)
    assert "the target has 270 rows and the draft 260" in error
    assert "--pad-vocab" in error
    code, said, _ = run(capsys, *arguments, "--pad-vocab", "--num-draft-tokens", 6, "--json")
    assert code == 0
    assert json.loads(said)["vocabulary"] == 270
    found = configs(out)
    speculative = found["vllm.yaml"]["speculative-config"]
    assert speculative == {
        "method": "draft_model",
        "model": str(out / "draft"),
        "num_speculative_tokens": 6,
        "draft_tensor_parallel_size": 1,
    }
    assert found["vllm.yaml"]["model"] == str(models / "target")
    application = found["ray-serve.yaml"]["applications"][0]
    assert application["args"]["llm_configs"][0]["engine_kwargs"]["speculative_config"] == speculative
    container = found["kserve.yaml"]["spec"]["predictor"]["containers"][0]
    stated = next(a for a in container["args"] if a.startswith("--speculative-config="))
    assert json.loads(stated.partition("=")[2]) == speculative
    target, draft = (json.loads((path / "config.json").read_text()) for path in (models / "target", out / "draft"))
    assert draft["vocab_size"] == target["vocab_size"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / "draft" / name).read_bytes() == (models / "target" / name).read_bytes()
    assert json.loads((out / "export.json").read_text())["sources"]["target"]["sha256"]


def test_vllm_with_other_tokens(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pair"
    code, _, error = run(capsys, "export", "vllm", models / "other", out, "--target", models / "target")
    assert code == 0
    assert "use_heterogeneous_vocab" in error
    assert configs(out)["vllm.yaml"]["speculative-config"]["use_heterogeneous_vocab"] is True
    draft = Tokenizer.from_folder(out / "draft")
    assert draft.fingerprint() == Tokenizer.from_folder(models / "other").fingerprint()


def test_sglang(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pair"
    code, _, error = run(capsys, "export", "sglang", models / "other", out, "--target", models / "target")
    assert (code, out.exists()) == (1, False)
    assert "whose tokens are not the target's" in error
    code, _, _ = run(
        capsys, "export", "sglang", models / "draft", out, "--target", models / "target", "--pad-vocab",
        "--deployed-at", "/models/pair", "--copy-target",
    )  # fmt: skip
    found = configs(out)["sglang.yaml"]
    assert code == 0
    assert (found["model-path"], found["speculative-draft-model-path"]) == (
        "/models/pair/target",
        "/models/pair/draft",
    )
    assert found["speculative-num-draft-tokens"] == found["speculative-num-steps"] + 1
    with open_checkpoint(out / "target") as copy, open_checkpoint(models / "target") as original:
        np.testing.assert_array_equal(copy.tensors[OUTPUT].dequantize(), original.tensors[OUTPUT].dequantize())


def test_llama_server(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pair"
    arguments = ("export", "llama.cpp", models / "draft", out, "--target", models / "target", "--type", "q8_0")
    code, _, error = run(capsys, *arguments)
    assert code == 2
    assert "--copy-target" in error
    assert run(capsys, *arguments, "--copy-target")[0] == 0
    target, draft = (read_gguf(out / name) for name in ("target.gguf", "draft.gguf"))
    tokens = [file.metadata["tokenizer.ggml.tokens"] for file in (target, draft)]
    assert (len(tokens[0]), len(tokens[1])) == (270, 260)  # llama.cpp lets sizes differ by 128
    assert tokens[0][:260] == tokens[1]
    presets = configparser.ConfigParser()
    presets.read_string((out / "models.ini").read_text())
    assert dict(presets["target"])["model-draft"] == str(out / "draft.gguf")
    command = shlex.split((out / "launch.sh").read_text().splitlines()[1])
    for key, value in presets["target"].items():
        assert command[command.index(f"--{key}") + 1] == value


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp"])
def test_launch_commands_are_sound_shell(models: Path, tmp_path: Path, engine: str) -> None:
    out = tmp_path / "a pair; with 'quotes' $HOME"
    options = [] if engine == "llama.cpp" else ["--pad-vocab"]
    target = ["--target", str(models / "target"), "--copy-target"]
    assert main(["export", engine, str(models / "draft"), str(out), *target, *options]) == 0
    fake = tmp_path / "bin"
    fake.mkdir()
    for name in ("vllm", "python3", "llama-server"):
        (fake / name).write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
        (fake / name).chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(out / "launch.sh"), "--seed", "1"],
        env={"PATH": f"{fake}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[-2:] == ["--seed", "1"]
    assert any(word.startswith(str(out)) and Path(word).exists() for word in words)


def test_new_rows_never_win(models: Path) -> None:
    """Whatever the hidden state, the logit of a padded row is not above the largest of the others."""
    with open_checkpoint(models / "draft") as checkpoint:
        weights = weights_of(checkpoint)
        padded = weights.with_vocabulary(300, 260)
        head, old = (w.weights[OUTPUT].read(0, w.config.vocab_size) for w in (padded, weights))
    np.testing.assert_array_equal(head[:260], old)
    assert padded.weights[EMBEDDING].shape == (300, 64)
    states = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    logits = states @ head.T
    assert (logits[:, 260:].max(axis=1) < logits[:, :260].max(axis=1)).all()
    # Rows of zeros would not do, as soon as all logits of a state are negative:
    shifted = np.where(states[:, :1] > 0, states, -states)
    negative = shifted @ (head - 10 * np.eye(64, dtype=np.float32)[0]).T
    assert (negative[:, :260].max(axis=1) < 0).any()
    assert (negative[:, 260:].max(axis=1) < negative[:, :260].max(axis=1)).all()


def test_a_pruned_draft_writes_its_tokens_only(models: Path) -> None:
    """Its head is completed: greedy drafts stay within what it was trained to write, the input side is untouched."""
    with opened(str(models / "pruned")) as source, open_checkpoint(models / "pruned") as original:
        kept = [32, 97, 101, 256]
        head = source.weights.weights[OUTPUT].read(0, VOCAB_SIZE)
        np.testing.assert_array_equal(head[kept], original.tensors[OUTPUT].dequantize()[kept])
        np.testing.assert_array_equal(
            source.weights.weights[EMBEDDING].read(0, VOCAB_SIZE), original.tensors[EMBEDDING].dequantize()
        )
        assert "4 of 260 tokens only" in source.notes[0]
    states = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    assert set((states @ head.T).argmax(axis=1)) <= set(kept)


def test_a_packed_draft_is_refused(tmp_path: Path) -> None:
    """It holds some rows of the target's vocabulary and no tokenizer; only draftsmith runs it."""
    config = small_config()
    packed = {"draftsmith.draft.token_ids": [0], "draftsmith.draft.rows": [0], "draftsmith.draft.fingerprint": "0"}
    write_gguf_model(tmp_path / "packed.gguf", config, random_tensors(config), packed)
    with (
        pytest.raises(UsageError, match="export the folder that it was packed from"),
        opened(str(tmp_path / "packed.gguf")),
    ):
        pass


def test_vocabularies_may_shrink_to_their_tokens_only(models: Path) -> None:
    with opened(str(models / "target")) as target, opened(str(models / "draft")) as draft:
        smaller = fit("vllm", draft, target, pad_vocab=True)
        assert smaller.draft.config.vocab_size == 260
        with pytest.raises(UsageError, match="cannot be cut to 100"):
            target.weights.with_vocabulary(100, 260)
    with (
        opened(str(models / "other")) as other,
        opened(str(models / "draft")) as draft,
        pytest.raises(TokenizerError, match="export the pair for vllm"),
    ):
        fit("llama.cpp", other, draft, pad_vocab=True)


def test_numbers_out_of_range(tmp_path: Path) -> None:
    for name in ("num_draft_tokens", "tensor_parallel_size", "max_replicas"):
        values: dict[str, Any] = {name: 0}
        with pytest.raises(UsageError, match="it must be from 1"):
            PairPlan(engine="vllm", out=tmp_path, **values)
    with pytest.raises(UsageError, match="absolute path"):
        PairPlan(engine="vllm", out=tmp_path, deployed_at="models")


def test_every_field_is_documented() -> None:
    """With every option in use, no key appears that the schema, read from the engines' sources, does not have."""
    deployment = Deployment(
        name="Org's Model!", target="org/model", draft="/d", folder="/f", num_draft_tokens=3, max_context=64,
        revision="0123", other_tokens=True, tensor_parallel_size=2, max_replicas=3,
    )  # fmt: skip
    assert deployment.label == "org-s-model"
    for files in (vllm_files(deployment), sglang_files(deployment)):
        check_schema({name: yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml")}, "engines")
    assert "--spec-draft-n-max 3" in llama_cpp_files(deployment)["launch.sh"]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
scalars = texts | st.integers() | st.booleans() | st.none()
keys = st.from_regex(r"[a-z][a-z0-9_.-]{2,8}x", fullmatch=True)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(keys, values, min_size=1, max_size=4))
def test_yaml_is_read_back(document: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(document, "a heading\n\nof three lines")) == document
