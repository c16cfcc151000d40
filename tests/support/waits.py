"""How often the host looks at what is on the device: counted where it may, refused everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from draftsmith.model.torch_backend import transfer

__all__ = ["Fetches", "counted_fetches"]

_LOOKS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "_unique2", "equal")


class Fetches:
    """``count``: transfers to the host so far. ``allowed``: whether one is under way."""

    def __init__(self) -> None:
        self.count = 0
        self.allowed = False

    def refuse(self, name: str) -> None:
        """On a GPU ``name`` would have waited."""
        if not self.allowed:
            raise AssertionError(f"the host looked at a tensor outside transfer.fetch: {name}")


class _NoLooks(TorchFunctionMode):
    """What Python asks of a tensor's values."""

    def __init__(self, fetches: Fetches) -> None:
        super().__init__()
        self._fetches = fetches

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _LOOKS:
            self._fetches.refuse(func.__name__)
        return func(*args, **(kwargs or {}))


class _NoWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What operations ask: results whose size depends on values, scalars."""

    def __init__(self, fetches: Fetches) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fetches = fetches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if name in _WAITS:
            self._fetches.refuse(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_fetches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetches]:
    """Within it, values come to the host by ``transfer.fetch`` alone, else AssertionError."""
    fetches, fetch = Fetches(), transfer.fetch

    def counted(values: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        fetches.count, fetches.allowed = fetches.count + 1, True
        try:
            return fetch(values)
        finally:
            fetches.allowed = False

    with monkeypatch.context() as patch, _NoLooks(fetches), _NoWaits(fetches):
        patch.setattr(transfer, "fetch", counted)
        yield fetches
