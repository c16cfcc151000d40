"""Keys and values of one sequence, for the models of ``transformers``: a cache that can be cut back to any length.

Every attention layer keeps all its keys and values, sliding layers too: the model's own masks hide what lies outside
their windows. So forgetting tokens is a change of one number, and exact, where a cache that has thrown away what left
the window could not go back.

In steps (``whole_blocks``) a layer shows its keys and values in whole blocks of 64 positions, zeros after the last one:
masked, they add nothing, and the shapes that attention is computed in change only from block to block.

Shape legend: H key/value heads, P positions, T new tokens, D size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from draftsmith.errors import UnsupportedModel
from draftsmith.model.torch_backend.steps import Slab, SlabPool, slab_size

__all__ = ["GrowingLayer", "TorchCache", "layer_kinds"]

BLOCK = 64  # positions that are allocated together
GROWTH = 1.5  # room is made for this many times what is needed, so that copying stays a small part of the work


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values in buffers [1, H, P, D] that grow up to ``capacity``; the first ``length`` count."""

    is_croppable = True

    def __init__(self, capacity: int, *, sliding: bool, whole_blocks: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.whole_blocks = whole_blocks
        self.length = 0
        self.is_sliding = sliding

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Called with the first states; fixes dtype, device and sizes. They may differ from layer to layer."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, H, T, D]; returns all that is held, [1, H, length, D], or whole blocks."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self.length, self.length + key_states.shape[2]
        keys, values = self._with_room(end)
        keys[:, :, begin:end] = key_states
        values[:, :, begin:end] = value_states
        self.length = end
        shown = self._shown(end)
        return keys[:, :, :shown], values[:, :, :shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What the model's masks are made for: (positions, the first of them)."""
        return self._shown(self.length + query_length), 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.capacity

    def attach(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move to these buffers [1, H, P, D], which must be large enough."""
        if self.keys is not None and self.values is not None:
            keys[:, :, : self.length] = self.keys[:, :, : self.length]
            values[:, :, : self.length] = self.values[:, :, : self.length]
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True

    @property
    def row_bytes(self) -> int:
        """Bytes of a position; 0 before the first one."""
        tensors = (self.keys, self.values) if self.is_initialized else ()
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors if t is not None)

    @property
    def num_bytes(self) -> int:
        """Bytes that are allocated."""
        return self.row_bytes * self.num_allocated

    @property
    def num_allocated(self) -> int:
        """Positions that there is room for."""
        return 0 if self.keys is None else int(self.keys.shape[2])

    def growth(self, needed: int) -> int:
        """Bytes that room for ``needed`` positions will take beyond what is there."""
        return max(0, self._size_for(needed) - self.num_allocated) * self.row_bytes

    def copy(self, length: int) -> GrowingLayer:
        """Another layer with the first ``length`` tokens."""
        other = GrowingLayer(self.capacity, sliding=self.is_sliding, whole_blocks=self.whole_blocks)
        if self.is_initialized and self.keys is not None and self.values is not None:
            other.lazy_initialization(self.keys, self.values)
            if length:
                other.update(self.keys[:, :, :length], self.values[:, :, :length])
        return other

    def _with_room(self, needed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with space for ``needed`` positions."""
        keys, values = self.keys, self.values
        if keys is None or values is None:
            raise RuntimeError("the layer was not initialised")
        if keys.shape[2] < needed:
            keys, values = (_grown(old, self._size_for(needed), self.length) for old in (keys, values))
            self.keys, self.values = keys, values
        return keys, values

    def _shown(self, length: int) -> int:
        return round_up(length) if self.whole_blocks else length

    def _size_for(self, needed: int) -> int:
        """How many positions are allocated when ``needed`` are: more, in whole blocks, but not beyond the capacity."""
        if needed <= self.num_allocated:
            return self.num_allocated
        capacity = max(self.capacity, needed)
        return min(round_up(capacity) if self.whole_blocks else capacity, round_up(int(needed * GROWTH)))


def round_up(length: int) -> int:
    """In whole blocks."""
    return -(-length // BLOCK) * BLOCK


def _grown(old: torch.Tensor, size: int, length: int) -> torch.Tensor:
    new = old.new_zeros((*old.shape[:2], size, old.shape[3]))  # what is masked must be finite
    new[:, :, :length] = old[:, :, :length]
    return new


def layer_kinds(config: Any, name: str) -> tuple[bool | None, ...]:
    """For every layer, whether it slides; None for one that keeps nothing of its own.

    Raises UnsupportedModel for models with a recurrent or compressed state: it holds all tokens in one sum, so rejected
    ones cannot be taken out of it.
    """
    known = {DynamicLayer: False, DynamicSlidingWindowLayer: True, DummyLayer: None}
    try:
        layers = DynamicCache(config=config).layers
    except KeyError as error:  # a type of layer that registers itself with its model's own cache
        raise _cannot_forget(name, str(error).strip("'")) from None
    for layer in layers:
        if type(layer) not in known:
            raise _cannot_forget(name, type(layer).__name__)
    return tuple(known[type(layer)] for layer in layers)


def _cannot_forget(name: str, kind: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{name} has layers with a state that cannot forget single tokens ({kind}), so it can be neither checked "
        "against a draft nor cut back; take a model whose layers are all full or sliding attention"
    )


class TorchCache:
    """See ``protocol.KVCache``; also ``SharedCache`` of the engine. Make one with ``TorchModel.new_cache``."""

    def __init__(
        self,
        kinds: tuple[bool | None, ...],
        capacity: int,
        *,
        whole_blocks: bool = False,
        pool: SlabPool | None = None,
    ) -> None:
        """``kinds``: see ``layer_kinds``. ``pool``: where buffers come from; without one they grow by themselves."""
        self._capacity = capacity
        self._pool = pool
        self.draft_length = 4  # of the last draft that was written to it: a guess at the next one's
        self._slab: Slab | None = None
        self._set([_layer(kind, capacity, whole_blocks) for kind in kinds])

    def _set(self, layers: list[Any]) -> None:
        self.states = Cache(layers=layers)  # what the model reads and writes
        self._layers = [layer for layer in layers if isinstance(layer, GrowingLayer)]

    @property
    def length(self) -> int:
        """Tokens held."""
        return self._layers[0].length

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self._capacity

    @property
    def is_whole(self) -> bool:
        """Whether all layers hold the same tokens: false when a model leaves layers out of its cache."""
        return all(layer.length == self.length for layer in self._layers)

    @property
    def num_bytes(self) -> int:
        """Bytes that are allocated."""
        return sum(layer.num_bytes for layer in self._layers)

    @property
    def row_bytes(self) -> int:
        """Bytes of a position; 0 before the first one."""
        return sum(layer.row_bytes for layer in self._layers)

    def truncate(self, length: int) -> None:
        """Forget all tokens from position ``length`` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens cannot be cut to {length}")
        self.reset_length(length)

    def reset_length(self, length: int) -> None:
        """Like ``truncate``, after a forward that failed in some layer: others may hold more."""
        for layer in self._layers:
            layer.length = min(layer.length, length)

    def set_length(self, length: int) -> None:
        """After a step of fixed width: the first ``length`` tokens count, whatever the layers have been told."""
        for layer in self._layers:
            layer.length = length

    def buffers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of every layer that has some, [1, H, P, D]."""
        return [
            (layer.keys, layer.values) for layer in self._layers if layer.keys is not None and layer.values is not None
        ]

    def fork(self, length: int) -> TorchCache:
        """Another cache with a copy of the first ``length`` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} tokens has no first {length}")
        other = TorchCache((), self._capacity, pool=self._pool)
        other._set([layer.copy(length) if isinstance(layer, GrowingLayer) else layer for layer in self.states.layers])
        return other

    def growth(self, count: int) -> int:
        """Bytes that it takes to append ``count`` tokens to a cache that has held some; 0 for a fresh one."""
        needed = self.length + count
        if self._pool is not None:
            return max(0, slab_size(needed) - self._layers[0].num_allocated) * self.row_bytes
        return sum(layer.growth(needed) for layer in self._layers)

    def reserve(self, positions: int) -> Slab | None:
        """The slab with room for so many positions, taken from the pool if need be; None for caches without a pool."""
        if self._pool is not None and (self._slab is None or self._slab.size < positions):
            slab = self._pool.take(positions)
            for layer, (keys, values) in zip(self._layers, slab.buffers, strict=True):
                layer.attach(keys, values)
            self._release()
            self._slab = slab
        return self._slab

    def _release(self) -> None:
        if self._pool is not None and self._slab is not None:
            self._pool.give_back(self._slab)
            self._slab = None

    def __del__(self) -> None:
        self._release()


def _layer(kind: bool | None, capacity: int, whole_blocks: bool) -> GrowingLayer | DummyLayer:
    if kind is None:
        return DummyLayer()  # type: ignore[no-untyped-call]
    return GrowingLayer(capacity, sliding=kind, whole_blocks=whole_blocks)
