"""Hugging Face folders: transformers loads them, with the logits of the source; so do older readers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftsmith.checkpoint import ModelConfig, RopeConfig, open_checkpoint, rope_frequencies
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.export.gguf import write_gguf_export
from draftsmith.export.hf import hf_dtype, write_hf_export
from draftsmith.export.hf_config import hf_config
from draftsmith.export.source import opened
from draftsmith.quant import BlockType
from draftsmith.text import Tokenizer
from tests.support.hf_models import load_oracle, oracle_logits, random_model
from tests.support.made_tokenizers import sentencepiece_gguf, sentencepiece_model
from tests.support.tiny import tiny_folder
from tests.support.tiny_models import random_tensors, small_config

IDS = [3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95] * 6
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied, linear": (
        "llama",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    ),
    "llama, dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 16384}),
    "mistral": ("mistral", {"sliding_window": 20}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, some layers slide": ("qwen2", SLIDING),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, longrope": ("qwen3", {"rope_parameters": LONGROPE}),
}


def with_tokenizer(folder: Path) -> Path:
    """A tokenizer for a model without one; its vocabulary is smaller than the model's or as large."""
    donor = tiny_folder(folder.parent / "donor")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((donor / name).read_bytes())
    return folder


def exported(source: Path, folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir()
    with opened(str(source)) as opened_source:
        return write_hf_export(opened_source, folder, **options)


def exported_gguf(source: Path, path: Path, block_type: BlockType) -> Path:
    with opened(str(source)) as opened_source:
        write_gguf_export(opened_source, path, block_type)
    return path


@pytest.mark.parametrize("case", MODELS)
def test_logits_of_transformers_stay_the_same(case: str, tmp_path: Path) -> None:
    architecture, changes = MODELS[case]
    oracle = random_model(tmp_path / "model", architecture, **{"vocab_size": 260, **changes})
    report = exported(with_tokenizer(tmp_path / "model"), tmp_path / "out")
    assert report["dtype"] == "float32"
    copy = load_oracle(tmp_path / "out")
    np.testing.assert_array_equal(oracle_logits(copy, IDS), oracle_logits(oracle, IDS))


@pytest.mark.parametrize("case", ["llama", "llama, llama3", "mistral, no window", "qwen2", "qwen3"])
def test_through_gguf_and_back(case: str, tmp_path: Path) -> None:
    """A folder, a GGUF file of it, a folder again: names, row order, RoPE and biases all come back."""
    architecture, changes = MODELS[case]
    oracle = random_model(tmp_path / "model", architecture, **{"vocab_size": 260, **changes})
    exported_gguf(with_tokenizer(tmp_path / "model"), tmp_path / "m.gguf", BlockType.F32)
    exported(tmp_path / "m.gguf", tmp_path / "out")
    copy = load_oracle(tmp_path / "out")
    np.testing.assert_allclose(oracle_logits(copy, IDS), oracle_logits(oracle, IDS), rtol=1e-4, atol=1e-4)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["rope_parameters"]["rope_type"] == original["rope_parameters"]["rope_type"]


def test_quantised_blocks_in_float32_are_exact(tmp_path: Path) -> None:
    random_model(tmp_path / "model", "llama", vocab_size=260)
    exported_gguf(with_tokenizer(tmp_path / "model"), tmp_path / "m.gguf", BlockType.Q4_0)
    exported(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    with open_checkpoint(tmp_path / "m.gguf") as blocks, open_checkpoint(tmp_path / "out") as folder:
        for name, tensor in blocks.tensors.items():
            np.testing.assert_array_equal(folder.tensors[name].dequantize(), tensor.dequantize())
    with opened(str(tmp_path / "m.gguf")) as source:
        assert hf_dtype(source.weights) == "bfloat16"


def test_the_tokenizer_and_its_template(tmp_path: Path) -> None:
    """transformers reads the same ids and renders the same text, from a GGUF file's vocabulary too."""
    folder = tiny_folder(tmp_path / "model")
    exported_gguf(folder, tmp_path / "m.gguf", BlockType.F32)
    exported(tmp_path / "m.gguf", tmp_path / "out")
    original, copy = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    text = "Hello wörld\n\tif x == 1: 🎉"
    assert copy(text)["input_ids"] == original(text)["input_ids"]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert copy.apply_chat_template(turns, tokenize=False) == original.apply_chat_template(turns, tokenize=False)
    assert copy.eos_token == original.eos_token
    assert Tokenizer.from_folder(tmp_path / "out").fingerprint() == Tokenizer.from_folder(folder).fingerprint()


@pytest.mark.parametrize("source", ["gguf", "tokenizer.model"])
def test_sentencepiece_becomes_tokenizer_json(source: str, tmp_path: Path) -> None:
    size = len(sentencepiece_gguf()["tokenizer.ggml.tokens"])
    config = small_config(vocab_size=size)
    write_gguf_model(tmp_path / "m.gguf", config, random_tensors(config), sentencepiece_gguf())
    if source == "tokenizer.model":
        exported(tmp_path / "m.gguf", tmp_path / "folder")
        (tmp_path / "folder" / "tokenizer.json").unlink()
        (tmp_path / "folder" / "tokenizer.model").write_bytes(sentencepiece_model())
        exported(tmp_path / "folder", tmp_path / "out")
    else:
        exported(tmp_path / "m.gguf", tmp_path / "out")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = Tokenizer.from_gguf(sentencepiece_gguf())
    for text in ("the quick  brown fox", "don't 12345 こんにちは", " a", "x\n\ny 🎉"):
        assert written(text)["input_ids"] == expected.encode(text)


def test_configs_for_old_readers(tmp_path: Path) -> None:
    """transformers before 4.43 takes ``type`` and ``factor`` and nothing else; before 5, theta stands at the top."""
    tokenizer = Tokenizer.from_folder(tiny_folder(tmp_path / "model"))
    rope = RopeConfig(theta=1e5, max_position_embeddings=256, rope_type="linear", factor=4.0)
    config = hf_config(small_config(rope=rope), tokenizer, "bfloat16")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e5
    assert config["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    plain = hf_config(small_config(), tokenizer, "float16")
    assert plain["rope_scaling"] is None
    assert plain["eos_token_id"] == tokenizer.eos_ids[0]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_a_gguf_file_are_llama3_again(factor: float, tmp_path: Path) -> None:
    rope = RopeConfig(
        theta=5e5,
        max_position_embeddings=131072,
        rope_type="llama3",
        factor=factor,
        original_max_position_embeddings=8192,
    )
    stated = _through_gguf(small_config(rope=rope, max_context=131072, head_dim=64), tmp_path)
    parameters = hf_config(stated, Tokenizer.from_gguf(sentencepiece_gguf()), "float32")["rope_parameters"]
    assert (parameters["rope_type"], parameters["factor"]) == ("llama3", factor)


def test_unknown_factors_of_a_gguf_file_are_longrope(tmp_path: Path) -> None:
    """The frequencies that transformers computes from it are the file's."""
    factors = tuple(float(x) for x in np.linspace(1, 7, 8).astype(np.float32))
    rope = RopeConfig(theta=10000.0, max_position_embeddings=256, frequency_factors=factors)
    config = small_config(rope=rope, vocab_size=260)
    write_gguf_model(tmp_path / "m.gguf", config, random_tensors(config), _tokenizer_keys(tmp_path))
    exported(tmp_path / "m.gguf", tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    wanted, scaling = rope_frequencies(rope, config.head_dim)
    np.testing.assert_allclose(model.model.rotary_emb.inv_freq.numpy(), wanted, rtol=1e-6)
    assert model.model.rotary_emb.attention_scaling == scaling == 1.0


def _tokenizer_keys(folder: Path) -> Mapping[str, Any]:
    path = exported_gguf(tiny_folder(folder / "donor"), folder / "donor.gguf", BlockType.F32)
    with open_checkpoint(path) as checkpoint:
        return {key: value for key, value in checkpoint.metadata.items() if key.startswith("tokenizer.")}


def _through_gguf(config: ModelConfig, folder: Path) -> ModelConfig:
    write_gguf_model(folder / "m.gguf", config, random_tensors(config))
    with open_checkpoint(folder / "m.gguf") as checkpoint:
        return checkpoint.config
