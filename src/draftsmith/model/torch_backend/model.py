"""A causal language model of ``transformers`` behind the Model protocol."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from draftsmith.errors import OutOfMemory, UnsupportedModel, UsageError
from draftsmith.model.protocol import (
    GREEDY,
    Checked,
    CheckRun,
    DraftRun,
    Logits,
    TokenChoice,
    TokenRun,
    UnseenDraft,
    UnseenRun,
)
from draftsmith.model.torch_backend import transfer
from draftsmith.model.torch_backend.cache import BLOCK, TorchCache, layer_kinds
from draftsmith.model.torch_backend.chain import MOST, CacheChain, Chain, Chosen, SlabChain
from draftsmith.model.torch_backend.drafts import write_draft
from draftsmith.model.torch_backend.replay import WARM_UP
from draftsmith.model.torch_backend.sampled import Sampled
from draftsmith.model.torch_backend.steps import WIDTHS, SlabPool, can_step
from draftsmith.model.torch_backend.transfer import Ids, filled_up, on_device
from draftsmith.model.torch_backend.unseen import DeviceDraft, check_drafts

__all__ = ["TorchModel"]

MAX_ROWS = 2048  # tokens that go through the model at once: attention masks grow with their product with the context


class TorchModel:
    """Runs are computed one after another, so what a sequence gets does not depend on the batch.

    It depends, in the last bits, on how many tokens are read at once, since matrix products of other shapes add up in
    another order. ``exact_width`` w undoes that: all that is written and checked goes through the model in steps of w
    tokens, filled up with others that are forgotten at once, so that one token and w have the same shapes everywhere.
    ``find_difference`` tells whether the bits are then the same. See ``docs/backends.md``.
    """

    def __init__(
        self,
        module: Any,
        *,
        max_context: int,
        name: str = "the model",
        exact_width: int | None = None,
        graphs: bool = False,
    ) -> None:
        """``module``: a ``transformers`` causal language model, ready to run where it is to stay. ``graphs``: run short
        steps as ``steps`` describes, where the model is of a kind for which that is possible.

        Raises UnsupportedModel when its layers cannot forget tokens, or it does not use the cache it is given.
        """
        self.module = module
        self.name = name
        self.exact_width = exact_width
        self._num_positions = max_context
        self._max_context = max_context - (exact_width - 1 if exact_width else 0)  # what fills up has positions, too
        if self._max_context < 1:
            raise UsageError(f"max_context is {max_context}; exact needs at least {exact_width}")
        self._kinds = layer_kinds(module.config, name)
        inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
        if getattr(module, "_is_stateful", False) or outputs is None or all(kind is None for kind in self._kinds):
            raise UnsupportedModel(f"{name} has no keys and values that can be cut back; take another model")
        self.device: torch.device = inputs.weight.device
        self.dtype: torch.dtype = module.dtype
        self.writes_ahead = self.device.type != "cpu" and exact_width is None
        self.place: str | None = None if self.device.type == "cpu" else self.device.type
        self._num_ids = int(inputs.weight.shape[0])
        self._vocab_size = int(getattr(outputs, "out_features", 0) or outputs.weight.shape[0])
        self._keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters
        self._caches: weakref.WeakSet[TorchCache] = weakref.WeakSet()
        self._chosen: dict[tuple[int, type[Chosen]], Chosen] = {}  # by the vocabulary, and how is chosen from it
        self._pool: SlabPool | None = None
        self._bytes_per_position = self._try_one_token(graphs)

    @property
    def vocab_size(self) -> int:
        """Width of the rows of logits."""
        return self._vocab_size

    @property
    def max_context(self) -> int:
        """Largest number of tokens in a cache."""
        return self._max_context

    @property
    def free_memory(self) -> int | None:
        """Bytes that are free where the first layer is; None where that cannot be told (then it is main memory)."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None

    @property
    def cache_bytes_in_use(self) -> int:
        """Bytes of all caches of this model that are alive."""
        return sum(cache.num_bytes for cache in self._caches)

    def cache_bytes(self, positions: int) -> int:
        """Bytes that a cache of so many tokens takes, without the room that is kept for more."""
        return -(-positions // BLOCK) * BLOCK * self._bytes_per_position

    def new_cache(self, capacity: int | None = None) -> TorchCache:
        """An empty cache for one sequence; its memory is taken as it fills."""
        size = self._max_context if capacity is None else capacity
        if not 1 <= size <= self._max_context:
            raise UsageError(f"a cache of {size} tokens was asked for; the model's context is {self._max_context}")
        whole_blocks = self.exact_width is not None
        return self._registered(TorchCache(self._kinds, size, whole_blocks=whole_blocks, pool=self._pool))

    @property
    def has_graphs(self) -> bool:
        """Whether short steps run as ``steps`` describes."""
        return self._pool is not None

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """Append every run to its cache; see ``protocol.Model.forward``.

        Raises OutOfMemory when there is no room; then no cache has changed.
        """
        caches = [self._checked(run) for run in runs]
        with self._all_or_nothing(caches):
            return [self._read(run, cache) for run, cache in zip(runs, caches, strict=True)]

    @torch.inference_mode()
    def draft(self, runs: Sequence[DraftRun]) -> list[list[int]]:
        """See ``protocol.DraftingModel``; drafts are written one after another, on a GPU there."""
        caches = [self._checked_for_draft(run) for run in runs]
        with self._all_or_nothing(caches):
            limits = [self._vocab_size if run.vocab_limit is None else run.vocab_limit for run in runs]
            return [write_draft(self, *each) for each in zip(runs, caches, limits, strict=True)]

    @torch.inference_mode()
    def draft_unseen(self, runs: Sequence[UnseenRun]) -> list[UnseenDraft]:
        """See ``protocol.DeviceModel``."""
        caches = [self._checked_for_draft(run) for run in runs]
        drafts: list[UnseenDraft] = []
        with self._all_or_nothing(caches):
            for run, cache in zip(runs, caches, strict=True):
                count, limit = min(run.max_tokens, MOST), run.vocab_limit or self._vocab_size
                chosen = self._chain(list(run.token_ids), cache, count, limit, run.choice)
                drafts.append(DeviceDraft(chosen.taken(count).clone(), limit))
        return drafts

    @torch.inference_mode()
    def check(self, runs: Sequence[CheckRun]) -> list[Checked]:
        """See ``protocol.DeviceModel``."""
        texts = []
        for run in runs:
            cache, draft = self._checked(TokenRun(run.cache, run.token_ids, num_logits=0)), run.draft
            if not isinstance(draft, DeviceDraft) or draft.limit > self._num_ids:
                raise ValueError(f"the draft of a run is not one that a model on {self.place} has made for this one")
            if cache.length + len(run.token_ids) + len(draft) > cache.capacity:
                raise ValueError(f"a draft of {len(draft)} tokens does not fit its cache of {cache.capacity}")
            texts.append((run.token_ids, draft, cache, run.wants_logits))
        with self._all_or_nothing([text[2] for text in texts]):
            return check_drafts(self, texts, "The model")

    @contextmanager
    def _all_or_nothing(self, caches: Sequence[TorchCache]) -> Iterator[None]:
        """When something goes wrong, the caches, all different, are as before, and a lack of memory is OutOfMemory."""
        if len({id(cache) for cache in caches}) < len(caches):
            raise ValueError("two runs of one forward share a cache")
        lengths = [cache.length for cache in caches]
        try:
            yield
        except BaseException as error:
            for cache, length in zip(caches, lengths, strict=True):
                cache.reset_length(length)
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
                raise OutOfMemory(
                    f"{self.device} has not enough memory for a step of {self.name}; shorten the context or quantise"
                ) from None
            raise

    def _checked(self, run: TokenRun) -> TorchCache:
        """The run's cache. Raises ValueError or TypeError when the run cannot be read."""
        cache, count = run.cache, len(run.token_ids)
        if not isinstance(cache, TorchCache):
            raise TypeError(f"the cache of a run is a {type(cache).__name__}; make it with this model's new_cache()")
        self._registered(cache)
        if count < 1 or cache.length + count > cache.capacity:
            raise ValueError(f"a run of {count} tokens does not fit a cache with {cache.length} of {cache.capacity}")
        if not 0 <= run.num_logits <= count or not 1 <= (run.vocab_limit or 1) <= self._vocab_size:
            raise ValueError(f"{run.num_logits} rows of {run.vocab_limit} entries cannot be had of {count} tokens")
        if min(run.token_ids) < 0 or max(run.token_ids) >= self._num_ids:
            raise ValueError(f"a token id is outside the vocabulary of {self._num_ids} ids")
        return cache

    def _checked_for_draft(self, run: DraftRun | UnseenRun) -> TorchCache:
        """The cache of a draft to be written. Raises what ``_checked`` raises."""
        cache = self._checked(TokenRun(run.cache, run.token_ids, vocab_limit=run.vocab_limit))
        if run.max_tokens < 1 or cache.length + len(run.token_ids) + run.max_tokens - 1 > cache.capacity:
            raise ValueError(f"a draft of {run.max_tokens} tokens does not fit its cache of {cache.capacity}")
        return cache

    def _read(self, run: TokenRun, cache: TorchCache) -> Logits:
        """float32 [R, vocab_limit or V]."""
        width = self._vocab_size if run.vocab_limit is None else run.vocab_limit
        rows = self.rows(list(run.token_ids), run.num_logits, cache)
        if not run.num_logits:  # nothing to wait for
            return np.zeros((0, width), np.float32)
        return transfer.fetch(rows[:, :width])

    def rows(self, ids: Ids, num_logits: int, cache: TorchCache) -> torch.Tensor:
        """See ``unseen.Checker``."""
        cache.reserve(cache.length + len(ids))
        if self.exact_width is not None and (num_logits > 1 or len(ids) <= self.exact_width):
            return self._in_fixed_steps(ids, num_logits, cache, self.exact_width)
        if self._pool is not None and len(ids) <= WIDTHS[-1]:
            width = next(width for width in WIDTHS if width >= len(ids))
            return self._in_fixed_steps(ids, num_logits, cache, width)
        return self._at_once(ids, num_logits, cache)

    def row(self, ids: list[int], cache: TorchCache, limit: int) -> Logits:
        """See ``drafts.Writer``."""
        row: Logits = self._read(TokenRun(cache, ids, vocab_limit=limit), cache)[0]
        return row

    def chain(
        self, ids: list[int], cache: TorchCache, count: int, limit: int, choice: TokenChoice
    ) -> tuple[list[int], list[float]]:
        """See ``drafts.Writer``."""
        return self._chain(ids, cache, count, limit, choice).fetch(count)

    def _chain(self, ids: list[int], cache: TorchCache, count: int, limit: int, choice: TokenChoice) -> Chosen:
        """Read ``ids`` and choose ``count`` tokens, which are not waited for."""
        row = self.rows(ids, 1, cache)[0]
        begin = cache.length
        slab = cache.reserve(begin + count - 1) if begin + count - 1 <= self._num_positions else None
        chain: Chain
        kind = Chosen if choice.greedy else Sampled
        if slab is not None:
            chain = SlabChain.on(slab, limit, kind)
        else:
            if (limit, kind) not in self._chosen:
                self._chosen[limit, kind] = kind(self.device, limit)
            chosen = self._chosen[limit, kind]
            chain = CacheChain(self.module, cache.states, chosen, {"logits_to_keep": 1} if self._keeps_logits else {})
        chain.start(row, begin, choice)
        for _ in range(count - 1):
            chain.advance()
        cache.set_length(begin + count - 1)
        return chain.chosen

    def _at_once(self, ids: Ids, num_logits: int, cache: TorchCache) -> torch.Tensor:
        """[R, V]; what is longer than MAX_ROWS goes through in parts, of which the last has all the rows."""
        last = max(num_logits, (len(ids) - 1) % MAX_ROWS + 1)
        for begin in range(0, len(ids) - last, MAX_ROWS):
            self._step(ids[begin : min(begin + MAX_ROWS, len(ids) - last)], cache, 1)
        rows = self._step(ids[len(ids) - last :], cache, max(1, num_logits))
        return rows[rows.shape[0] - num_logits :]

    def _in_fixed_steps(self, ids: Ids, num_logits: int, cache: TorchCache, width: int) -> torch.Tensor:
        """[R, V]; what comes before the rows is read at once, if it is longer than a step."""
        before = len(ids) - num_logits if len(ids) > width else 0
        if before:
            self._at_once(ids[:before], 0, cache)
        rows = []
        for begin in range(before, len(ids), width):
            piece, length = ids[begin : begin + width], cache.length
            rows.append(self._fixed_step(piece, cache, width))
            cache.set_length(length + len(piece))
        whole = torch.cat(rows)
        return whole[whole.shape[0] - num_logits :]

    def _fixed_step(self, piece: Ids, cache: TorchCache, width: int) -> torch.Tensor:
        """[len(piece), V], of ``piece`` filled up to ``width``; what the cache holds beyond it is of no meaning."""
        slab = cache.reserve(cache.length + width)
        if slab is None or cache.length + width > self._num_positions:
            return self._step(filled_up(piece, width), cache, width)[: len(piece)]
        rows = slab.step(piece, cache.length, width)
        return rows.clone()  # the next step overwrites them

    def find_difference(self) -> float | None:
        """Read a text token by token and in steps of several sizes. None when all bits of all logits are the same, else
        the largest difference. Needs a context of 96 tokens or more; of less, the text is as long.
        """
        length = min(96, self._max_context)
        ids = [(7919 * i + 13) % self._num_ids for i in range(length)]
        begin = length // 3
        one, several = self.new_cache(), self.new_cache()
        self.forward([TokenRun(one, ids[:begin], num_logits=0), TokenRun(several, ids[:begin], num_logits=0)])
        worst = 0.0
        size = 2
        while begin < length:
            piece = ids[begin : begin + size]
            [rows] = self.forward([TokenRun(several, piece, num_logits=len(piece))])
            for token_id, row in zip(piece, rows, strict=True):
                [alone] = self.forward([TokenRun(one, [token_id])])
                worst = max(worst, float(np.abs(alone[0] - row).max()))
            begin, size = begin + len(piece), size % 12 + 1
        return worst or None

    @torch.inference_mode()
    def _step(self, ids: Ids, cache: TorchCache, rows: int) -> torch.Tensor:
        """[rows, V] on the device, of the last tokens."""
        options = {"logits_to_keep": rows} if self._keeps_logits else {}
        given = on_device(ids, self.device)[None]
        output = self.module(input_ids=given, past_key_values=cache.states, use_cache=True, **options)
        logits: torch.Tensor = output.logits[0, -rows:]
        return logits

    def _registered(self, cache: TorchCache) -> TorchCache:
        """Count its bytes among this model's; forks come here with their first run."""
        self._caches.add(cache)
        return cache

    def _try_one_token(self, graphs: bool) -> int:
        """Read one token, so that what cannot run is told now. Returns the bytes that its keys and values take.

        Sets up ``graphs`` where that is possible.
        """
        cache = TorchCache(self._kinds, 1)
        rows = self._step([0], cache, 1)
        if cache.length != 1 or not cache.is_whole:
            raise UnsupportedModel(f"{self.name} keeps its keys and values in a way of its own; take another model")
        if rows.shape[1] != self._vocab_size:
            self._vocab_size = int(rows.shape[1])
        if graphs and can_step(self.module, self._kinds, cache.buffers(), self.device):
            pool = SlabPool(self.module, cache.buffers(), self.device)
            self._pool = pool if self._agrees(pool) else None
        return cache.row_bytes

    def _agrees(self, pool: SlabPool) -> bool:
        """Whether steps on slabs give the logits that the model gives by itself, up to rounding, also when replayed,
        and chains of them can be replayed.
        """
        ids, width = [i % self._num_ids for i in (5, 3, 8)], WIDTHS[-2]
        if self._num_positions < 2 * width:
            return False
        one, other = TorchCache(self._kinds, width), TorchCache(self._kinds, width, pool=pool)
        expected = self._step(ids, one, len(ids)).float()
        slab = other.reserve(width)
        if slab is None:
            return False
        try:
            for _ in range(WARM_UP + 2):
                rows = slab.step(ids, 0, width).float()
            for kind in (Chosen, Sampled):
                chain = SlabChain.on(slab, self._vocab_size, kind)
                chain.start(rows[-1], len(ids), GREEDY)
                for _ in range(WARM_UP + 2):
                    chain.advance()
                chain.chosen.fetch(WARM_UP + 3)
        except RuntimeError:  # something in the model cannot be captured
            return False
        return bool((rows - expected).abs().max() <= 0.05 * expected.abs().max())
