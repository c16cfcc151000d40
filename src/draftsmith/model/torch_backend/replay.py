"""Work that a GPU is told once and then repeats by one call: a CUDA graph around a function."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["WARM_UP", "Replay"]

WARM_UP = 2  # calls before a graph is captured: libraries set themselves up in the first ones


class Replay:
    """``function``, which reads and writes the same tensors at every call and never waits for the device.

    Elsewhere than on a GPU it is just called.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function = function
        self._on_gpu = device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self) -> None:
        """Do it once more. RuntimeError when something in it cannot be captured."""
        if self._graph is not None:
            self._graph.replay()
        elif self._on_gpu and self._calls >= WARM_UP:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._function()
            graph.replay()  # capturing computes nothing
            self._graph = graph
        else:
            self._function()
        self._calls += 1
