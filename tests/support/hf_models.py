"""Small random models made and run by ``transformers``, which is the oracle of the parity tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from draftsmith.quant import BlockType, dequantize, quantize
from tests.support.blocks import activations_as_read

__all__ = ["load_oracle", "oracle_logits", "quantise_like_the_engine", "random_model"]

VOCAB_SIZE = 199  # no multiple of anything
logging.disable_progress_bar()  # type: ignore[no-untyped-call]
SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def random_model(folder: Path, architecture: str, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Any:
    """Save a model with random weights (biases and norms too) as a folder, and load it again in fp32 to be asked."""
    config = AutoConfig.for_model(architecture, **{**SMALL, **changes})
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn_like(parameter)
            if parameter.ndim >= 2:  # large enough that attention attends to something; three: all experts of a layer
                parameter.copy_(values * 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(values * 0.2 + (1.0 if "norm" in name else 0.0))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return load_oracle(folder)


def load_oracle(folder: Path, round_matrices_to: str = "float32") -> Any:
    """The model of a folder in fp32, its matrices rounded to another type first."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.to(getattr(torch, round_matrices_to)))
    return model


def oracle_logits(model: Any, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """float32 [T, V]: the logits after every token, computed in one go in fp32."""
    with torch.no_grad():
        logits = model(torch.tensor([list(token_ids)])).logits[0]
    return np.asarray(logits.numpy(), np.float32)


def quantise_like_the_engine(model: Any, block_type: BlockType, always: BlockType = BlockType.Q8_0) -> Any:
    """The same model with weights put through blocks and linear layers whose inputs are 8-bit, still in fp32.

    Linear layers take ``block_type``, the embedding and the output layer ``always``.
    """

    def through_blocks(weights: torch.Tensor, kind: BlockType) -> torch.Tensor:
        values = weights.numpy()
        return torch.from_numpy(dequantize(kind, quantize(kind, values), values.shape))

    def eight_bit_input(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        x = inputs[0].numpy()
        read = activations_as_read(BlockType.Q8_0, x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return (torch.from_numpy(read.astype(np.float32)),)

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(through_blocks(module.weight, always if name == "lm_head" else block_type))
                module.register_forward_pre_hook(eight_bit_input)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.copy_(through_blocks(module.weight, always))
    return model
