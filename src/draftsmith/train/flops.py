"""How fast a run is, and how much of what the hardware could do that is.

FLOPs of a step are those of its matrix products, forward and twice that backward, with causal attention at half a full
square; what gradient checkpointing and chunked losses compute again does not count (model FLOPs, as in PaLM,
arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

__all__ = ["Speed", "peak_flops", "step_flops"]

_PEAK_S, _LEAST_TRIES = 0.5, 5

# Dense bfloat16 products in FLOP/s, from the makers' data sheets. A longer name comes before the one that it contains.
_DATA_SHEETS: Mapping[str, float] = MappingProxyType(
    {
        "B200": 2250e12,
        "H200": 989e12,
        "H100 PCIe": 756e12,
        "H100": 989e12,
        "L40S": 362e12,
        "A100": 312e12,
    }
)


def step_flops(model: Any, lengths: Sequence[int]) -> float:
    """FLOPs of learning from documents of these lengths: the embedding is a look-up, the output layer is not."""
    config = model.config
    matrices: int = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    if config.tie_word_embeddings:
        matrices += config.vocab_size * config.hidden_size
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attended: int = config.num_hidden_layers * config.num_attention_heads * head_size * sum(n * n for n in lengths)
    return 3.0 * (2 * matrices * sum(lengths) + 2 * attended)


@lru_cache
def peak_flops(device: torch.device, dtype: str) -> float:
    """FLOP/s of products in ``dtype`` on one device: by its data sheet where we know it, else the best of half a
    second, as others may use the machine.
    """
    if device.type == "cuda" and dtype == "bfloat16":
        name = torch.cuda.get_device_name(device)
        known = next((flops for part, flops in _DATA_SHEETS.items() if part in name), None)
        if known is not None:
            return known
    size = 4096 if device.type == "cuda" else 1536
    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, dtype))
    best, tries, end = 0.0, 0, time.perf_counter() + _PEAK_S
    while tries < _LEAST_TRIES or time.perf_counter() < end:
        _settle(device)
        began = time.perf_counter()
        matrix @ matrix
        _settle(device)
        best, tries = max(best, 2.0 * size**3 / (time.perf_counter() - began)), tries + 1
    return best


class Speed:
    """Tokens and FLOPs of a run by the clock, evaluations and checkpoints left out."""

    def __init__(self, device: torch.device, dtype: str, processes: int) -> None:
        self._peak = peak_flops(device, dtype) * processes
        self._began = time.perf_counter()
        self._steps = self._tokens = 0
        self._flops = 0.0

    def add(self, tokens: int, flops: float) -> None:
        """Count one step."""
        self._steps += 1
        self._tokens += tokens
        self._flops += flops

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block does not count."""
        left = time.perf_counter()
        yield
        self._began += time.perf_counter() - left

    def told(self, steps_left: int) -> dict[str, float]:
        """``tokens_per_s``, ``share_of_peak`` (of what is at least what the run itself reaches) and ``eta_s``."""
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        self._peak = max(self._peak, self._flops / elapsed)  # it was measured while others used the machine
        return {
            "tokens_per_s": self._tokens / elapsed,
            "share_of_peak": self._flops / elapsed / self._peak,
            "eta_s": elapsed / max(1, self._steps) * steps_left,
        }


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
