"""Models of given shapes with random weights, and drafts whose acceptance is set by construction.

Where no trained pair is at hand, speed can still be measured: the time of a step does not depend on what the weights
say. A ``Script`` makes a draft of any shape propose the target's own next token with a given probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftsmith.model.protocol import Logits, Model, TokenRun

__all__ = ["SHAPES", "TINY", "Script", "ScriptedModel", "num_weights", "random_folder", "random_module"]

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


@dataclass(slots=True)
class Script:
    """What a scripted model is to say: ``next_ids[p]`` follows the first p tokens of a text.

    It is put on top of the logits after they have been computed, so costs stay what they are: by ``ScriptedModel`` for
    draftsmith, by a hook on the model's forward for ``transformers``.
    """

    next_ids: Sequence[int]

    def attach(self, module: Any) -> Any:
        """Returns the hook's handle; ``remove`` ends it."""
        return module.register_forward_hook(self._overwrite, with_kwargs=True)

    def _overwrite(self, module: Any, args: Any, kwargs: Mapping[str, Any], output: Any) -> Any:
        del module, args, kwargs
        length = int(output.past_key_values.get_seq_length())
        for row, token_id in enumerate(self.said_after(length, output.logits.shape[1])):
            output.logits[0, row, token_id] = 1e4
        return output

    def said_after(self, length: int, rows: int) -> list[int]:
        """What the last ``rows`` rows say of a text of ``length`` tokens."""
        return [self.next_ids[min(length - rows + row + 1, len(self.next_ids) - 1)] for row in range(rows)]

    @classmethod
    def agreeing(cls, prompt: Sequence[int], reply: Sequence[int], acceptance: float, vocab_size: int) -> Script:
        """Each token of ``reply`` is said rightly with probability ``acceptance``, whatever happened before it."""
        rng = np.random.default_rng(7)
        right = rng.random(len(reply)) < acceptance
        said = [token if good else (token + 1) % vocab_size for token, good in zip(reply, right, strict=True)]
        return cls([*([0] * len(prompt)), *said])


class ScriptedModel:
    """A model that computes all that it would, and then says what the script has."""

    def __init__(self, model: Model, script: Script) -> None:
        self._model = model
        self._script = script
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.new_cache = model.new_cache

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """See ``Model``."""
        answers = self._model.forward(runs)
        for run, rows in zip(runs, answers, strict=True):
            for row, token_id in zip(rows, self._script.said_after(run.cache.length, len(rows)), strict=True):
                row[token_id] = 1e4
        return answers


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


def num_weights(module: Any) -> int:
    """Weights that a step reads: all but the embedding's rows that it does not look up."""
    embedding = module.get_input_embeddings().weight
    tied = embedding is module.get_output_embeddings().weight
    return sum(int(p.numel()) for p in module.parameters()) - (0 if tied else int(embedding.numel()))
