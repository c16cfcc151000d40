"""The logits are those of ``transformers`` on the same weights, for every architecture and its variations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from draftsmith.checkpoint import open_checkpoint
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun
from draftsmith.quant import BlockType
from tests.support.hf_models import VOCAB_SIZE, load_oracle, oracle_logits, quantise_like_the_engine, random_model

# Largest error of a logit / largest logit.
FP32 = 1e-4
# f16 keys and values: 11 bits of mantissa, rounded once.
FP16_CACHE = 3e-3
# Root mean square of the errors / of the logits. With the same blocks: of most rows, and of all, some of which follow a
# token where a code of an activation fell to the other side of a tie.
SAME_BLOCKS = 1e-5
FEW_CODES = 2e-2
# Random weights lose more than trained ones; this only shows that nothing is badly wrong.
EIGHT_BIT = 0.1
FOUR_BIT = 0.5

Floats = npt.NDArray[np.float32]


def text(length: int) -> list[int]:
    return [int(token_id) for token_id in np.random.default_rng(length).integers(0, VOCAB_SIZE, length)]


def native_logits(folder: Path, token_ids: list[int], **options: Any) -> Floats:
    """[T, V]"""
    with open_checkpoint(folder) as checkpoint:
        model = NativeModel.load(checkpoint, **options)
    [logits] = model.forward([TokenRun(model.new_cache(len(token_ids)), token_ids, len(token_ids))])
    return logits


def error(logits: Floats, expected: Floats) -> float:
    """Largest difference relative to the logits' scale."""
    assert logits.shape == expected.shape
    assert np.isfinite(logits).all()
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def rms_error(logits: Floats, expected: Floats) -> float:
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


def rope(rope_type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **values}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "factor": 4.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
QWEN3_EXPERTS = {"num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
QWEN2_WINDOWS = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped queries": ("llama", {}),
    "llama, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, as many key-value heads": ("llama", {"num_key_value_heads": 4}),
    "llama, tied embeddings": ("llama", {"tie_word_embeddings": True}),
    "llama, attention bias": ("llama", {"attention_bias": True}),
    "llama, feed-forward bias": ("llama", {"mlp_bias": True}),
    "llama, all biases, tied": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, another base": ("llama", rope("default", rope_theta=500000.0)),
    "llama, llama3 rope": ("llama", rope("llama3", **LLAMA3)),
    "llama, linear rope": ("llama", rope("linear", factor=4.0)),
    "llama, yarn": ("llama", rope("yarn", **YARN)),
    "llama, yarn with a factor for attention": ("llama", rope("yarn", attention_factor=1.3, **YARN)),
    "llama, longrope": ("llama", rope("longrope", **LONGROPE)),
    "llama, dynamic rope within its context": ("llama", rope("dynamic", factor=2.0)),
    "llama, another epsilon": ("llama", {"rms_norm_eps": 1e-2}),
    "llama, head size 64": ("llama", {"head_dim": 64}),
    "llama, head size 80": ("llama", {"head_dim": 80, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "llama, head size 128": ("llama", {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "llama, head size 256": ("llama", {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "llama, eight queries to a key": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "llama, odd sizes": ("llama", {"hidden_size": 48, "intermediate_size": 80, "vocab_size": VOCAB_SIZE + 1}),
    "mistral, sliding window": ("mistral", {"sliding_window": 20}),
    "mistral, a window of one block": ("mistral", {"sliding_window": 64}),
    "mistral, a window of one token": ("mistral", {"sliding_window": 1}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mistral, head size 128": ("mistral", {"sliding_window": 100, "head_dim": 128, "num_attention_heads": 2}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied embeddings": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, some layers slide": ("qwen2", QWEN2_WINDOWS),
    "qwen2, yarn": ("qwen2", rope("yarn", **YARN)),
    "qwen3": ("qwen3", {}),
    "qwen3, head size 128, tied": ("qwen3", {"head_dim": 128, "num_attention_heads": 2, "tie_word_embeddings": True}),
    "qwen3, attention bias": ("qwen3", {"attention_bias": True}),
    "qwen3, some layers slide": ("qwen3", QWEN2_WINDOWS),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral, eight experts, a window": ("mixtral", {"num_local_experts": 8, "sliding_window": 20}),
    "mixtral, one expert for a token": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1}),
    "qwen3_moe": ("qwen3_moe", {**QWEN3_EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe, weights as they are": ("qwen3_moe", {**QWEN3_EXPERTS, "norm_topk_prob": False}),
    "qwen3_moe, a dense layer": ("qwen3_moe", {**QWEN3_EXPERTS, "mlp_only_layers": [0], "num_experts_per_tok": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_fp32_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    architecture, changes = CASES[case]
    oracle = random_model(tmp_path, architecture, **changes)
    token_ids = text(150)
    expected = oracle_logits(oracle, token_ids)
    assert error(native_logits(tmp_path, token_ids), expected) <= FP32
    halves = native_logits(tmp_path, token_ids, threads=2, cache_dtype="float16")
    if "num_experts" in changes or "num_local_experts" in changes:  # a router near a tie may turn: of most rows
        assert np.median([error(row, other) for row, other in zip(halves, expected, strict=True)]) <= FP16_CACHE
    else:
        assert error(halves, expected) <= FP16_CACHE


def test_more_tokens_than_a_pass_has_rows(tmp_path: Path) -> None:
    oracle = random_model(tmp_path, "llama", max_position_embeddings=640)
    token_ids = text(600)
    assert error(native_logits(tmp_path, token_ids), oracle_logits(oracle, token_ids)) <= FP32


def test_dynamic_rope_is_that_of_the_context_it_was_loaded_for(tmp_path: Path) -> None:
    """``transformers`` takes the frequencies of the longest text so far: here both are 200 tokens."""
    oracle = random_model(tmp_path, "llama", max_position_embeddings=96, **rope("dynamic", factor=2.0))
    token_ids = text(200)
    expected = oracle_logits(oracle, token_ids)
    assert error(native_logits(tmp_path, token_ids, max_context=200), expected) <= FP32
    assert error(native_logits(tmp_path, token_ids, max_context=400), expected) > FP32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
def test_16_bit_weights_are_used_as_they_are(architecture: str, dtype: str, tmp_path: Path) -> None:
    """The oracle computes with the same rounded weights, so that the only difference is the f16 cache, or none."""
    oracle = random_model(tmp_path, architecture, dtype=dtype)
    token_ids = text(100)
    expected = oracle_logits(oracle, token_ids)
    if architecture not in ("mixtral", "qwen3_moe"):
        assert error(native_logits(tmp_path, token_ids), expected) <= FP16_CACHE
    assert error(native_logits(tmp_path, token_ids, cache_dtype="float32"), expected) <= FP32
    assert error(native_logits(tmp_path, token_ids, dtype="float32"), expected) <= FP32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_16_bits_on_demand(dtype: str, tmp_path: Path) -> None:
    exact = random_model(tmp_path, "llama")
    token_ids = text(60)
    logits = native_logits(tmp_path, token_ids, dtype=dtype, cache_dtype="float32")
    assert error(logits, oracle_logits(load_oracle(tmp_path, round_matrices_to=dtype), token_ids)) <= FP32
    assert error(logits, oracle_logits(exact, token_ids)) > FP32


@pytest.mark.parametrize(("bits", "block_type"), [("8bit", BlockType.Q8_0), ("4bit", BlockType.Q4_1)])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_quantised_models_compute_what_their_blocks_say(
    architecture: str, bits: str, block_type: BlockType, tmp_path: Path
) -> None:
    """``transformers`` with the same weights and 8-bit activations gives the same, and both are near the original."""
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}
    oracle = random_model(tmp_path, architecture, **sizes)
    token_ids = text(60)
    original = oracle_logits(oracle, token_ids)
    expected = oracle_logits(quantise_like_the_engine(oracle, block_type), token_ids)
    logits = native_logits(tmp_path, token_ids, quantize=bits, cache_dtype="float32")
    assert np.median([rms_error(row, same) for row, same in zip(logits, expected, strict=True)]) <= SAME_BLOCKS
    assert rms_error(logits, expected) <= FEW_CODES
    assert FEW_CODES < rms_error(logits, original) <= (EIGHT_BIT if bits == "8bit" else FOUR_BIT)
