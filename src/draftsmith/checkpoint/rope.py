"""Frequencies of the rotary position embedding, for every kind of scaling that ``transformers`` writes.

d: rotated size of a head. The angle of pair i at position p is p * inv_freq[i].

- default: theta^(-2i/d) (Su and others 2021, arXiv:2104.09864)
- linear: all divided by ``factor`` (Chen and others 2023, arXiv:2306.15595)
- dynamic: a larger theta for a context beyond ``max_position_embeddings`` ("dynamic NTK")
- yarn: low frequencies divided, high ones kept, a ramp between, cos and sin scaled (arXiv:2309.00071)
- longrope: each frequency divided by its own factor, one set for short and one for long contexts (arXiv:2402.13753)
- llama3: like yarn with a ramp over wavelengths, cos and sin unscaled (Llama 3.1)

Two of them, dynamic and longrope, change with the length of the running text in ``transformers``: the keys of earlier
tokens were then rotated with other frequencies than those of later ones, and what a token means depends on how the
text was cut into forward calls. draftsmith promises that logits depend on the tokens alone, so it fixes the frequencies
when the model is loaded, from the context that it is loaded for: dynamic scales when that is longer than
``max_position_embeddings``, and longrope takes its long factors when it is longer than the original context. So for
texts that stay on one side of the border, the numbers are those of ``transformers``.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint.config import RopeConfig
from draftsmith.errors import CheckpointError

__all__ = ["rope_frequencies"]

Floats = npt.NDArray[np.float64]


def rope_frequencies(
    rope: RopeConfig, head_dim: int, max_context: int | None = None
) -> tuple[npt.NDArray[np.float32], float]:
    """(float32 [head_dim / 2] angles per position, the factor to scale cos and sin by).

    ``max_context`` is the context that the model is loaded for; None means what the checkpoint states. Computed in
    float64 and rounded once. Raises CheckpointError when the config's values contradict one another.
    """
    context = max_context or rope.max_position_embeddings
    original = rope.original_max_position_embeddings or rope.max_position_embeddings
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    scaling = 1.0
    if rope.rope_type == "dynamic":
        inv_freq = _dynamic_theta(rope, head_dim, context) ** -exponents
    else:
        inv_freq = rope.theta**-exponents
    if rope.rope_type == "linear":
        inv_freq = inv_freq / rope.factor
    elif rope.rope_type == "yarn":
        inv_freq, scaling = _yarn(rope, inv_freq, head_dim, original), _yarn_scaling(rope)
    elif rope.rope_type == "longrope":
        factors = rope.long_factor if context > original else rope.short_factor
        inv_freq, scaling = (
            inv_freq / _one_each(factors, head_dim, "longrope factors"),
            _longrope_scaling(rope, original),
        )
    elif rope.rope_type == "llama3":
        inv_freq = _llama3(rope, inv_freq, original)
    if rope.frequency_factors:
        inv_freq = inv_freq / _one_each(rope.frequency_factors, head_dim, "frequency factors")
    if not np.isfinite(inv_freq).all() or not math.isfinite(scaling):
        raise CheckpointError(f"the model's RoPE parameters give no finite frequencies: {rope}")
    return inv_freq.astype(np.float32), scaling


def _one_each(factors: tuple[float, ...], head_dim: int, what: str) -> Floats:
    if len(factors) != head_dim // 2 or not all(factor > 0 for factor in factors):
        raise CheckpointError(
            f"the model states {len(factors)} {what}; there must be {head_dim // 2}, all above 0, for its head size"
        )
    return np.array(factors, np.float64)


def _dynamic_theta(rope: RopeConfig, head_dim: int, context: int) -> float:
    stretch = max(context, rope.max_position_embeddings) / rope.max_position_embeddings
    return float(rope.theta * (rope.factor * stretch - (rope.factor - 1)) ** (head_dim / (head_dim - 2)))


def _yarn(rope: RopeConfig, inv_freq: Floats, head_dim: int, original: int) -> Floats:
    """Pairs that turn less than beta_slow times in the original context are divided, above beta_fast times kept."""

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    return np.asarray(inv_freq / rope.factor * divided + inv_freq * (1 - divided))


def _yarn_scaling(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _longrope_scaling(rope: RopeConfig, original: int) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    return math.sqrt(1 + math.log(rope.factor) / math.log(original)) if rope.factor > 1 else 1.0


def _llama3(rope: RopeConfig, inv_freq: Floats, original: int) -> Floats:
    wavelengths = 2 * np.pi / inv_freq
    if rope.high_freq_factor == rope.low_freq_factor:
        raise CheckpointError("the model's RoPE states equal low_freq_factor and high_freq_factor; they must differ")
    kept = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.where(wavelengths < original / rope.high_freq_factor, 1.0, kept)
    kept = np.where(wavelengths > original / rope.low_freq_factor, 0.0, kept)
    return np.asarray((1 - kept) * inv_freq / rope.factor + kept * inv_freq)
