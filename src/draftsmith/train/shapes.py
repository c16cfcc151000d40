"""Other shapes of a model: fewer layers, smaller widths, a longer context. Each returns a new config or model.

What is kept when a width shrinks is what weighs most: hidden dimensions by the embedding's columns, inner dimensions of
a feed-forward layer by the product of the norms that lead into and out of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch

from draftsmith.checkpoint import ModelConfig, RopeConfig
from draftsmith.checkpoint.layout import EMBEDDING, expected_tensors
from draftsmith.errors import UsageError
from draftsmith.train.schema import ExtendStage, InitStage

__all__ = ["extended", "kept_layers", "shrunk_config", "shrunk_weights"]

Weights = Mapping[str, torch.Tensor]

# What the rows and the columns of each tensor of a layer are; None: the heads' own, which stay.
_AXES: Mapping[str, tuple[str | None, str | None]] = MappingProxyType(
    {
        "input_layernorm": ("hidden", None),
        "post_attention_layernorm": ("hidden", None),
        "self_attn.q_proj": (None, "hidden"),
        "self_attn.k_proj": (None, "hidden"),
        "self_attn.v_proj": (None, "hidden"),
        "self_attn.o_proj": ("hidden", None),
        "self_attn.q_norm": (None, None),
        "self_attn.k_norm": (None, None),
        "mlp.gate_proj": ("inner", "hidden"),
        "mlp.up_proj": ("inner", "hidden"),
        "mlp.down_proj": ("hidden", "inner"),
    }
)


def kept_layers(stage: InitStage, num_layers: int) -> tuple[int, ...]:
    """Which layers of the parent's ``num_layers`` to keep: as listed, or spread evenly with the first and the last.

    Raises UsageError.
    """
    if stage.layers is not None and stage.num_layers is not None:
        raise UsageError(f"stage.{stage.name} has both layers and num_layers; give one of them")
    if stage.layers is not None:
        layers = stage.layers
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
            raise UsageError(
                f"stage.{stage.name}.layers is {list(layers)}; expected rising numbers from 0 to {num_layers - 1}"
            )
        return layers
    count = stage.num_layers or num_layers
    if count > num_layers and not stage.from_scratch:
        raise UsageError(f"stage.{stage.name}.num_layers is {count}, but the model has {num_layers}; give fewer")
    if count == 1:
        return (0,)
    return tuple(round(i * (num_layers - 1) / (count - 1)) for i in range(count))


def shrunk_config(config: ModelConfig, stage: InitStage) -> ModelConfig:
    """The config of the smaller model. Raises UsageError when a width would grow and the weights cannot."""
    layers = kept_layers(stage, config.num_layers)
    for name in ("hidden_size", "intermediate_size"):
        wanted = getattr(stage, name)
        if wanted is not None and wanted > getattr(config, name) and not stage.from_scratch:
            raise UsageError(f"stage.{stage.name}.{name} is {wanted}, but the model has {getattr(config, name)}")
    sliding = tuple(config.sliding_layers[min(layer, config.num_layers - 1)] for layer in layers)
    return replace(
        config,
        num_layers=len(layers),
        hidden_size=stage.hidden_size or config.hidden_size,
        intermediate_size=stage.intermediate_size or config.intermediate_size,
        sliding_layers=sliding,
        sliding_window=config.sliding_window if any(sliding) else None,
    )


def shrunk_weights(weights: Weights, smaller: ModelConfig, layers: Sequence[int]) -> Weights:
    """The weights of the smaller model, taken from ``weights`` (names of ``layout.expected_tensors``)."""
    hidden = _heaviest(weights[EMBEDDING].norm(dim=0), smaller.hidden_size)
    taken: dict[str, torch.Tensor] = {}
    for name, shape in expected_tensors(smaller).items():
        if not name.startswith("model.layers."):
            taken[name] = weights[name][..., hidden].clone()
            continue
        _, _, number, rest = name.split(".", 3)
        prefix = f"model.layers.{layers[int(number)]}."
        rows, columns = _AXES[rest.rsplit(".", 1)[0]]
        axes = {"hidden": hidden, "inner": _heaviest_inner(weights, prefix, smaller.intermediate_size)}
        tensor = weights[prefix + rest]
        if rows is not None:
            tensor = tensor[axes[rows]]
        if columns is not None and tensor.ndim == 2:  # biases have rows only
            tensor = tensor[:, axes[columns]]
        taken[name] = tensor.reshape(shape).clone()
    return taken


def extended(config: ModelConfig, stage: ExtendStage) -> ModelConfig:
    """The config with the longer context. Raises UsageError when the settings contradict each other."""
    rope, context = config.rope, stage.max_context
    growth = context / config.max_context
    if growth < 1:
        raise UsageError(f"stage.{stage.name}.max_context is {context}, but the model has {config.max_context} already")
    if stage.rope == "theta":
        if stage.rope_theta is None or stage.rope_factor is not None:
            raise UsageError(f'stage.{stage.name}: rope = "theta" needs rope_theta, and takes no rope_factor')
        new = replace(
            rope,
            theta=stage.rope_theta,
            max_position_embeddings=context,
            original_max_position_embeddings=context
            if rope.rope_type == "default"
            else rope.original_max_position_embeddings,
        )
    else:
        if stage.rope_theta is not None or rope.rope_type != "default":
            what = "takes no rope_theta" if stage.rope_theta is not None else f"cannot follow {rope.rope_type} scaling"
            raise UsageError(f'stage.{stage.name}: rope = "{stage.rope}" {what}; use rope_factor on an unscaled model')
        new = RopeConfig(
            theta=rope.theta,
            max_position_embeddings=context,
            rope_type=stage.rope,
            factor=stage.rope_factor or growth,
            original_max_position_embeddings=config.max_context if stage.rope == "yarn" else context,
        )
    return replace(config, rope=new, max_context=context)


def _heaviest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the ``count`` largest, in rising order."""
    return weights.topk(count).indices.sort().values


def _heaviest_inner(weights: Weights, prefix: str, count: int) -> torch.Tensor:
    into = weights[f"{prefix}mlp.gate_proj.weight"].norm(dim=1) * weights[f"{prefix}mlp.up_proj.weight"].norm(dim=1)
    return _heaviest(into * weights[f"{prefix}mlp.down_proj.weight"].norm(dim=0), count)
