"""GGUF models: what is written is read back, and llama.cpp's own conventions (names, row order, keys) are met."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from draftsmith.checkpoint import ModelConfig, RopeConfig, open_checkpoint, rope_frequencies
from draftsmith.checkpoint.experts import ExpertsConfig
from draftsmith.checkpoint.gguf_reader import read_gguf
from draftsmith.checkpoint.gguf_writer import write_gguf, write_gguf_model
from draftsmith.errors import CheckpointError, TokenizerError, UnsupportedModel
from draftsmith.quant import BlockType
from tests.support.tiny_models import random_tensors, small_config, write_llama_gguf


def experts(size: int, sparse_layers: tuple[bool, ...] = (True, True)) -> ExpertsConfig:
    return ExpertsConfig(num_experts=4, num_per_token=2, intermediate_size=size, sparse_layers=sparse_layers)


CONFIGS = {
    "llama": small_config(),
    "llama with biases": small_config(qkv_bias=True, o_bias=True, mlp_bias=True),
    "tied": small_config(tie_embeddings=True),
    "qwen2": small_config(architecture="qwen2", qkv_bias=True),
    "qwen3": small_config(architecture="qwen3", qk_norm=True, head_dim=32),
    "window": small_config(sliding_window=32, sliding_layers=(True, True)),
    "mixtral": small_config(architecture="mixtral", experts=experts(96)),
    "qwen3_moe": small_config(architecture="qwen3_moe", qk_norm=True, experts=experts(160, (True, False))),
}


def write(path: Path, config: ModelConfig, block_type: BlockType = BlockType.F32) -> Path:
    write_gguf_model(path, config, random_tensors(config, block_type))
    return path


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("block_type", [BlockType.F32, BlockType.Q4_1])
def test_round_trip(config: ModelConfig, block_type: BlockType, tmp_path: Path) -> None:
    original = random_tensors(config, block_type)
    with open_checkpoint(write(tmp_path / "m.gguf", config, block_type)) as checkpoint:
        assert checkpoint.config == config
        assert list(checkpoint.tensors) == list(original)
        for name, tensor in checkpoint.tensors.items():
            assert (tensor.block_type, tensor.shape) == (original[name].block_type, original[name].shape)
            assert tensor.data.tobytes() == original[name].data.tobytes(), name


def test_experts_of_old_files_lie_apart(tmp_path: Path) -> None:
    config = CONFIGS["mixtral"]
    original = random_tensors(config)
    file = read_gguf(write(tmp_path / "new.gguf", config))
    apart = []
    for tensor in file.tensors.values():
        if len(tensor.shape) == 3:
            size = tensor.stored.size // 4
            for i in range(4):
                name = tensor.name.replace("_exps.", f".{i}.")
                apart.append(
                    replace(tensor, name=name, shape=tensor.shape[1:], stored=tensor.stored[i * size :][:size])
                )
        else:
            apart.append(tensor)
    write_gguf(tmp_path / "old.gguf", file.metadata, apart)
    with open_checkpoint(tmp_path / "old.gguf") as checkpoint:
        assert checkpoint.config == config
        for name, tensor in checkpoint.tensors.items():
            assert tensor.data.tobytes() == original[name].data.tobytes(), name


def test_a_layer_short_of_an_expert(tmp_path: Path) -> None:
    file = read_gguf(write(tmp_path / "whole.gguf", CONFIGS["mixtral"]))
    short = [
        replace(t, shape=(3, *t.shape[1:]), stored=t.stored[: t.stored.size // 4 * 3]) if len(t.shape) == 3 else t
        for t in file.tensors.values()
    ]
    write_gguf(tmp_path / "short.gguf", file.metadata, short)
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.0\.mlp\.experts\.3"):
        open_checkpoint(tmp_path / "short.gguf")


def test_mistral_comes_back_as_llama(tmp_path: Path) -> None:
    config = small_config(architecture="mistral", sliding_window=64, sliding_layers=(True, True))
    assert open_checkpoint(write(tmp_path / "m.gguf", config)).config == replace(config, architecture="llama")


def test_reference_reader_sees_the_same(tmp_path: Path) -> None:
    """The ``gguf`` package reads names, shapes and values that llama.cpp's converter would have written."""
    config = small_config()
    original = random_tensors(config)
    reader = gguf.GGUFReader(write(tmp_path / "m.gguf", config))
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    q = original["model.layers.1.self_attn.q_proj.weight"].dequantize()
    interleaved = q.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight"], interleaved)
    v = original["model.layers.1.self_attn.v_proj.weight"].dequantize()
    np.testing.assert_array_equal(tensors["blk.1.attn_v.weight"], v)
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["general.architecture"].contents() == "llama"


def test_reads_what_the_reference_writer_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "llama")
    writer.add_uint32("a.number", 7)
    writer.add_int64("a.long", -(1 << 40))
    writer.add_bool("a.flag", True)
    writer.add_float64("a.real", 0.1)
    writer.add_array("a.texts", ["x", "", "ü😀"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("m", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("v", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "w.gguf")
    expected = {"a.number": 7, "a.long": -(1 << 40), "a.flag": True, "a.real": 0.1, "a.texts": ("x", "", "ü😀")}
    assert {key: file.metadata[key] for key in expected} == expected
    assert file.metadata["a.numbers"] == (1, -2, 3)
    np.testing.assert_array_equal(file.tensors["m"].dequantize(), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(file.tensors["v"].dequantize(), np.arange(5))


ROPES = {
    "linear": RopeConfig(theta=1e4, max_position_embeddings=256, rope_type="linear", factor=4.0),
    "yarn": RopeConfig(
        theta=1e4, max_position_embeddings=256, rope_type="yarn", factor=4.0, original_max_position_embeddings=64,
        mscale=0.8, mscale_all_dim=1.2, beta_fast=16.0, beta_slow=2.0,
    ),
    "longrope": RopeConfig(
        theta=1e4, max_position_embeddings=256, rope_type="longrope", factor=4.0, original_max_position_embeddings=64,
        short_factor=(1.0,) * 8, long_factor=tuple(1.0 + index for index in range(8)),
    ),
    "llama3": RopeConfig(
        theta=1e4, max_position_embeddings=256, rope_type="llama3", factor=8.0, original_max_position_embeddings=64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_rope_scaling_survives(rope: RopeConfig, tmp_path: Path) -> None:
    config = small_config(rope=rope)
    read = open_checkpoint(write(tmp_path / "m.gguf", config)).config
    for context in (64, 256):
        frequencies, scaling = rope_frequencies(rope, 16, context)
        got, got_scaling = rope_frequencies(read.rope, 16, context)
        np.testing.assert_allclose(got, frequencies, rtol=1e-6)
        assert got_scaling == pytest.approx(scaling, rel=1e-6)


def rewritten(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = read_gguf(write_llama_gguf(tmp_path / "before.gguf"))
    metadata = dict(file.metadata)
    change(metadata)
    write_gguf(tmp_path / "after.gguf", metadata, file.tensors.values())
    return tmp_path / "after.gguf"


REFUSED: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "architecture": ({"general.architecture": "gemma3"}, UnsupportedModel, "architecture 'gemma3'; known are llama"),
    "no architecture": ({"general.architecture": None}, UnsupportedModel, "architecture 'None'"),
    "experts, none used": (
        {"llama.expert_count": 8},
        CheckpointError,
        "lacks the metadata key llama.expert_used_count",
    ),
    "more experts than there are": (
        {"llama.expert_count": 8, "llama.expert_used_count": 9},
        CheckpointError,
        "uses 9 of 8 experts",
    ),
    "experts that are not there": (
        {"llama.expert_count": 4096, "llama.expert_used_count": 2},
        CheckpointError,
        "4096 experts; it must be from 2",
    ),
    "split": ({"split.count": 3}, UnsupportedModel, "merge the parts"),
    "old blocks": ({"general.quantization_version": 1}, UnsupportedModel, "outdated layout"),
    "rope": ({"llama.rope.scaling.type": "spiral"}, UnsupportedModel, "RoPE scaling 'spiral'"),
    "partial rope": ({"llama.rope.dimension_count": 8}, UnsupportedModel, r"rope.dimension_count = 8; only 16"),
    "missing key": ({"llama.block_count": None}, CheckpointError, "lacks the metadata key llama.block_count"),
    "text for number": ({"llama.block_count": "two"}, CheckpointError, "'two'; it must be one whole number"),
    "no layers": ({"llama.block_count": 0}, CheckpointError, "num_layers is 0"),
    "absurd layers": ({"llama.block_count": 4_000_000_000}, CheckpointError, "num_layers is 4000000000"),
    "one layer more": ({"llama.block_count": 3}, CheckpointError, "lacks the tensor model.layers.2"),
    "one layer less": ({"llama.block_count": 1}, UnsupportedModel, "holds the tensor 'model.layers.1"),
    "shape": ({"llama.feed_forward_length": 64}, CheckpointError, r"has the shape \(96, 64\), but .* \(64, 64\)"),
    "heads": ({"llama.attention.head_count_kv": 3}, CheckpointError, "4 attention heads for 3 key/value"),
    "layers differ": ({"llama.attention.head_count_kv": [2, 4]}, CheckpointError, "for all layers"),
    "epsilon": ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, CheckpointError, "must be finite"),
    "alignment": ({"general.alignment": 33}, CheckpointError, "alignment of 33; it must be a power of two"),
}


@pytest.mark.parametrize(("changes", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_in_one_sentence(
    changes: dict[str, Any], kind: type[CheckpointError], message: str, tmp_path: Path
) -> None:
    def change(metadata: dict[str, Any]) -> None:
        metadata.update(changes)
        for key in [key for key, value in metadata.items() if value is None]:
            del metadata[key]

    path = rewritten(tmp_path, change)
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind


def test_equal_entries_per_layer_are_fine(tmp_path: Path) -> None:
    path = rewritten(tmp_path, lambda metadata: metadata.update({"llama.attention.head_count_kv": [2, 2]}))
    assert open_checkpoint(path).config.num_kv_heads == 2


def test_missing_tensor_and_bad_rope_factors(tmp_path: Path) -> None:
    file = read_gguf(write_llama_gguf(tmp_path / "m.gguf"))
    kept = [tensor for name, tensor in file.tensors.items() if name != "blk.1.ffn_up.weight"]
    write_gguf(tmp_path / "n.gguf", file.metadata, kept)
    with pytest.raises(CheckpointError, match=r"lacks the tensor model.layers.1.mlp.up_proj.weight"):
        open_checkpoint(tmp_path / "n.gguf")
    factors = replace(file.tensors["output_norm.weight"], name="rope_freqs.weight")
    write_gguf(tmp_path / "o.gguf", file.metadata, [*file.tensors.values(), factors])
    with pytest.raises(CheckpointError, match="states 64 frequency factors; there must be 8"):
        rope_frequencies(open_checkpoint(tmp_path / "o.gguf").config.rope, 16)


def test_identity(tmp_path: Path) -> None:
    path = write_llama_gguf(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(path)
    assert checkpoint.fingerprint == open_checkpoint(path).fingerprint
    fingerprint, sha256, content = checkpoint.fingerprint, checkpoint.sha256(), path.read_bytes()
    assert sha256 == hashlib.sha256(content).hexdigest()
    path.unlink()
    assert checkpoint.fingerprint == fingerprint
    with pytest.raises(CheckpointError, match=r"m.gguf cannot be read any more: No such file"):
        checkpoint.sha256()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = open_checkpoint(path)
    assert again.fingerprint != fingerprint
    assert again.sha256() != sha256
    assert again.num_bytes == sum(tensor.num_bytes for tensor in again.tensors.values())


def test_close_lets_go(tmp_path: Path) -> None:
    with open_checkpoint(write_llama_gguf(tmp_path / "m.gguf")) as checkpoint:
        view = checkpoint.tensors["model.norm.weight"].data
    assert not checkpoint.tensors
    assert view.size == 256  # still readable: the file stays mapped while somebody looks at it
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dict cannot be stored"):
        write_gguf(tmp_path / "m.gguf", {"a": {}}, [])
    tensors = random_tensors(small_config())
    del tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"the tensor model.norm.weight is missing"):
        write_gguf_model(tmp_path / "m.gguf", small_config(), tensors)
    config = small_config(sliding_window=8, sliding_layers=(True, False))
    with pytest.raises(UnsupportedModel, match="for some layers only"):
        write_gguf_model(tmp_path / "m.gguf", config, random_tensors(config))
    assert list(tmp_path.iterdir()) == []


def test_brings_its_tokenizer(tmp_path: Path) -> None:
    tokens = ["<|end|>", *"abcdefgh", "ab"]
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * 9,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
    }
    config = small_config()
    write_gguf_model(tmp_path / "m.gguf", config, random_tensors(config), tokenizer)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.tokenizer().encode("abba") == [9, 2, 1]
        assert checkpoint.tokenizer().eos_ids == (0,)
    with open_checkpoint(write_llama_gguf(tmp_path / "n.gguf")) as checkpoint, pytest.raises(TokenizerError):
        checkpoint.tokenizer()
