"""Between host and device: the one place where the host waits for the device, so that waits can be counted.

Shape legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Ids", "fetch", "filled_up", "joined", "on_device"]

Ids: TypeAlias = list[int] | torch.Tensor
"""Token ids [T]: the host's, or int64 on the device, where the host has not seen them."""


def fetch(values: torch.Tensor) -> npt.NDArray[np.float32]:
    """``values`` as float32 on the host, when the device has computed them."""
    values = values.detach().float()
    if values.device.type == "cuda":  # to memory that the GPU writes to by itself; torch keeps it for the next values
        values = torch.empty(values.shape, dtype=torch.float32, pin_memory=True).copy_(values)
    return np.asarray(values.cpu().numpy(), np.float32)


def on_device(ids: Ids, device: torch.device) -> torch.Tensor:
    """int64 [T]; the host does not wait until they are there."""
    given = ids if isinstance(ids, torch.Tensor) else torch.tensor(ids)
    return given.to(device, non_blocking=True)


def filled_up(ids: Ids, width: int) -> Ids:
    """``ids`` and so many zeros that there are ``width``."""
    if isinstance(ids, torch.Tensor):
        return torch.cat((ids, ids.new_zeros(width - len(ids))))
    return [*ids, *([0] * (width - len(ids)))]


def joined(before: Sequence[int], after: torch.Tensor) -> torch.Tensor:
    """[T]: the host's ids, and the device's after them."""
    return torch.cat((on_device(list(before), after.device), after))
