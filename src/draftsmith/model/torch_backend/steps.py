"""Steps of fixed shapes at fixed addresses, so that a GPU can replay them: a CUDA graph for each width and cache size.

Writing a token takes a small model's GPU less time than it takes Python to tell it what to do. A graph is told once and
replayed with one call. It wants everything where it was: token ids and positions in tensors that are written to, masks
computed from them on the device, keys and values in slabs of 64, 128, 256 ... positions, all of which attention sees,
masked beyond the text. Slabs go back to a pool when their text is over, and their graphs with them.

Without a GPU the same steps are computed by plain calls: slower than need be, but the same code, so it can be tested.

Shape legend: W tokens of a step, S positions of a slab, H key/value heads, D size of a head, V vocabulary entries.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from draftsmith.model.torch_backend.replay import Replay
from draftsmith.model.torch_backend.transfer import Ids, filled_up, on_device

__all__ = ["WIDTHS", "Buffers", "Slab", "SlabPool", "Step", "can_step", "slab_size"]

WIDTHS = (1, 2, 4, 8)
SMALLEST = 64

Buffers = list[tuple[torch.Tensor, torch.Tensor]]


class SlabLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a slab, as the model sees it within a step: new states go where ``cursor`` [W] points."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, cursor: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self._cursor = cursor
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """There is nothing left to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put [1, H, W, D] in place; returns the whole slab, [1, H, S, D]."""
        del args, kwargs
        keys, values = self.keys, self.values
        if keys is None or values is None:
            raise RuntimeError("the slab has no buffers")
        keys.index_copy_(2, self._cursor, key_states)
        values.index_copy_(2, self._cursor, value_states)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What masks are made for; ours is handed to the model ready-made."""
        del query_length
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """Not known on the host; positions are handed to the model, too."""
        return 0

    def get_max_length(self) -> int:
        """S."""
        return 0 if self.keys is None else int(self.keys.shape[2])


class Step:
    """A forward of W tokens on one slab. Its inputs are ``ids`` [1, W] and ``cursor`` [W]; ``logits`` [W, V] result."""

    def __init__(
        self, module: Any, buffers: Buffers, width: int, device: torch.device, ids: torch.Tensor | None = None
    ) -> None:
        """``ids``: a tensor of the caller's, who fills it on the device, if not a new one."""
        self._module = module
        self.ids = torch.zeros((1, width), dtype=torch.int64, device=device) if ids is None else ids
        self.cursor = torch.arange(width, device=device)
        self._columns = torch.arange(buffers[0][0].shape[2], device=device)
        self._states = Cache(layers=[SlabLayer(keys, values, self.cursor) for keys, values in buffers])
        self._replay = Replay(self._compute, device)
        self.logits = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, ids: Ids, begin: int) -> torch.Tensor:
        """[W, V]: the logits after ``ids``, W of them, of which the first stands at position ``begin``.

        Valid until the next call.
        """
        self.ids.copy_(on_device(ids, self.ids.device)[None])
        self.cursor.copy_(torch.arange(begin, begin + len(ids)), non_blocking=True)
        self._replay()
        return self.logits

    def _compute(self) -> None:
        self.logits = self.forward()

    def forward(self) -> torch.Tensor:
        """[W, V], of what ``ids`` and ``cursor`` hold."""
        mask = self._columns[None, None, None, :] <= self.cursor[None, None, :, None]
        output = self._module(
            input_ids=self.ids,
            position_ids=self.cursor[None],
            attention_mask=mask,
            past_key_values=self._states,
            use_cache=True,
            logits_to_keep=self.ids.shape[1],
        )
        logits: torch.Tensor = output.logits[0]
        return logits


class Slab:
    """Buffers for the keys and values of one text of at most ``size`` tokens, and the steps that run on them."""

    def __init__(self, module: Any, like: Buffers, size: int, device: torch.device) -> None:
        self.size = size
        self.buffers: Buffers = [(_empty(keys, size), _empty(values, size)) for keys, values in like]
        self.module = module
        self.device = device
        self.chains: dict[Any, Any] = {}  # of chain.py, by the vocabulary that they choose from, and how
        self._steps: dict[int, Step] = {}

    def step(self, ids: Ids, begin: int, width: int) -> torch.Tensor:
        """[len(ids), V] on the device. ``ids`` are filled up to ``width``; the caller is to forget what was added.

        ``begin`` + ``width`` must not be above ``size``.
        """
        if width not in self._steps:
            self._steps[width] = Step(self.module, self.buffers, width, self.device)
        rows = self._steps[width](filled_up(ids, width), begin)
        return rows[: len(ids)]


class SlabPool:
    """Slabs of one model; those that no text uses wait here for the next one."""

    def __init__(self, module: Any, like: Buffers, device: torch.device) -> None:
        """``like``: keys and values [1, H, any, D] of every layer, for their sizes and types."""
        self._module = module
        self._like = like
        self._device = device
        self._free: dict[int, list[Slab]] = {}

    def take(self, positions: int) -> Slab:
        """A slab for so many positions, or more; what it holds is finite, and otherwise of no meaning."""
        size = slab_size(positions)
        waiting = self._free.get(size)
        return waiting.pop() if waiting else Slab(self._module, self._like, size, self._device)

    def give_back(self, slab: Slab) -> None:
        """Nobody uses it any more."""
        self._free.setdefault(slab.size, []).append(slab)


def can_step(module: Any, kinds: Sequence[bool | None], like: Buffers, device: torch.device) -> bool:
    """Whether the model is of the kind that takes masks and positions as they are: full attention on one device."""
    taken = inspect.signature(module.forward).parameters
    return (
        all(kind is False for kind in kinds)
        and {"attention_mask", "position_ids", "logits_to_keep"} <= taken.keys()
        and all(keys.device == device for keys, _ in like)
    )


def slab_size(positions: int) -> int:
    """The next power of two, from 64 on."""
    return max(SMALLEST, 1 << (positions - 1).bit_length())


def _empty(like: torch.Tensor, size: int) -> torch.Tensor:
    return like.new_zeros((1, like.shape[1], size, like.shape[3]))
