"""Experts in 4 bits. ``transformers`` keeps all experts of a layer in one tensor, which bitsandbytes leaves as it is,
though that is nearly all of such a model: 8x7B "in 4 bits" would take 90 GB.

Here each expert becomes NF4 blocks of its own (arXiv:2305.14314) behind an object that is indexed and multiplied with
as the tensor was: the models' own forward, which goes expert by expert, reads those that a token chose.

Shape legend: E experts, N rows and K columns of one expert's matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from draftsmith.errors import UnsupportedModel

__all__ = ["PackedExperts", "expert_tensors", "pack_experts"]


class PackedExpert:
    """One expert's matrix [N, K]: the second argument of ``torch.nn.functional.linear``, and of nothing else."""

    def __init__(self, codes: torch.Tensor, state: Any) -> None:
        self._codes, self._state = codes, state

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch calls in place of one of its functions when an argument is one of these."""
        del types
        if func is not torch.nn.functional.linear or not isinstance(args[1], PackedExpert):
            raise UnsupportedModel(
                f"this model calls {getattr(func, '__name__', func)} on its experts, which cannot be done in 4 bits; "
                "leave quantize out"
            )
        return args[1].times(*args[:1], *args[2:], **(kwargs or {}))

    def times(self, given: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """[..., K] to [..., N]."""
        from bitsandbytes.autograd import _functions as bnb

        product: torch.Tensor = bnb.matmul_4bit(given, self._codes, quant_state=self._state, bias=bias)
        return product


class PackedExperts(torch.nn.Module):
    """A tensor [E, N, K] in 4 bits: ``experts[i]`` is expert i."""

    def __init__(self, weights: Iterable[torch.Tensor], device: torch.device) -> None:
        """``weights`` [N, K] are quantised on ``device``, one expert after another, and are not changed."""
        super().__init__()
        import bitsandbytes.functional as bnb

        self._experts = []
        for weight in weights:
            there = weight.to(device).contiguous()
            codes, state = bnb.quantize_4bit(there, blocksize=64, compress_statistics=False, quant_type="nf4")
            self._experts.append(PackedExpert(codes, state))

    def __getitem__(self, number: int | torch.Tensor) -> PackedExpert:
        return self._experts[int(number)]


def expert_tensors(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """(module, name of its parameter [E, N, K]) of all experts that are kept in one tensor."""
    for part in module.modules():
        if type(part).__name__.endswith("Experts"):
            for name, parameter in part.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    yield part, name


def pack_experts(module: Any, device: torch.device) -> int:
    """Replace the experts of ``module`` by packed ones on ``device``; how many tensors there were.

    Raises UnsupportedModel for experts whose forward does not go from one to the next (transposed tensors, products of
    all experts at once).
    """
    found = list(expert_tensors(module))
    for part, name in found:
        if getattr(part, "is_transposed", None) is not False:
            raise UnsupportedModel(
                f"the experts of {type(part).__name__} are kept in a form that cannot be quantised; leave quantize out"
            )
        weights = getattr(part, name).data
        delattr(part, name)
        setattr(part, name, PackedExperts(weights, device))
        del weights
    if found:
        module.set_experts_implementation("eager")  # the others want whole tensors
    return len(found)
