"""Checkpoints to ``transformers`` models and back to folders: what training reads and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftsmith.checkpoint import Checkpoint, ModelConfig, open_checkpoint, resolve
from draftsmith.checkpoint.experts import refuse_experts
from draftsmith.checkpoint.layout import EMBEDDING, OUTPUT
from draftsmith.checkpoint.tokenizer_files import write_tokenizer
from draftsmith.errors import UsageError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.train import attention
from draftsmith.train.atomic_folder import atomic_folder
from draftsmith.train.tensor_file import save_tensors
from draftsmith.train.vocabulary import read_kept_ids, write_kept_ids
from draftsmith.train.world import world

__all__ = [
    "Learner",
    "decoded",
    "hf_config",
    "load_learner",
    "load_weights",
    "new_model",
    "pick_device",
    "saved_folder",
]


@dataclass(slots=True, eq=False)
class Learner:
    """A model in fp32 with what belongs to it. ``model`` is a ``transformers`` causal language model.

    ``kept_ids`` int64 [M]: the ids that the draft may write, in the order of its head's rows; None for all.
    ``parent``: where it came from, for stage.json.
    """

    model: Any
    config: ModelConfig
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    parent: Mapping[str, Any]
    kept_ids: torch.Tensor | None = None


def load_learner(reference: str) -> Learner:
    """The model of a reference (path, hub id, alias), in fp32 on the CPU; GGUF blocks are decoded.

    Raises HubError, CheckpointError, TokenizerError.
    """
    resolved = resolve(reference)
    checkpoint = open_checkpoint(resolved.path)
    config = checkpoint.config
    model = new_model(config)
    load_weights(model, config, decoded(checkpoint))
    kept = read_kept_ids(resolved.path, config.vocab_size) if checkpoint.kind == "folder" else None
    parent = {"reference": reference, "revision": resolved.revision, "sha256": checkpoint.sha256()}
    return Learner(model, config, checkpoint.tokenizer(), checkpoint, parent, kept)


def decoded(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Its tensors in fp32, by their names."""
    return {name: torch.from_numpy(tensor.dequantize()) for name, tensor in checkpoint.tensors.items()}


def load_weights(model: Any, config: ModelConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a model of ``new_model`` all its weights; a tied output layer's are the embedding's."""
    tied = {OUTPUT: tensors[EMBEDDING]} if config.tie_embeddings else {}
    model.load_state_dict({**tensors, **tied}, strict=True)


def new_model(config: ModelConfig, seed: int = 0) -> Any:
    """A model of this shape with fresh weights, in fp32, its attention document by document."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            hf_config(config), dtype=torch.float32, attn_implementation=attention.NAME
        )
    model.config.use_cache = False
    return model


def hf_config(config: ModelConfig) -> Any:
    """The configuration object of ``transformers`` for a model of ours."""
    refuse_experts(config.experts, "training cannot begin from it; take a dense model")
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": rope_parameters(config),
    }
    if config.architecture in ("llama", "qwen3"):
        values["attention_bias"] = config.qkv_bias
    if config.architecture == "llama":
        values["mlp_bias"] = config.mlp_bias
    if config.architecture == "mistral":
        values["sliding_window"] = config.sliding_window
    if config.architecture in ("qwen2", "qwen3") and config.sliding_window is not None:
        values |= {"use_sliding_window": True, "sliding_window": config.sliding_window}
        values["layer_types"] = ["sliding_attention" if s else "full_attention" for s in config.sliding_layers]
    return AutoConfig.for_model(config.architecture, **values)


def rope_parameters(config: ModelConfig) -> dict[str, Any]:
    """RoPE as ``transformers`` writes it. Raises UsageError for scalings that only GGUF files can state."""
    rope = config.rope
    if rope.frequency_factors:
        raise UsageError("the GGUF file states RoPE factors one by one; train from the model's Hugging Face folder")
    values: dict[str, Any] = {"rope_type": rope.rope_type, "rope_theta": rope.theta}
    if rope.rope_type == "default":
        return values
    values["factor"] = rope.factor
    if rope.rope_type in ("yarn", "longrope", "llama3", "dynamic"):
        values["original_max_position_embeddings"] = rope.original_max_position_embeddings
    optional = {
        "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        "longrope": ("attention_factor", "short_factor", "long_factor"),
        "llama3": ("low_freq_factor", "high_freq_factor"),
    }
    for name in optional.get(rope.rope_type, ()):
        value = getattr(rope, name)
        if value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def pick_device(name: str) -> torch.device:
    """``auto``: the first GPU if there is one; of several processes each has its own.

    Raises UsageError for a device that is not there, or not for every process.
    """
    own, gpus = world(), torch.cuda.device_count()
    if name == "auto" and gpus and own.local_rank >= gpus:
        raise UsageError(
            f"process {own.local_rank} of this machine has no GPU of its own, there are {gpus}; start fewer"
        )
    if name == "auto":
        return torch.device("cuda", own.local_rank) if gpus else torch.device("cpu")
    if own.size > 1 and name != "cpu":
        raise UsageError(f"device is {name!r}, but there are {own.size} processes; use auto or cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UsageError(f"device is {name!r}, which PyTorch does not have here; use auto, cpu or cuda:0") from None
    return device


@contextmanager
def saved_folder(learner: Learner, prompt_format: PromptFormat, folder: Path, dtype: str) -> Iterator[Path]:
    """Write the model as a Hugging Face folder that appears whole when the block ends; add files to it meanwhile."""
    with atomic_folder(folder) as place:
        learner.model.to("cpu", torch.float32)
        tied = {OUTPUT} if learner.config.tie_embeddings else set()
        weights = {
            name: tensor.to(getattr(torch, dtype)).contiguous()
            for name, tensor in learner.model.state_dict().items()
            if name not in tied
        }
        save_tensors(place / "model.safetensors", weights, {"format": "pt"})
        learner.model.config.save_pretrained(place)
        _complete_config(place / "config.json", learner, dtype)
        write_tokenizer(learner.checkpoint, learner.tokenizer, prompt_format.template, place)
        if learner.kept_ids is not None:
            write_kept_ids(place, learner.kept_ids)
        yield place


def _complete_config(path: Path, learner: Learner, dtype: str) -> None:
    """Old and new keys side by side: readers from before transformers 5 know ``rope_theta`` and ``rope_scaling`` only,
    and would take a theta of 10,000 in silence."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = rope_parameters(learner.config)
    config["rope_parameters"] = rope
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope | {"type": rope["rope_type"]}
    tokenizer = learner.tokenizer
    config |= {
        "architectures": [type(learner.model).__name__],
        "dtype": dtype,
        "torch_dtype": dtype,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_ids[0] if tokenizer.eos_ids else None,
        "pad_token_id": tokenizer.pad_id,
    }
    config.pop("_attn_implementation", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    generation = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    kept = {key: value for key, value in generation.items() if value not in (None, [])}
    (path.parent / "generation_config.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
