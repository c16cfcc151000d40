"""Mixtures of experts: what a config states of them, and the names that files give their weights.

A sparse layer has a router (a matrix [experts, hidden]) and, in place of one feed-forward network, one for each expert;
a token goes through the few that the router likes best. Canonical names are those of ``transformers``' qwen3_moe:
``mlp.gate.weight`` and ``mlp.experts.E.gate_proj.weight`` (``up_proj``, ``down_proj``).

Hugging Face folders of mixtral say ``block_sparse_moe.gate`` and ``experts.E.w1`` (gate), ``w3`` (up), ``w2`` (down).
GGUF files hold the matrices of all experts of a layer in one tensor of three dimensions, old ones apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from draftsmith.checkpoint.json_file import JsonObject
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.errors import CheckpointError, UnsupportedModel

__all__ = [
    "ExpertsConfig",
    "canonical_expert_name",
    "expert_shapes",
    "experts_of_folder",
    "refuse_experts",
    "split_experts",
]

MAX_EXPERTS = 1024
_MIXTRAL = re.compile(r"(model\.layers\.\d+\.)block_sparse_moe\.(?:gate|experts\.(\d+)\.(w[123]))\.weight", re.ASCII)
_MIXTRAL_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """``num_experts`` networks of ``intermediate_size`` in the layers that ``sparse_layers`` marks; ``num_per_token``
    of them work for a token. Their weights are the router's softmax over all experts, made to sum to 1 again if
    ``normalise``.

    Raises CheckpointError on construction when the values contradict one another.
    """

    num_experts: int
    num_per_token: int
    intermediate_size: int
    sparse_layers: tuple[bool, ...]
    normalise: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.num_experts <= MAX_EXPERTS:
            raise CheckpointError(f"the model states {self.num_experts} experts; it must be from 2 to {MAX_EXPERTS}")
        if not 1 <= self.num_per_token <= self.num_experts:
            raise CheckpointError(
                f"the model states that a token uses {self.num_per_token} of {self.num_experts} experts; it must be "
                "from 1 to all of them"
            )
        if not 1 <= self.intermediate_size <= 1 << 24:
            raise CheckpointError(f"the model states experts of the size {self.intermediate_size}; it must be above 0")


def experts_of_folder(config: JsonObject, architecture: str, num_layers: int) -> ExpertsConfig | None:
    """What a config.json says, with the defaults of ``transformers``; None for other architectures."""
    if architecture == "mixtral":
        return ExpertsConfig(
            num_experts=config.integer("num_local_experts", 8),
            num_per_token=config.integer("num_experts_per_tok", 2),
            intermediate_size=config.integer("intermediate_size"),
            sparse_layers=(True,) * num_layers,
        )
    if architecture != "qwen3_moe":
        return None
    dense = {value for value in config.values.get("mlp_only_layers") or () if isinstance(value, int)}
    step = max(1, config.integer("decoder_sparse_step", 1))
    return ExpertsConfig(
        num_experts=config.integer("num_experts", config.integer("num_local_experts", 128)),
        num_per_token=config.integer("num_experts_per_tok", 8),
        intermediate_size=config.integer("moe_intermediate_size", 768),
        sparse_layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(num_layers)),
        normalise=config.flag("norm_topk_prob", False),
    )


def refuse_experts(experts: ExpertsConfig | None, what: str) -> None:
    """Raises UnsupportedModel for a mixture of experts: ``what`` (a subject and "cannot ...") is not built for it."""
    if experts is not None:
        raise UnsupportedModel(f"the model is a mixture of {experts.num_experts} experts, and {what}")


def expert_shapes(experts: ExpertsConfig, hidden: int) -> dict[str, tuple[int, int]]:
    """Name (within a layer) and shape of the matrices of a sparse layer."""
    inner = experts.intermediate_size
    shapes = {"mlp.gate": (experts.num_experts, hidden)}
    for i in range(experts.num_experts):
        shapes[f"mlp.experts.{i}.gate_proj"] = (inner, hidden)
        shapes[f"mlp.experts.{i}.up_proj"] = (inner, hidden)
        shapes[f"mlp.experts.{i}.down_proj"] = (hidden, inner)
    return shapes


def canonical_expert_name(name: str) -> str:
    """The canonical name of a mixtral's tensor in a Hugging Face folder; any other name as it is."""
    match = _MIXTRAL.fullmatch(name)
    if match is None:
        return name
    layer, expert, part = match.groups()
    return f"{layer}mlp.gate.weight" if expert is None else f"{layer}mlp.experts.{expert}.{_MIXTRAL_PARTS[part]}.weight"


def split_experts(tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Each tensor, those that hold all experts of a layer (``...mlp.experts.*.NAME.weight``) as one for each."""
    for name, tensor in tensors.items():
        if ".experts.*." not in name or len(tensor.shape) != 3:
            yield tensor
            continue
        size = tensor.stored.size // tensor.shape[0]
        for i in range(tensor.shape[0]):
            yield replace(
                tensor,
                name=name.replace(".*.", f".{i}."),
                shape=tensor.shape[1:],
                stored=tensor.stored[i * size : (i + 1) * size],
            )
