"""Models of given shapes with random weights, and drafts whose acceptance is set by construction.

Where no trained pair is at hand, speed can still be measured: the time of a step does not depend on what the weights
say. A ``Script`` makes a draft of any shape propose the target's own next token with a given probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftsmith.model.torch_backend.experts import PackedExperts, expert_tensors

__all__ = ["SHAPES", "TINY", "Script", "num_weights", "random_folder", "random_module", "random_packed"]

SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "1.1B": {
            "architecture": "llama",
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
        },
        "7B": {
            "architecture": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
        },
        "8x7B": {
            "architecture": "mixtral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32768,
        },
    }
)
TINY: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
)


class Script:
    """What a scripted model is to say: ``next_ids[p]`` follows the first p tokens of a text.

    A hook on the model's forward puts it on top of the logits after they have been computed, so costs stay what they
    are; on the device, from the positions that the model is given, so that it is part of a graph as well. ``right``: by
    place in the reply, whether it says the reply's token.
    """

    def __init__(self, next_ids: Sequence[int], right: Sequence[bool], device: torch.device) -> None:
        self.right = list(right)
        self._next_ids = torch.tensor(list(next_ids), device=device)

    def attach(self, module: Any) -> Any:
        """Returns the hook's handle; ``remove`` ends it. Graphs that were captured before do not have it."""
        return module.register_forward_hook(self._overwrite, with_kwargs=True)

    def _overwrite(self, module: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        del module, args
        rows = output.logits.shape[1]
        positions = kwargs.get("position_ids")
        if positions is None:
            length = int(output.past_key_values.get_seq_length())
            positions = torch.arange(length - rows, length, device=self._next_ids.device)[None]
        places = (positions[0, -rows:] + 1).clamp(max=len(self._next_ids) - 1)
        output.logits[0].scatter_(1, self._next_ids[places][:, None], 1e4)
        return output

    @classmethod
    def agreeing(cls, prompt: Sequence[int], reply: Sequence[int], acceptance: float, device: torch.device) -> Script:
        """Each token of ``reply`` is said rightly with probability ``acceptance``, whatever happened before it."""
        rng = np.random.default_rng(7)
        right = (rng.random(len(reply)) < acceptance).tolist()
        said = [token if good else (token + 1) % 300 for token, good in zip(reply, right, strict=True)]
        return cls([*([0] * len(prompt)), *said], right, device)


def random_module(shape: str, device: torch.device, dtype: torch.dtype, *, tiny: bool = False, **changes: Any) -> Any:
    """A model of ``transformers`` with normal weights, made where it is to run."""
    values = {**SHAPES[shape], **(TINY if tiny else {}), **changes}
    config = AutoConfig.for_model(values.pop("architecture"), **values)
    torch.manual_seed(0)
    with torch.device(device):
        module: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    module.generation_config.eos_token_id = module.generation_config.pad_token_id = None
    return module.eval()


def random_folder(folder: Path, shape: str, device: torch.device, *, tiny: bool = False) -> Path:
    """The same as a folder on disk, to be loaded with quantisation."""
    module = random_module(shape, device, torch.bfloat16, tiny=tiny)
    module.save_pretrained(folder)
    return folder


def random_packed(shape: str, device: torch.device, *, tiny: bool = False) -> Any:
    """The same in 4 bits: all matrices but the embedding and the output layer, experts too.

    Matrices are made and quantised one by one, so that a model fits whose 16 bits would not.
    """
    bnb: Any = import_module("bitsandbytes.nn")
    values = {**SHAPES[shape], **(TINY if tiny else {})}
    config = AutoConfig.for_model(values.pop("architecture"), **values)
    with torch.device("meta"):
        module: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    for part, name in list(expert_tensors(module)):
        count, *size = getattr(part, name).shape
        delattr(part, name)
        setattr(part, name, PackedExperts((_random(size, device) for _ in range(count)), device))
    for part in list(module.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not module.lm_head:
                packed: Any = bnb.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                weight = _random(child.weight.shape, torch.device("cpu") if device.type == "cpu" else device)
                packed.weight = bnb.Params4bit(weight, requires_grad=False, quant_type="nf4")
                setattr(part, name, packed.to(device))
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_meta:
                made = (
                    _random(parameter.shape, device)
                    if parameter.ndim > 1
                    else torch.ones_like(parameter, device=device)
                )
                setattr(part, name, torch.nn.Parameter(made, requires_grad=False))
    with torch.device(device):  # its frequencies are computed when it is made
        module.model.rotary_emb = type(module.model.rotary_emb)(config)
    module.set_experts_implementation("eager")
    module.generation_config.eos_token_id = module.generation_config.pad_token_id = None
    return module.eval()


def _random(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.randn(tuple(shape), dtype=torch.bfloat16, device=device) * 0.02


def num_weights(module: Any) -> int:
    """Weights that a step reads: all but the embedding's rows that it does not look up."""
    embedding = module.get_input_embeddings().weight
    tied = embedding is module.get_output_embeddings().weight
    return sum(int(p.numel()) for p in module.parameters()) - (0 if tied else int(embedding.numel()))
