"""Several processes that train one model: who they are, how they wait for each other, and how the model is shared out.

``torchrun`` starts the processes and tells each its place in the environment. The micro-batches of a step are dealt to
them, so a recipe means the same whatever their number. Parameters, gradients and optimiser state are split with FSDP2
(``torch.distributed.fsdp.fully_shard``): one unit a layer, and one for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from draftsmith.errors import UsageError

__all__ = ["Shared", "World", "joined", "put", "share_out", "whole", "whole_weights", "world"]

# A stage that one process does alone (replies of the target) may take days. A process that dies is noticed by torchrun.
TIMEOUT = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class World:
    """Process ``rank`` of ``size``; ``local_rank`` counts those of one machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            distributed.barrier()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process does the block alone, then all others: what it left in a cache is there for them."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def total(self, value: float) -> float:
        """The sum of everybody's ``value``, in the order of ranks."""
        if self.size == 1:
            return value
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return float(sum(values))


def world() -> World:
    """What the environment says. Raises UsageError when it is incomplete."""
    try:
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        return World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE is set, but not RANK and LOCAL_RANK beside it as numbers; start the processes with torchrun"
        ) from None


@contextmanager
def joined() -> Iterator[World]:
    """Meet the other processes, if there are any, and part from them in the end."""
    own = world()
    if own.size == 1 or distributed.is_initialized():
        yield own
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(own.local_rank % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield own
    finally:
        distributed.destroy_process_group()


class Shared(torch.nn.Module):
    """A model whose parameters are whole only while a function of it runs: ``shared(function, ...)``.

    ``function(model, ...)`` may use the output layer's weights apart from the model's own forward, as the chunked
    losses do. With one process this is a plain call.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What ``function`` returns for the model and the arguments."""
        return function(self.model, *arguments)

    def split_again(self) -> None:
        """After a run without a backward pass: give back what was gathered for it."""
        reshard = getattr(self, "reshard", None)
        if reshard is not None:
            reshard()


def share_out(model: Any, device: torch.device, size: int) -> Shared:
    """Put the model on ``device`` and split it among ``size`` processes. Gradients are summed, not averaged."""
    shared = Shared(model)
    if size == 1:
        shared.to(device)
        return shared
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(shared, mesh=mesh)
    for module in shared.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return shared


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in one piece on the CPU. All processes must call this, in the same order."""
    detached = tensor.detach()
    if isinstance(detached, DTensor):
        detached = detached.full_tensor()
    return detached.to("cpu").contiguous()


def put(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``value``, whole, in the pieces and on the device of ``parameter``; every process has the same value."""
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device)


def whole_weights(model: Any) -> Mapping[str, torch.Tensor]:
    """Parameters by name, in one piece each; one that is used twice (tied) comes once. All processes must call this."""
    return {name: whole(parameter) for name, parameter in model.named_parameters()}
