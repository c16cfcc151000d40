"""Saved folders: the same logits from transformers and from our engine, old and new keys, the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from draftsmith.checkpoint import open_checkpoint
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.errors import DiskFull, UsageError
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun
from draftsmith.text import Tokenizer, choose_format
from draftsmith.train.models import Learner, load_learner, new_model, saved_folder
from draftsmith.train.packing import pack
from draftsmith.train.schema import DataSource, ExtendStage, InitStage
from draftsmith.train.shapes import extended, kept_layers, shrunk_config, shrunk_weights
from draftsmith.train.vocabulary import most_frequent, nearest_rows, prune, read_kept_ids, restore, write_kept_ids
from draftsmith.types import Message
from tests.support.hf_models import random_model
from tests.support.made_tokenizers import byte_level_gguf, byte_level_json, sentencepiece_gguf
from tests.support.tiny import tiny_folder
from tests.support.tiny_models import random_tensors, small_config
from tests.support.training import random_store

IDS = [97, 5, 44, 98, 0, 12, 97, 30, 31, 32, 33, 1]


def save(learner: Learner, folder: Path, template: str | None = "alpaca", dtype: str = "float32") -> Path:
    with saved_folder(learner, choose_format(learner.tokenizer, template), folder, dtype):
        pass
    return folder


def hf_logits(folder: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def native_logits(folder: Path) -> Any:
    model = NativeModel.load(open_checkpoint(folder), threads=1)
    [logits] = model.forward([TokenRun(model.new_cache(), IDS, num_logits=len(IDS))])
    return logits


ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope": "theta", "rope_theta": 5e5},
    "linear": {"rope": "linear"},
    "yarn": {"rope": "yarn"},
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_what_is_saved_computes_the_same_everywhere(rope: str, architecture: str, tmp_path: Path) -> None:
    random_model(tmp_path / "parent", architecture)
    (tmp_path / "parent" / "tokenizer.json").write_bytes(byte_level_json("gpt-2"))
    (tmp_path / "parent" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    learner = load_learner(str(tmp_path / "parent"))
    stage = ExtendStage(name="x", kind="extend", data=(DataSource(path="x"),), max_context=1024, **ROPES[rope])
    config = extended(learner.config, stage)
    model = new_model(config)
    model.load_state_dict(learner.model.state_dict())
    longer = Learner(model, config, learner.tokenizer, learner.checkpoint, learner.parent)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    assert not np.allclose(expected, hf_logits(tmp_path / "parent"), atol=1e-3)
    folder = save(longer, tmp_path / "child")
    scale = np.abs(expected).max()
    assert np.abs(hf_logits(folder) - expected).max() <= 1e-5 * scale
    assert np.abs(native_logits(folder) - expected).max() <= 1e-4 * scale
    assert open_checkpoint(folder).config == config


def test_readers_from_before_version_5_find_their_keys(tmp_path: Path) -> None:
    learner = load_learner(str(tiny_folder(tmp_path / "tiny")))
    stage = ExtendStage(name="x", kind="extend", data=(DataSource(path="x"),), max_context=2048, rope="yarn")
    yarn = extended(learner.config, stage)
    for config, scaling in ((learner.config, None), (yarn, {"type": "yarn", "rope_type": "yarn", "factor": 4.0})):
        folder = tmp_path / f"saved-{config.max_context}"
        save(Learner(new_model(config), config, learner.tokenizer, learner.checkpoint, {}), folder)
        written = json.loads((folder / "config.json").read_text())
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 10000.0
        if scaling is None:
            assert written["rope_scaling"] is None
        else:
            assert scaling.items() <= written["rope_scaling"].items()
            assert written["rope_scaling"]["original_max_position_embeddings"] == 512
        assert written["torch_dtype"] == written["dtype"] == "float32"
        assert (written["eos_token_id"], written["architectures"]) == (256, ["LlamaForCausalLM"])


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_the_tokenizer_carries_the_prompt_format(template: str, tmp_path: Path) -> None:
    learner = load_learner(str(tiny_folder(tmp_path / "tiny")))
    folder = save(learner, tmp_path / "saved", template)
    messages = [Message("user", "hi"), Message("assistant", "yo"), Message("user", "so")]
    expected = choose_format(learner.tokenizer, template).encode(messages)
    ours = Tokenizer.from_folder(folder)
    assert choose_format(ours).encode(messages).token_ids == expected.token_ids
    theirs = AutoTokenizer.from_pretrained(folder)
    rows = [{"role": message.role, "content": message.content} for message in messages]
    ids = theirs.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert tuple(ids) == expected.token_ids


def test_the_snippet_of_the_model_card_runs_on_what_was_saved(tmp_path: Path) -> None:
    """A tokenizer's chat template, sampled text, and the prompt in front of it: the card's lines, with our folder."""
    folder = save(load_learner(str(tiny_folder(tmp_path / "tiny"))), tmp_path / "saved", "alpaca")
    name = str(folder)
    tokenizer = AutoTokenizer.from_pretrained(name)
    pipe = pipeline("text-generation", model=name, tokenizer=tokenizer, dtype=torch.bfloat16)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    outputs = pipe(prompt, max_new_tokens=8, do_sample=True, temperature=0.7, top_k=50, top_p=0.95)
    text = outputs[0]["generated_text"]
    assert prompt == "### Instruction:\nbe brief\n\n### Input:\nhi\n\n### Response:\n"
    assert text.startswith(prompt)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_gguf_parents_become_folders_with_the_same_ids(kind: str, tmp_path: Path) -> None:
    metadata = byte_level_gguf("smollm") if kind == "byte-level" else sentencepiece_gguf()
    config = small_config(vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    path = tmp_path / "model.gguf"
    write_gguf_model(path, config, random_tensors(config), metadata)
    learner = load_learner(str(path))
    folder = save(learner, tmp_path / "saved")
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("the quick brown fox", "  def f(x):\n    return 12", "日本語 größer", "don't  stop"):
        expected = learner.tokenizer.encode(text)
        assert ours.encode(text) == expected
        assert theirs.encode(text) == expected
    assert np.abs(native_logits(folder) - native_logits(path)).max() <= 1e-5


def test_layers_are_spread_evenly_or_as_listed() -> None:
    assert kept_layers(InitStage(name="i", kind="init", num_layers=4), 30) == (0, 10, 19, 29)
    assert kept_layers(InitStage(name="i", kind="init", layers=(1, 2)), 3) == (1, 2)
    assert kept_layers(InitStage(name="i", kind="init"), 3) == (0, 1, 2)
    for wrong in ({"layers": (2, 1)}, {"layers": (3,)}, {"num_layers": 4}, {"num_layers": 1, "layers": (0,)}):
        with pytest.raises(UsageError, match=r"stage\.i"):
            kept_layers(InitStage(name="i", kind="init", **wrong), 3)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_dropped_layers_are_the_only_difference(architecture: str, tmp_path: Path) -> None:
    """The oracle: the parent with the other layers taken out of its list."""
    oracle = random_model(tmp_path, architecture, num_hidden_layers=4)
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json("gpt-2"))
    learner = load_learner(str(tmp_path))
    stage = InitStage(name="i", kind="init", layers=(0, 3))
    small = shrunk(learner, stage)
    del oracle.model.layers[1:3]
    oracle.config.num_hidden_layers = 2
    for layer, module in enumerate(oracle.model.layers):
        module.self_attn.layer_idx = layer
    with torch.no_grad():
        expected = oracle(torch.tensor([IDS]), use_cache=False).logits
        assert torch.allclose(small(torch.tensor([IDS])).logits, expected, atol=1e-4)


def shrunk(learner: Learner, stage: InitStage) -> Any:
    config = shrunk_config(learner.config, stage)
    layers = kept_layers(stage, learner.config.num_layers)
    model = new_model(config)
    model.load_state_dict(shrunk_weights(learner.model.state_dict(), config, layers), strict=True)
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_widths_that_weigh_nothing_can_be_dropped(architecture: str, tmp_path: Path) -> None:
    """A parent that is a small model padded with zeros shrinks to just that small model, up to the norms' scale."""
    random_model(tmp_path, architecture, num_hidden_layers=2)
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json("gpt-2"))
    learner = load_learner(str(tmp_path))
    keep, inner = torch.arange(64) % 2 == 0, torch.arange(112) % 4 == 1
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if parameter.ndim == 1 and parameter.shape[0] == 64 and "norm" in name:
                parameter.mul_(keep)
            elif "embed" in name or "lm_head" in name or "proj" in name:
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.mul_(keep[:, None])
                elif parameter.ndim == 2 and parameter.shape[1] == 64:
                    parameter.mul_(keep)
                if "gate_proj" in name or "up_proj" in name:
                    parameter.mul_(inner[:, None])
    small = shrunk(learner, InitStage(name="i", kind="init", hidden_size=32, intermediate_size=28))
    with torch.no_grad():  # RMSNorm over half as many entries: the mean square doubles
        for name, parameter in small.named_parameters():
            if "norm" in name and parameter.shape[0] == 32:
                parameter.mul_(2**0.5)
        expected = learner.model(torch.tensor([IDS])).logits
        assert torch.allclose(small(torch.tensor([IDS])).logits, expected, atol=2e-3, rtol=1e-3)


def test_what_cannot_grow_is_told() -> None:
    config = small_config()
    with pytest.raises(UsageError, match=r"stage\.i\.hidden_size is 128, but the model has 64"):
        shrunk_config(config, InitStage(name="i", kind="init", hidden_size=128))
    assert (
        shrunk_config(config, InitStage(name="i", kind="init", hidden_size=128, from_scratch=True)).hidden_size == 128
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_context": 128, "rope_theta": 1e6}, "the model has 256 already"),
        ({"max_context": 512}, "needs rope_theta"),
        ({"max_context": 512, "rope": "yarn", "rope_theta": 1e6}, "takes no rope_theta"),
    ],
)
def test_extensions_that_make_no_sense_are_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        extended(small_config(), ExtendStage(name="x", kind="extend", data=(DataSource(path="x"),), **changes))


def test_the_kept_vocabulary_is_the_most_frequent_and_survives(tmp_path: Path) -> None:
    learner = load_learner(str(tiny_folder(tmp_path / "tiny")))
    store = random_store(tmp_path / "store", 40, vocabulary=20)
    kept = most_frequent(store, learner.tokenizer, 260, 10)
    learnt = np.concatenate([pack(store, [group]).labels for group in range(40)])
    counts = np.bincount(learnt, minlength=20)
    assert kept[0] == 256  # ends replies
    assert kept[1:].tolist() == sorted(range(20), key=lambda i: (-counts[i], i))[:9]
    write_kept_ids(tmp_path / "tiny", kept)
    again = load_learner(str(tmp_path / "tiny"))
    assert again.kept_ids is not None
    assert again.kept_ids.tolist() == kept.tolist()
    saved = read_kept_ids(save(again, tmp_path / "saved"), 260)
    assert saved is not None
    assert saved.tolist() == kept.tolist()
    with pytest.raises(UsageError, match="keep_vocabulary is 300"):
        most_frequent(store, learner.tokenizer, 260, 300)


@pytest.mark.parametrize("tied", [True, False])
def test_a_pruned_model_gives_the_kept_logits_and_is_whole_again_afterwards(tmp_path: Path, tied: bool) -> None:
    learner = load_learner(str(tiny_folder(tmp_path / "tiny")))
    model = learner.model
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    kept = torch.tensor([256, 104, 105, 33])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head_before = model.get_output_embeddings().weight.detach().clone()
    ids = torch.tensor([[104, 105, 33, 104]])
    with torch.no_grad():
        expected = model(ids).logits[..., kept]
        prune(model, kept)
        assert torch.allclose(model(ids).logits, expected, atol=1e-6)
        assert model.get_input_embeddings().weight.shape[0] == 4
        other = model(torch.tensor([[107]])).logits  # read as the kept id that is most like it
        rows = nearest_rows(before["model.embed_tokens.weight"], kept)
        assert torch.equal(other, model(kept[rows[107]].reshape(1, 1)).logits)
        model.get_input_embeddings().weight[1] += 1.0
        changed = model(ids).logits
        restore(model, kept, None if tied else head_before)
        assert torch.allclose(model(ids).logits[..., kept], changed, atol=1e-6)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].shape == before[name].shape for name in before)
    assert torch.equal(after["model.embed_tokens.weight"][104], before["model.embed_tokens.weight"][104] + 1.0)
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared == tied
    if not tied:
        assert torch.equal(model.get_output_embeddings().weight[107], head_before[107])


def test_the_nearest_row_is_by_cosine() -> None:
    embedding = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1], [0.1, 0.2], [-1.0, 0.0]])
    assert nearest_rows(embedding, torch.tensor([1, 0])).tolist() == [1, 0, 1, 0, 0]


def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words of safetensors 0.8 on a file system of 20 MB."""
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def no_room(*_: object, **__: object) -> None:
        raise SafetensorError(said)

    learner = load_learner(str(tiny_folder(tmp_path / "tiny")))
    monkeypatch.setattr("draftsmith.train.tensor_file.save_file", no_room)
    with pytest.raises(DiskFull, match="there is no space left to write"):
        save(learner, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    said = "Error while serializing: a tensor is damaged"
    with pytest.raises(SafetensorError, match="damaged"):
        save(learner, tmp_path / "out")
