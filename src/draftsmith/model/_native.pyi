"""Types of the extension module (``native/bindings.cpp``)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def instruction_sets() -> list[str]: ...
def packed_size(block_type: int, rows: int, cols: int) -> int: ...
def pack(
    block_type: int,
    rows: int,
    cols: int,
    source: npt.NDArray[np.uint8],
    destination: npt.NDArray[np.uint8],
    team: ThreadTeam,
) -> None: ...
def unpack_rows(
    block_type: int, rows: int, cols: int, packed: npt.NDArray[np.uint8], wanted: Sequence[int]
) -> npt.NDArray[np.float32]: ...
def matmul(
    block_type: int,
    rows: int,
    cols: int,
    packed: npt.NDArray[np.uint8],
    x: npt.NDArray[np.float32],
    instruction_set: str,
    team: ThreadTeam,
    repeats: int = 1,
) -> npt.NDArray[np.float32]: ...
def peak_products(kind: str, instruction_set: str, team: ThreadTeam, rounds: int) -> float: ...
def read_rate(data: npt.NDArray[np.uint8], instruction_set: str, team: ThreadTeam) -> float: ...

class ThreadTeam:
    def __init__(self, size: int) -> None: ...
    @property
    def size(self) -> int: ...

class KVCache:
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def allocated_bytes(self) -> int: ...
    def truncate(self, length: int) -> None: ...
    def fork(self, length: int) -> KVCache: ...
    def repeat(self, length: int) -> None: ...
    def growth(self, count: int) -> int: ...

class Model:
    def new_cache(self, capacity: int) -> KVCache: ...
    def cache_bytes(self, positions: int) -> int: ...
    @property
    def cache_bytes_in_use(self) -> int: ...
    def set_profiling(self, on: bool) -> None: ...
    def profile(self) -> dict[str, Any]: ...
    def draft(
        self,
        runs: Sequence[tuple[KVCache, Sequence[int], int, object]],
        width: int,
        names: npt.NDArray[np.int32] | None,
        wants_more: Callable[[int, float], bool],
    ) -> list[list[int]]: ...
    def forward(
        self,
        caches: Sequence[KVCache],
        tokens: Sequence[npt.NDArray[np.int32]],
        num_logits: Sequence[int],
        width: int,
    ) -> npt.NDArray[np.float32]: ...

def make_model(
    shape: Mapping[str, int | float | str],
    tensors: Mapping[str, tuple[int, int, int, int]],
    buffer: npt.NDArray[np.uint8],
    inverse_frequencies: npt.NDArray[np.float32],
    windows: Sequence[int],
    instruction_set: str,
    team: ThreadTeam,
) -> Model: ...
