"""Learning with the rounding that the draft will be stored with: the model computes with rounded weights, and what its
gradient says of them moves the weights that are rounded (straight-through, arXiv:1308.3432).

Blocks of 32 along a row, as in the files; their scale is the one that the extreme values give, without the search for a
better one that ``quant.quantize`` makes when the draft is packed: that would take as long as the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch.nn.utils import parametrize

from draftsmith.quant import BlockType
from draftsmith.train.schema import RoundTo

__all__ = ["computing_once", "round_blocks", "round_weights", "stop_rounding"]

_BLOCK = BlockType.Q4_1.block_size
F16_MAX = 65504.0


def round_blocks(weight: torch.Tensor, blocks: RoundTo) -> torch.Tensor:
    """The weight [rows, columns] as it is read back from blocks of this kind; columns a multiple of 32."""
    return _ROUNDINGS[blocks](weight.reshape(-1, _BLOCK)).reshape(weight.shape)


def round_weights(model: Any, blocks: RoundTo) -> None:
    """From now on the model computes with rounded matrices. Vectors stay, and rows that no whole blocks fit into."""
    for module in _with_matrices(model):
        if module.weight.shape[1] % _BLOCK == 0:
            parametrize.register_parametrization(module, "weight", _Rounded(blocks))


def stop_rounding(model: Any) -> None:
    """Undo ``round_weights``: the weights as they were learnt, not rounded."""
    for module in _with_matrices(model):
        if parametrize.is_parametrized(module, "weight"):
            weight = module.parametrizations.weight.original
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight = weight  # tied matrices are one tensor again


@contextmanager
def computing_once() -> Iterator[None]:
    """Inside the block each matrix is rounded once, however often it is used."""
    with parametrize.cached():
        yield


class _Rounded(torch.nn.Module):
    """Rounded values, with the gradient of the values themselves."""

    def __init__(self, blocks: RoundTo) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """[rows, columns] to the same."""
        rounded: torch.Tensor = _StraightThrough.apply(weight, self.blocks)  # type: ignore[no-untyped-call]
        return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, blocks: RoundTo) -> torch.Tensor:  # noqa: ARG004 - autograd's signature
        return round_blocks(weight, blocks)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ARG004
        return gradients[0], None


def _q4_1(values: torch.Tensor) -> torch.Tensor:
    """Levels minimum + 0 to 15 scales, both f16."""
    low, high = values.aminmax(dim=1, keepdim=True)
    minimum, scale = _stored(low), _stored((high - low) / 15)
    return (values - minimum).mul_(_inverse(scale)).round_().clamp_(0, 15).mul_(scale).add_(minimum)


def _q8_0(values: torch.Tensor) -> torch.Tensor:
    """Levels -127 to 127 scales of f16."""
    scale = _stored(values.abs().amax(dim=1, keepdim=True) / 127)
    return (values * _inverse(scale)).round_().clamp_(-127, 127).mul_(scale)


def _stored(scale: torch.Tensor) -> torch.Tensor:
    return scale.clamp(-F16_MAX, F16_MAX).half().float()


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))


def _with_matrices(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Embedding)]


_ROUNDINGS: Mapping[RoundTo, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType({"Q4_1": _q4_1, "Q8_0": _q8_0})
