"""A tiny real checkpoint: a Hugging Face folder with random weights that the native engine runs in microseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.support.fakes import CHAT_TEMPLATE, EOS, VOCAB_SIZE, byte_characters

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 128, 2, 4, 2, 16
SPECIAL = ("<|im_end|>", "<|im_start|>", "<pad>", "<unused>")


def tiny_folder(
    folder: Path,
    *,
    seed: int = 0,
    max_context: int = 512,
    chat_template: str | None = CHAT_TEMPLATE,
    swap: bool = False,
) -> Path:
    """Write the checkpoint into ``folder``. ``swap`` exchanges the ids of two letters: another vocabulary."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": max_context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": EOS,
    }
    tokenizer_config = {"eos_token": SPECIAL[0], "pad_token": SPECIAL[2], "chat_template": chat_template}
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", _tokenizer(swap))
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    save_file(_weights(seed), folder / "model.safetensors")
    return folder


def _weights(seed: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Random weights whose texts are letters: the output layer favours them, and never ends the text by itself."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))

    head = matrix(VOCAB_SIZE, HIDDEN) * 0.01
    letters = np.frombuffer(b"abcdefghijklmnop \n", np.uint8)
    head[letters] = matrix(letters.size, HIDDEN) * 4
    weights = {
        "model.embed_tokens.weight": matrix(VOCAB_SIZE, HIDDEN) * 8,
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": head,
    }
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    return weights


def _tokenizer(swap: bool) -> dict[str, Any]:
    vocabulary = {character: byte for byte, character in byte_characters().items()}
    if swap:
        vocabulary |= {"a": ord("b"), "b": ord("a")}
    added = [
        {
            "id": EOS + index,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, content in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
