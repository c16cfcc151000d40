"""The native backend: our own CPU engine (``native/``) behind the Model protocol.

What is said of exactness in ``docs/architecture.md`` holds here to the bit: the logits of a token depend on the
checkpoint and on the tokens before it, not on the batch, the cut of the prompt, the number of threads or the kernels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint import Checkpoint, ModelConfig, rope_frequencies
from draftsmith.checkpoint.experts import ExpertsConfig
from draftsmith.errors import CheckpointError, OutOfMemory, UnsupportedModel, UsageError
from draftsmith.model import _native
from draftsmith.model.packed import PackedModel, load_packed
from draftsmith.model.protocol import DraftRun, Logits, TokenRun
from draftsmith.model.storage import CacheDtype, Dtype, Quantize
from draftsmith.quant import BlockType

__all__ = ["CacheDtype", "NativeModel", "instruction_set", "thread_team"]

INSTRUCTION_SET_VARIABLE = "DRAFTSMITH_ISA"
MAX_THREADS = 256


def instruction_set() -> str:
    """The kernels to run: $DRAFTSMITH_ISA, else the best that the processor has. They all give the same bits.

    Raises UsageError when the variable names one that the processor lacks.
    """
    available = _native.instruction_sets()
    wanted = os.environ.get(INSTRUCTION_SET_VARIABLE, "") or available[-1]
    if wanted not in available:
        raise UsageError(
            f"{INSTRUCTION_SET_VARIABLE} is {wanted!r}, but this processor has {', '.join(available)}; use one of them"
        )
    return wanted


@functools.cache
def _shared_team(size: int) -> _native.ThreadTeam:
    return _native.ThreadTeam(size)


def thread_team(threads: int | None = None) -> _native.ThreadTeam:
    """The threads that all models of this process share; by default one for each processor that we may use.

    A target and its draft take turns, so threads of their own would only wait for each other.
    Raises UsageError when the number is out of range.
    """
    size = len(os.sched_getaffinity(0)) if threads is None else threads
    if not 1 <= size <= MAX_THREADS:
        raise UsageError(f"threads is {size}; it must be from 1 to {MAX_THREADS}")
    return _shared_team(size)


class NativeModel:
    """A decoder stack on the CPU. Make one with ``load``."""

    def __init__(
        self,
        engine: _native.Model,
        team: _native.ThreadTeam,
        config: ModelConfig,
        max_context: int,
        weight_bytes: int,
        head_bytes: int,
    ) -> None:
        self._engine = engine
        self._team = team
        self._weight_bytes = weight_bytes
        self._head_bytes = head_bytes
        self.config = config
        self._max_context = max_context

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        quantize: Quantize | None = None,
        dtype: Dtype = "auto",
        max_context: int | None = None,
        threads: int | None = None,
        cache_dtype: CacheDtype = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> NativeModel:
        """Pack the weights (or find them packed) and set up the engine; see ``storage`` for quantize and dtype.

        ``cache_dtype`` is the type of keys and values: auto is float32 for models whose matrices are all float32, else
        float16; int8 takes about half of that, with scales of their own for each token. ``progress(done, total)``
        counts the bytes while packing. Raises UsageError for values that cannot be, UnsupportedModel for
        shapes that the engine does not have, DiskFull, OutOfMemory.
        """
        config = checkpoint.config
        context = _checked_context(config, max_context)
        team, kernels = thread_team(threads), instruction_set()
        packed = load_packed(checkpoint, quantize, dtype, team, progress)
        frequencies, scaling = rope_frequencies(config.rope, config.head_dim, context)
        matrices = {entry[0] for name, entry in packed.tensors.items() if len(checkpoint.tensors[name].shape) == 2}
        if cache_dtype == "auto":
            cache_dtype = "float32" if matrices == {BlockType.F32.ggml_id} else "float16"
        shape = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "max_context": context,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_scaling": scaling,
            "cache_dtype": cache_dtype,
            **_expert_shape(config.experts),
        }
        windows = [config.sliding_window or 0 if slides else 0 for slides in config.sliding_layers]
        try:
            engine = _native.make_model(shape, dict(packed.tensors), packed.data, frequencies, windows, kernels, team)
        except ValueError as error:
            raise UnsupportedModel(f"{checkpoint.path} cannot be run by the native engine: {error}") from error
        except MemoryError as error:
            raise OutOfMemory(f"there is not enough memory to set up {checkpoint.path.name}; close programs") from error
        return cls(engine, team, config, context, *_bytes_read(packed, config.experts))

    @property
    def vocab_size(self) -> int:
        """Width of the rows of logits."""
        return self.config.vocab_size

    @property
    def max_context(self) -> int:
        """Largest number of tokens in a cache."""
        return self._max_context

    def profile(self, on: bool) -> dict[str, float]:
        """Seconds by phase of the forward pass since profiling was last turned on; then it is ``on``, from zero.

        Phases: embed, norm, project (queries, keys, values), rotate (and store them), attend, output, gate_up (with the
        activation), down, head (the logits). Off, which is the beginning, it costs nothing.
        """
        seconds: dict[str, float] = self._engine.profile()["seconds"]
        self._engine.set_profiling(on)
        return seconds

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights that a step reads, apart from the rows of the embedding."""
        return self._weight_bytes

    def step_bytes(self, context: int, vocab_limit: int | None = None) -> int:
        """Bytes that a step after ``context`` tokens must read: weights, keys and values; of the output layer only the
        first ``vocab_limit`` rows where that is given."""
        unread = 0 if vocab_limit is None else self._head_bytes * (self.vocab_size - vocab_limit) // self.vocab_size
        return self._weight_bytes - unread + self.cache_bytes(64) * context // 64

    def read_bandwidth(self) -> float:
        """Bytes per second that this model's threads read from memory: the best of a few times of 256 MiB once."""
        memory = np.ones(256 << 20, np.uint8)
        return max(_native.read_rate(memory, instruction_set(), self._team) for _ in range(7))

    def cache_bytes(self, positions: int) -> int:
        """Bytes that a cache of so many tokens takes."""
        return self._engine.cache_bytes(positions)

    @property
    def cache_bytes_in_use(self) -> int:
        """Bytes that all caches of this model take at present; what several share counts once."""
        return self._engine.cache_bytes_in_use

    def new_cache(self, capacity: int | None = None) -> _native.KVCache:
        """An empty cache for one sequence; its memory is taken in blocks of 64 tokens as it fills."""
        size = self._max_context if capacity is None else capacity
        if not 1 <= size <= self._max_context:
            raise UsageError(f"a cache of {size} tokens was asked for; the model's context is {self._max_context}")
        return self._engine.new_cache(size)

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        """Append every run to its cache; see ``protocol.Model.forward``.

        Raises OutOfMemory when a cache cannot grow.
        """
        caches = [_native_cache(run) for run in runs]
        counts = [run.num_logits for run in runs]
        tokens = [_token_array(run) for run in runs]
        widths = [self.vocab_size if run.vocab_limit is None else run.vocab_limit for run in runs]
        if min(counts, default=0) < 0 or not all(1 <= width <= self.vocab_size for width in widths):
            raise ValueError(
                f"the rows of logits asked for are {counts} of {widths} entries; the vocabulary has {self.vocab_size}"
            )
        try:
            rows = self._engine.forward(caches, tokens, counts, max(widths, default=1))
        except MemoryError as error:
            raise OutOfMemory("there is not enough memory to lengthen the KV cache; shorten the context") from error
        ends = accumulate(counts)
        return [rows[end - count : end, :width] for end, count, width in zip(ends, counts, widths, strict=True)]

    def draft(self, runs: Sequence[DraftRun], names: npt.NDArray[np.int32] | None = None) -> list[list[int]]:
        """See ``protocol.DraftingModel``. ``names`` int32 [V]: by which ids the noise knows the entries of the logits.

        All steps of all drafts are one call of the engine, which asks ``wants_more`` between them.
        """
        width = max(self.vocab_size if run.vocab_limit is None else run.vocab_limit for run in runs)
        if not 1 <= width <= self.vocab_size:
            raise ValueError(f"logits of {width} entries were asked for; the vocabulary has {self.vocab_size}")
        wanted = [(_native_cache(run), run.token_ids, run.max_tokens, run.choice) for run in runs]
        try:
            return self._engine.draft(wanted, width, names, lambda i, confidence: runs[i].wants_more(confidence))
        except MemoryError as error:
            raise OutOfMemory("there is not enough memory to lengthen the KV cache; shorten the context") from error
        except OverflowError as error:
            raise CheckpointError(
                "The draft model's logits are not finite numbers; its files may be damaged, so fetch them again"
            ) from error


def _expert_shape(experts: ExpertsConfig | None) -> dict[str, int]:
    if experts is None:
        return {"num_experts": 0, "num_experts_per_token": 0, "expert_size": 0, "normalise_experts": 0}
    return {
        "num_experts": experts.num_experts,
        "num_experts_per_token": experts.num_per_token,
        "expert_size": experts.intermediate_size,
        "normalise_experts": int(experts.normalise),
    }


def _bytes_read(packed: PackedModel, experts: ExpertsConfig | None) -> tuple[int, int]:
    """Of all matrices but the embedding, unless that is the output layer, too; of experts, those that a token uses.
    And of the output layer alone."""
    share = experts.num_per_token / experts.num_experts if experts is not None else 1.0
    tied = "lm_head.weight" not in packed.tensors
    sizes = {
        name: _native.packed_size(*entry[:3])
        for name, entry in packed.tensors.items()
        if "norm" not in name and "bias" not in name
    }
    read = {name: size for name, size in sizes.items() if tied or name != "model.embed_tokens.weight"}
    head = sizes["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return int(sum(size * (share if ".experts." in name else 1.0) for name, size in read.items())), head


def _native_cache(run: TokenRun | DraftRun) -> _native.KVCache:
    if not isinstance(run.cache, _native.KVCache):
        raise TypeError(f"the cache of a run is a {type(run.cache).__name__}; make it with this model's new_cache()")
    return run.cache


def _token_array(run: TokenRun) -> npt.NDArray[np.int32]:
    try:
        return np.asarray(run.token_ids, np.int32)
    except OverflowError as error:
        raise ValueError(f"a token id is outside the vocabulary: {error}") from error


def _checked_context(config: ModelConfig, max_context: int | None) -> int:
    if max_context is None:
        return config.max_context
    stretches = config.rope.rope_type == "dynamic"
    if max_context < 1 or (max_context > config.max_context and not stretches):
        raise UsageError(f"max_context is {max_context}; this model was made for 1 to {config.max_context} tokens")
    return max_context
