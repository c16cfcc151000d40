"""RoPE scalings that follow the length of the running text, fixed for the context that a model is loaded for.

With such a scaling (dynamic, longrope) ``transformers`` rotates the keys of later tokens with other frequencies than
those of earlier ones, so logits depend on how many tokens were read at once; a draft that is longer than what is kept
of it would change the text. See ``checkpoint/rope.py``, which fixes them for the native backend in the same way.
"""

from __future__ import annotations

from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

__all__ = ["fix_frequencies", "set_frequencies"]

_FOLLOWING = ("dynamic", "longrope")


def fix_frequencies(module: Any, max_context: int) -> None:
    """Give every rotary embedding of ``module`` the frequencies for texts of ``max_context`` tokens."""
    for part in module.modules():
        kinds = getattr(part, "rope_type", None)
        if isinstance(kinds, str) and kinds in _FOLLOWING:
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kinds](part.config, part.inv_freq.device, seq_len=max_context)
            set_frequencies(part, frequencies, scaling)
        elif isinstance(kinds, dict):
            for layer_type in [name for name, kind in kinds.items() if kind in _FOLLOWING]:
                own = getattr(part, f"{layer_type}_inv_freq")
                frequencies, scaling = ROPE_INIT_FUNCTIONS[kinds[layer_type]](
                    part.config, own.device, seq_len=max_context, layer_type=layer_type
                )
                own.copy_(frequencies)
                setattr(part, f"{layer_type}_attention_scaling", scaling)
                kinds[layer_type] = "default"


def set_frequencies(rotary: Any, frequencies: Any, scaling: float) -> None:
    """``frequencies`` float32 [d / 2], from now on whatever is read."""
    rotary.inv_freq.copy_(frequencies)
    rotary.attention_scaling = scaling
    rotary.rope_type = "default"
