"""Small random models of many architectures for the torch backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from draftsmith.model.torch_backend import TorchModel
from tests.support import fakes
from tests.support.tiny import tiny_folder

__all__ = ["ARCHITECTURES", "CONTEXT", "VOCAB_SIZE", "random_module", "torch_folder", "torch_model"]

VOCAB_SIZE = 199
CONTEXT = 256
WINDOW = 12  # far below the lengths of the tests' texts
logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_SMALL: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LATENT = {  # multi-head latent attention: keys and values have other sizes
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 8,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "num_key_value_heads": 4,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MIXED_LAYERS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, **_EXPERTS},
    "gemma3_text": _MIXED_LAYERS,
    "phi3": {"sliding_window": WINDOW},
    "gpt_neox": {},
    "olmo2": {},
    "gemma2": _MIXED_LAYERS,
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": CONTEXT},
    "bloom": {"n_head": 4, "n_layer": 2},
    "llama4_text": {"num_local_experts": 2, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 96},
    "cohere2": _MIXED_LAYERS,
    "gpt_oss": {**_MIXED_LAYERS, "num_local_experts": 4, "rope_parameters": _PLAIN_ROPE},
    "deepseek_v3": {
        **_LATENT,
        **_EXPERTS,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}


def random_module(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A ``transformers`` model with weights at which attention attends to something and texts do not repeat at once."""
    config = AutoConfig.for_model(architecture, **{**_SMALL, **ARCHITECTURES.get(architecture, {}), **changes})
    torch.manual_seed(seed)
    module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn_like(parameter)
            if parameter.ndim >= 2:
                parameter.copy_(values * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(values * 0.1 + (1.0 if "norm" in name or "ln" in name else 0.0))
    return module.to(dtype).eval()


def torch_model(architecture: str, **options: Any) -> TorchModel:
    """The same behind the protocol."""
    return TorchModel(random_module(architecture, **options), max_context=CONTEXT, name=architecture)


def torch_folder(folder: Path, architecture: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A Hugging Face folder with such a model and the tokenizer of ``tiny``; its texts are letters without end."""
    tiny_folder(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    module = random_module(architecture, vocab_size=fakes.VOCAB_SIZE, dtype=dtype, **changes)
    with torch.no_grad():
        output = module.get_output_embeddings().weight
        letters = torch.tensor(list(b"abcdefghijklmnop \n"))
        kept = output[letters] * 4
        output.zero_()
        output[letters] = kept
    module.save_pretrained(folder)
    return folder
