"""What a model is made of: the frozen values that every backend builds from.

Names follow ``transformers`` where the field has only one name for a thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from draftsmith.checkpoint.experts import ExpertsConfig
from draftsmith.errors import CheckpointError

__all__ = ["ARCHITECTURES", "MAX_LAYERS", "Architecture", "ModelConfig", "RopeConfig", "RopeType"]

Architecture = Literal["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]

MAX_DIMENSION = 1 << 24  # a larger width, vocabulary or context is a damaged file, not a model
MAX_LAYERS = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: the base, and how its frequencies are scaled (see ``rope.rope_frequencies``).

    ``max_position_embeddings`` is the context that the checkpoint states (dynamic scaling starts beyond it);
    ``original_max_position_embeddings`` that of the training before scaling. ``attention_factor`` None means: the
    paper's value, computed from ``factor``. ``short_factor`` and ``long_factor`` (longrope) have head_dim / 2 entries.
    ``frequency_factors`` [head_dim / 2] divide the frequencies one by one, whatever the type: this is how GGUF files
    state llama3 scaling.
    """

    theta: float
    max_position_embeddings: int
    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    frequency_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder stack: RMSNorm, grouped-query attention with RoPE, gated SiLU feed-forward.

    ``max_context`` is the number of positions that the checkpoint states. ``sliding_window`` is the number of
    positions that a token of a sliding layer sees, itself included; None when no layer slides. ``sliding_layers`` has
    one entry a layer. ``qkv_bias``, ``o_bias`` and ``mlp_bias`` say which linear layers have a bias. ``qk_norm``:
    RMSNorm over each head of q and k before RoPE. ``tie_embeddings``: the output layer is the embedding matrix.
    ``experts``: what takes the place of the feed-forward network in some or all layers.

    Raises CheckpointError on construction when the values contradict one another.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_context: int
    tie_embeddings: bool
    rope: RopeConfig
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise CheckpointError(f"the model's num_layers is {self.num_layers}; it must be from 1 to {MAX_LAYERS}")
        if not self.sliding_layers:
            object.__setattr__(self, "sliding_layers", (False,) * self.num_layers)
        for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim",
            "max_context",
        ):  # fmt: skip
            value = getattr(self, name)
            if not 1 <= value <= MAX_DIMENSION:
                raise CheckpointError(f"the model's {name} is {value}; it must be from 1 to {MAX_DIMENSION}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"the model has {self.num_heads} attention heads for {self.num_kv_heads} key/value heads; "
                "the first must be a multiple of the second"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"the model's head_dim is {self.head_dim}; rotary embedding needs an even number")
        if not 0 <= self.rms_norm_eps < 1:
            raise CheckpointError(f"the model's rms_norm_eps is {self.rms_norm_eps}; it must be from 0 to below 1")
        if len(self.sliding_layers) != self.num_layers:
            raise CheckpointError(
                f"the model states the attention type of {len(self.sliding_layers)} layers but has {self.num_layers}"
            )
        if self.experts is not None and len(self.experts.sparse_layers) != self.num_layers:
            raise CheckpointError(
                f"the model states experts for {len(self.experts.sparse_layers)} layers but has {self.num_layers}"
            )
        if any(self.sliding_layers) != (self.sliding_window is not None):
            raise CheckpointError("the model has sliding layers without a sliding_window, or a window without layers")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise CheckpointError(f"the model's sliding_window is {self.sliding_window}; it must be at least 1")
