"""What speculation can gain on a mixture of experts: on paper for an 8x7B target, measured on a narrower one.

    python -m benchmarks.experts [--measure] [--threads 2] [--record NAME]

Checking m tokens touches more experts than one token does. If every token's k of E experts were drawn independently,
E (1 - (1 - k / E)^m) of a layer's experts would be read on average: an upper bound, since the tokens of one text tend
to like the same ones. While memory is the limit, v(m) is then a ratio of bytes, c is another, and the speed-up for an
acceptance a (each token accepted with this probability, given those before) is

    ((1 - a^(n + 1)) / (1 - a)) / (n c + v(n + 1))   for n draft tokens a round,

the same on every machine; bandwidth decides only how many tokens/s that is. With ``--measure``, v(m) of a Mixtral shape
with random weights and few layers is timed beside the bound; random weights route nearly independently.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.checkpoint import ModelConfig, RopeConfig, open_checkpoint
from draftsmith.checkpoint.experts import ExpertsConfig
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import expected_tensors
from draftsmith.checkpoint.tensor import LazyTensor
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun
from draftsmith.quant import BlockType, quantize

__all__ = ["MIXTRAL", "NARROW", "Shape", "distinct_experts", "speedup", "verify_cost"]

BITS = 4.5  # of a weight, block scales included
DRAFT_WEIGHTS = 1.03e9  # that a step of TinyLlama-1.1B reads: all but the embedding
MACHINES = (
    ("laptop, 2 channels of DDR5", 55e9),
    ("desktop, 2 fast channels", 90e9),
    ("server, 12 channels", 350e9),
    ("GPU with 32 GB, as one of 24 GB has no room for 26 GB", 1000e9),
)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
ACCEPTANCES = (0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Shape:
    """A mixtral: weights that every token reads, and those of one expert in one layer."""

    layers: int
    hidden: int
    inner: int
    kv: int
    vocab: int
    experts: int = 8
    used: int = 2

    @property
    def shared(self) -> float:
        """Attention of all layers, and the output layer."""
        return self.layers * 2.0 * self.hidden * (self.hidden + self.kv) + self.vocab * self.hidden

    @property
    def expert(self) -> float:
        """The three matrices of one expert."""
        return 3.0 * self.hidden * self.inner

    def read(self, num_tokens: int) -> float:
        """Weights read to check so many tokens at once, by the bound."""
        touched = distinct_experts(self.experts, self.used, num_tokens)
        return self.shared + self.layers * touched * self.expert

    @property
    def total(self) -> float:
        """All weights but the embedding."""
        return self.shared + self.layers * self.experts * self.expert


MIXTRAL = Shape(layers=32, hidden=4096, inner=14336, kv=1024, vocab=32000)
NARROW = Shape(layers=6, hidden=1024, inner=3584, kv=256, vocab=32000)


def distinct_experts(experts: int, used: int, num_tokens: int) -> float:
    """How many experts of a layer ``num_tokens`` tokens touch on average, if they choose independently."""
    return experts * (1 - (1 - used / experts) ** num_tokens)


def verify_cost(shape: Shape, num_tokens: int) -> float:
    """v(m) while memory is the limit."""
    return shape.read(num_tokens) / shape.read(1)


def speedup(shape: Shape, draft_weights: float, acceptance: float, num_draft_tokens: int) -> float:
    """Over plain decoding; see above."""
    tokens = sum(acceptance**i for i in range(num_draft_tokens + 1))
    cost = num_draft_tokens * draft_weights / shape.read(1)
    return tokens / (cost + verify_cost(shape, num_draft_tokens + 1))


def on_paper(shape: Shape) -> list[str]:
    """The tables of what can be computed."""
    plain = shape.read(1) * BITS / 8
    costs = [[m, distinct_experts(shape.experts, shape.used, m), verify_cost(shape, m)] for m in SIZES]
    gains = []
    for acceptance in ACCEPTANCES:
        each = [speedup(shape, DRAFT_WEIGHTS, acceptance, n) for n in (1, 2, 3, 4, 6, 8)]
        gains.append([f"{acceptance}", *each])
    speeds = [[name, f"{rate / 1e9:.0f} GB/s", rate / plain] for name, rate in MACHINES]
    return [
        f"Mixtral-8x7B at {BITS} bits a weight: {shape.total * BITS / 8e9:.1f} GB, of which a token reads "
        f"{plain / 1e9:.1f} GB; with a 1.1B draft of {DRAFT_WEIGHTS * BITS / 8e9:.2f} GB, "
        f"c = {DRAFT_WEIGHTS / shape.read(1):.3f}.",
        table(["tokens checked", "experts of a layer", "v(m)"], costs),
        "Speed-up by acceptance and draft length n (1 is plain):",
        table(["acceptance", *(f"n = {n}" for n in (1, 2, 3, 4, 6, 8))], gains),
        "Plain decoding at the memory's limit:",
        table(["machine", "bandwidth", "tokens/s"], speeds),
    ]


def narrow_model(folder: Path, shape: Shape) -> Path:
    """A GGUF file of this shape with random weights in Q4_0."""
    config = ModelConfig(
        architecture="mixtral",
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_layers=shape.layers,
        num_heads=shape.hidden // 64,
        num_kv_heads=shape.kv // 64,
        head_dim=64,
        rms_norm_eps=1e-5,
        max_context=2048,
        tie_embeddings=False,
        rope=RopeConfig(theta=1e6, max_position_embeddings=2048),
        experts=ExpertsConfig(
            num_experts=shape.experts,
            num_per_token=shape.used,
            intermediate_size=shape.inner,
            sparse_layers=(True,) * shape.layers,
        ),
    )

    def kind(name: str, dims: Sequence[int]) -> BlockType:
        return BlockType.Q4_0 if len(dims) == 2 and not name.endswith("mlp.gate.weight") else BlockType.F32

    def make(name: str, dims: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        rng = np.random.default_rng(len(name) + sum(map(ord, name)))
        values = rng.standard_normal(dims, np.float32)
        values = 1 + 0.1 * values if len(dims) == 1 else values * np.float32(dims[-1] ** -0.5)
        return quantize(kind(name, dims), values)

    tensors = {
        name: LazyTensor(name, kind(name, dims), dims, partial(make, name, dims))
        for name, dims in expected_tensors(config).items()
    }
    path = folder / "narrow.gguf"
    write_gguf_model(path, config, tensors)
    return path


def measured(shape: Shape, threads: int) -> dict[int, float]:
    """Median seconds of checking so many random tokens after 64 of them, all sizes in turn."""
    with tempfile.TemporaryDirectory() as folder, open_checkpoint(narrow_model(Path(folder), shape)) as checkpoint:
        model = NativeModel.load(checkpoint, threads=threads)
        rng = np.random.default_rng(0)
        cache = model.new_cache()
        model.forward([TokenRun(cache, rng.integers(0, shape.vocab, 64).tolist())])
        seconds: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(25):
            for size in SIZES:
                tokens = rng.integers(0, shape.vocab, size).tolist()
                began = time.perf_counter()
                model.forward([TokenRun(cache, tokens, size)])
                seconds[size].append(time.perf_counter() - began)
                cache.truncate(64)
    return {size: median(times) for size, times in seconds.items()}


def main() -> int:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--measure", action="store_true", help="time v(m) of a narrower shape, too")
    parser.add_argument("--threads", type=int, default=2)
    add_record_option(parser)
    options = parser.parse_args()
    parts = on_paper(MIXTRAL)
    result: dict[str, object] = {
        "verify": {m: verify_cost(MIXTRAL, m) for m in SIZES},
        "speedup": {a: {n: speedup(MIXTRAL, DRAFT_WEIGHTS, a, n) for n in range(1, 9)} for a in ACCEPTANCES},
    }
    if options.measure:
        seconds = measured(NARROW, options.threads)
        rows = [[m, s * 1e3, s / seconds[1], verify_cost(NARROW, m)] for m, s in seconds.items()]
        parts.append(
            f"Measured: {NARROW.layers} layers of width {NARROW.hidden}, 8 experts of {NARROW.inner}, Q4_0, random "
            f"weights ({NARROW.total * BITS / 8e6:.0f} MB), {options.threads} threads."
        )
        parts.append(table(["tokens checked", "ms", "v(m)", "v(m) by bytes"], rows))
        result["measured_seconds"] = seconds
    report("Mixtures of experts: what checking costs", parts, result, options.record)
    return 0


if __name__ == "__main__":
    run_script(main)
