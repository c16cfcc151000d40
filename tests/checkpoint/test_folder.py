"""Hugging Face folders: what ``transformers`` saves is read as it means it; everything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from draftsmith.checkpoint import open_checkpoint
from draftsmith.checkpoint.folder_config import folder_config
from draftsmith.checkpoint.json_file import JsonObject
from draftsmith.errors import CheckpointError, TokenizerError, UnsupportedModel
from draftsmith.quant import BlockType
from tests.support.tiny_models import random_tensors, save_safetensors, small_config, write_folder

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
REFERENCES: dict[str, transformers.PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(**SMALL),
    "llama, biases": transformers.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, head_dim=32),
    "mistral": transformers.MistralConfig(**SMALL),
    "mistral, no window": transformers.MistralConfig(**SMALL, sliding_window=None, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen2, window": transformers.Qwen2Config(
        **SMALL, use_sliding_window=True, sliding_window=32, max_window_layers=2
    ),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=32),
    "qwen3, bias and layer types": transformers.Qwen3Config(
        **SMALL, head_dim=32, attention_bias=True, use_sliding_window=True, sliding_window=16,
        layer_types=["full_attention", "sliding_attention"] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_reads_what_transformers_saves(
    reference: transformers.PreTrainedConfig, dtype: torch.dtype, shard_size: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    build: Any = transformers.AutoModelForCausalLM
    model = build.from_config(reference).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    with open_checkpoint(tmp_path) as checkpoint:
        assert (len(checkpoint.files) > 1) == (shard_size == "60KB")
        expected = {name: value.float().numpy() for name, value in model.state_dict().items()}
        if checkpoint.config.tie_embeddings:
            del expected["lm_head.weight"]
        assert checkpoint.tensors.keys() == expected.keys()
        for name, tensor in checkpoint.tensors.items():
            np.testing.assert_array_equal(tensor.dequantize(), expected[name])
        config = checkpoint.config
    assert config.architecture == reference.model_type
    assert config.tie_embeddings == reference.tie_word_embeddings
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.head_dim == model.model.layers[0].self_attn.head_dim
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers]
    if reference.model_type == "llama":
        windows = [None] * 4
    elif reference.model_type == "mistral":
        windows = [reference.sliding_window] * 4
    assert [config.sliding_window if slides else None for slides in config.sliding_layers] == windows


def config_of(**changes: Any) -> Any:
    values = {**SMALL, "model_type": "llama", **changes}
    return folder_config(JsonObject(Path("config.json"), values))


def test_defaults_are_those_of_transformers() -> None:
    references: dict[str, Any] = {"llama": transformers.LlamaConfig(), "mistral": transformers.MistralConfig()}
    for kind, reference in references.items():
        values = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
        values.update({"num_attention_heads": 8, "model_type": kind})
        config = folder_config(JsonObject(Path("config.json"), values))
        assert config.num_kv_heads == 8
        assert (config.rms_norm_eps, config.tie_embeddings) == (reference.rms_norm_eps, False)
        assert config.sliding_window == getattr(reference, "sliding_window", None)
        assert config.rope.theta == reference.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"model_type": "gemma2"},
            UnsupportedModel,
            "type 'gemma2'; known are llama, mistral, mixtral, qwen2, qwen3, qwen3_moe",
        ),
        ({"model_type": None}, CheckpointError, "lacks the key 'model_type'"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act = 'gelu'; only silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModel, "method 'gptq'.*take the unquantised"),
        ({"hidden_size": "64"}, CheckpointError, "hidden_size = '64'; it must be a whole number"),
        ({"hidden_size": True}, CheckpointError, "hidden_size = True; it must be a whole number"),
        ({"hidden_size": 66}, CheckpointError, "hidden_size = 66, which 4 heads do not divide"),
        ({"num_attention_heads": 0}, CheckpointError, "which 0 heads do not divide"),
        ({"num_hidden_layers": -1}, CheckpointError, "num_hidden_layers = -1; it must be 1 to 4096"),
        ({"num_hidden_layers": 10**12}, CheckpointError, "num_hidden_layers = 1000000000000; it must be 1 to"),
        ({"head_dim": 15}, CheckpointError, "head_dim is 15; rotary embedding needs an even number"),
        ({"rope_scaling": {"type": "spiral"}}, UnsupportedModel, "RoPE scaling 'spiral'; known are default"),
        ({"rope_scaling": {"type": "linear"}}, CheckpointError, "lacks the key 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, CheckpointError, r"factor = 0.0; it must be above 0"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, CheckpointError, "lacks the key 'low_freq_factor'"),
        ({"rope_theta": float("inf")}, CheckpointError, "rope_theta = inf; it must be a finite number"),
        ({"rope_theta": -1}, CheckpointError, r"rope_theta = -1.0; it must be above 0"),
        ({"partial_rotary_factor": 0.5}, UnsupportedModel, "only a part of each head"),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedModel, "each type of layer"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked_attention"] * 4},
            UnsupportedModel,
            "layer type 'chunked_attention'",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["sliding_attention"]},
            CheckpointError,
            "attention type of 1 layers but has 4",
        ),
    ],
)
def test_refuses_configs_by_name(changes: dict[str, Any], kind: type[CheckpointError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        config_of(**changes)
    assert type(caught.value) is kind


def test_tied_embeddings_follow_the_files(tmp_path: Path) -> None:
    """As transformers 5: equal matrices are one, different ones are two, a single one under either name is enough."""
    tensors = random_tensors(small_config())
    embedding, output = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    different = open_checkpoint(write_folder(tmp_path / "different", tensors, tie_word_embeddings=True))
    assert not different.config.tie_embeddings
    tensors["lm_head.weight"] = replace(embedding, name="lm_head.weight")
    same = open_checkpoint(write_folder(tmp_path / "same", tensors, tie_word_embeddings=True))
    assert same.config.tie_embeddings
    assert "lm_head.weight" not in same.tensors
    del tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = output
    alone = open_checkpoint(write_folder(tmp_path / "alone", tensors, tie_word_embeddings=True))
    assert alone.tensors["model.embed_tokens.weight"].data.tobytes() == output.data.tobytes()
    with pytest.raises(CheckpointError, match=r"lacks the tensor model.embed_tokens.weight"):
        open_checkpoint(write_folder(tmp_path / "untied", tensors))


def test_derived_tensors_are_dropped(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    tensors[name] = replace(tensors["model.norm.weight"], name=name)
    assert name not in open_checkpoint(write_folder(tmp_path, tensors)).tensors


def test_missing_extra_and_misshaped_tensors(tmp_path: Path) -> None:
    tensors = random_tensors(small_config())
    kept = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    with pytest.raises(CheckpointError, match=r"lacks the tensor model.norm.weight"):
        open_checkpoint(write_folder(tmp_path / "missing", kept))
    extra = {**tensors, "model.extra": replace(tensors["model.norm.weight"], name="model.extra")}
    with pytest.raises(UnsupportedModel, match=r"holds the tensor 'model.extra', which a llama model"):
        open_checkpoint(write_folder(tmp_path / "extra", extra))
    with pytest.raises(CheckpointError, match=r"has the shape \(128, 64\), but the config asks for \(200, 64\)"):
        open_checkpoint(write_folder(tmp_path / "shape", tensors, vocab_size=200))


def sharded(folder: Path, **places: Any) -> Path:
    """A folder with one shard, whose index can be told other places for single tensors."""
    write_folder(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(random_tensors(small_config()), "model-00001-of-00001.safetensors")
    index = {"weight_map": {**weight_map, **{name.replace("__", "."): place for name, place in places.items()}}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_index_of_shards(tmp_path: Path) -> None:
    assert len(open_checkpoint(sharded(tmp_path / "good")).tensors) == 21
    save_safetensors(tmp_path / "outside.safetensors", random_tensors(small_config()))
    for place in ("../outside.safetensors", "/etc/passwd", "..", "", "a\\b", 7):
        with pytest.raises(CheckpointError, match="it must name a file beside it"):
            open_checkpoint(sharded(tmp_path / "bad", model__norm__weight=place))
        (tmp_path / "bad" / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there is no file .*gone.safetensors"):
        open_checkpoint(sharded(tmp_path / "gone", model__norm__weight="gone.safetensors"))
    with pytest.raises(CheckpointError, match="lacks the tensor 'other' that model"):
        open_checkpoint(sharded(tmp_path / "other", other="model-00001-of-00001.safetensors"))


def test_unusable_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no .*nowhere; give a Hugging Face folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"there is no config.json in"):
        open_checkpoint(tmp_path)
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"give the file in it: .*some.gguf"):
        open_checkpoint(tmp_path)
    folder = write_folder(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle, which is never read"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a JSON list; it must be an object"):
        open_checkpoint(folder)


def test_types_of_tensors(tmp_path: Path) -> None:
    header = {"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}
    folder = write_folder(tmp_path)
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"1234")
    with pytest.raises(UnsupportedModel, match=r"the tensor 'a' in .* has the type I8; F32, F16, BF16 can be read"):
        open_checkpoint(folder)
    raw = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"12345")
    with pytest.raises(CheckpointError, match="header describes 4"):
        open_checkpoint(folder)


def test_identity_covers_config_and_shards(tmp_path: Path) -> None:
    first = open_checkpoint(sharded(tmp_path / "a"))
    fingerprint = first.fingerprint
    described = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**described, "rope_theta": 5.0}))
    assert open_checkpoint(tmp_path / "a").fingerprint != fingerprint
    assert len(first.sha256()) == 64
    assert {tensor.block_type for tensor in first.tensors.values()} == {BlockType.F32}


def test_brings_its_tokenizer(tmp_path: Path) -> None:
    vocabulary = {"<|end|>": 0, **{letter: index for index, letter in enumerate("abcdefgh", start=1)}, "ab": 9}
    model = {"type": "BPE", "vocab": vocabulary, "merges": ["a b"]}
    added = [{"id": 0, "content": "<|end|>", "special": True}]
    folder = write_folder(tmp_path)
    with open_checkpoint(folder) as checkpoint, pytest.raises(TokenizerError):
        checkpoint.tokenizer()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    stages = {"pre_tokenizer": byte_level, "decoder": byte_level}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    described = {"version": "1.0", "model": model, **stages, "added_tokens": [{**added[0], **flags}]}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    assert open_checkpoint(folder).tokenizer().encode("abba") == [9, 2, 1]
