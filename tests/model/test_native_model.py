"""Loading a model into the native engine: what is taken, what is refused, and what one model may do to another."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftsmith.checkpoint import Checkpoint, RopeConfig, Tensor
from draftsmith.errors import UnsupportedModel, UsageError
from draftsmith.model import _native
from draftsmith.model.native import INSTRUCTION_SET_VARIABLE, NativeModel, instruction_set, thread_team
from draftsmith.model.protocol import Logits, TokenRun
from draftsmith.quant import BlockType
from tests.support.native_models import Recipe, make_checkpoint
from tests.support.tiny_models import small_config


def read(model: NativeModel, token_ids: list[int]) -> Logits:
    [logits] = model.forward([TokenRun(model.new_cache(), token_ids, len(token_ids))])
    return logits


def load(folder: Path, recipe: Recipe | None = None, **options: Any) -> NativeModel:
    with make_checkpoint(folder, recipe or Recipe()) as checkpoint:
        return NativeModel.load(checkpoint, **{"threads": 1, **options})


def test_a_model_outlives_what_it_was_made_from(tmp_path: Path) -> None:
    model = load(tmp_path, Recipe(types={"": BlockType.Q8_0}, gguf=True))
    cache = model.new_cache()
    [before] = model.forward([TokenRun(cache, [1, 2, 3], 3)])
    for path in [*tmp_path.rglob("*.gguf"), *Path(os.environ["DRAFTSMITH_CACHE"]).rglob("*.dspack")]:
        path.unlink()
    del cache
    gc.collect()
    assert read(model, [1, 2, 3]).tobytes() == before.tobytes()


def test_logits_outlive_the_model(tmp_path: Path) -> None:
    model = load(tmp_path)
    logits = read(model, [5, 6, 7])
    copy = logits.copy()
    del model
    gc.collect()
    assert logits.tobytes() == copy.tobytes()


def test_the_context_may_be_shortened_but_not_lengthened(tmp_path: Path) -> None:
    model = load(tmp_path, max_context=10)
    assert model.max_context == model.new_cache().capacity == 10
    for capacity in (0, -1, 11):
        with pytest.raises(UsageError, match=f"cache of {capacity} tokens"):
            model.new_cache(capacity)
    with pytest.raises(ValueError, match="does not fit"):
        read(model, [1] * 11)
    for context in (0, -5, 401):
        with pytest.raises(UsageError, match=f"max_context is {context}"):
            load(tmp_path, max_context=context)


def test_memory_of_a_cache_is_taken_as_it_fills(tmp_path: Path) -> None:
    model = load(tmp_path, cache_dtype="float32")
    cache = model.new_cache()
    assert cache.allocated_bytes == 0
    block = model.cache_bytes(64)
    assert block == 64 * 2 * 2 * 2 * 16 * 4  # positions, layers, keys and values, heads, head size, bytes
    for tokens, blocks in ((1, 1), (63, 1), (1, 2), (64, 3)):
        model.forward([TokenRun(cache, [1] * tokens)])
        assert cache.allocated_bytes == blocks * block == model.cache_bytes(cache.length)
    assert load(tmp_path, cache_dtype="float16").cache_bytes(64) == block // 2


def test_what_a_step_reads(tmp_path: Path) -> None:
    """All matrices but the embedding, once; keys and values of the text; the asked rows of the output layer."""
    model, config = load(tmp_path, cache_dtype="float32"), small_config()
    hidden, heads, inner = config.hidden_size, config.head_dim, config.intermediate_size
    attention = hidden * heads * 2 * (config.num_heads + config.num_kv_heads)
    head = config.vocab_size * hidden
    matrices = 4 * (config.num_layers * (attention + 3 * hidden * inner) + head)
    assert model.step_bytes(0) == model.weight_bytes == matrices
    assert model.step_bytes(64) - matrices == 2 * (model.step_bytes(32) - matrices) == model.cache_bytes(64)
    assert matrices - model.step_bytes(0, vocab_limit=32) == 4 * head * 3 // 4
    tied = load(tmp_path, Recipe(config={"tie_embeddings": True}))
    assert tied.weight_bytes == matrices
    assert model.read_bandwidth() > 1e8


@pytest.mark.parametrize(("head_dim", "padded"), [(16, 32), (64, 64), (80, 96)])
def test_eight_bit_caches_take_about_half(tmp_path: Path, head_dim: int, padded: int) -> None:
    """Codes, a scale for each 32 columns of a key (columns padded to that) and one for each value."""
    recipe = Recipe(config={"head_dim": head_dim})
    key, value = padded + padded // 32 * 2, head_dim + 2
    assert load(tmp_path, recipe, cache_dtype="int8").cache_bytes(64) == 64 * 2 * 2 * (key + value)


def test_eight_bit_caches_lose_little(tmp_path: Path) -> None:
    """Against the same model with a float32 cache: small changes of the logits, but changes."""
    recipe, text = Recipe(config={"head_dim": 64}), [(7 * i) % 128 for i in range(390)]
    exact = read(load(tmp_path, recipe, cache_dtype="float32"), text)
    coarse = read(load(tmp_path, recipe, cache_dtype="int8"), text)
    difference = np.abs(coarse - exact)
    assert 0 < difference.mean() < 0.02 * exact.std()
    assert np.quantile(difference, 0.999) < 0.2 * exact.std()


BIASED: dict[str, Any] = {
    "architecture": "qwen2",
    "qkv_bias": True,
    "head_dim": 64,
    "rope": RopeConfig(theta=1e6, max_position_embeddings=256),
}


def _other_weights(folder: Path, change: Callable[[str, Logits], Logits], text: list[int]) -> tuple[Logits, Logits]:
    """Logits of a model with biases and with some weights changed, with a float32 and with an 8-bit cache."""
    with make_checkpoint(folder, Recipe(config=BIASED)) as checkpoint:
        tensors = {
            name: dataclasses.replace(
                tensor, block_type=BlockType.F32, stored=change(name, tensor.dequantize()).reshape(-1).view(np.uint8)
            )
            for name, tensor in checkpoint.tensors.items()
        }
        other = _with(checkpoint, tensors, folder / "other.gguf")
        exact, coarse = (read(NativeModel.load(other, threads=1, cache_dtype=d), text) for d in ("float32", "int8"))
    return exact, coarse


def test_eight_bit_caches_lose_no_more_where_keys_have_large_biases(tmp_path: Path) -> None:
    """Some models have biases that are hundreds of times what differs from one key to the next. They are rotated; where
    RoPE is slow they stay nearly the same from one position to the next.
    """
    slow = np.where(np.arange(64) % 32 >= 20, np.float32(400), np.float32(0))  # pairs that turn by 2e-4 a position

    def change(name: str, values: Logits) -> Logits:
        return (values.reshape(-1, 64) + slow).reshape(-1) if name.endswith("k_proj.bias") else values

    exact, coarse = _other_weights(tmp_path, change, [(7 * i) % 128 for i in range(390)])
    difference = np.abs(coarse - exact)
    assert 0 < difference.mean() < 0.03 * exact.std()  # as without biases; rounded, they would cost 0.5
    assert np.quantile(difference, 0.999) < 0.2 * exact.std()


def test_biases_of_values_are_not_rounded(tmp_path: Path) -> None:
    """Where values are nothing but biases, 8 bits cost nothing but the rounding of sums."""

    def change(name: str, values: Logits) -> Logits:
        return np.zeros_like(values) if name.endswith("v_proj.weight") else values

    exact, coarse = _other_weights(tmp_path, change, [(7 * i) % 128 for i in range(90)])
    assert np.abs(coarse - exact).max() < 1e-5 * exact.std()


def test_forks_share_memory_until_one_of_them_writes(tmp_path: Path) -> None:
    model = load(tmp_path)
    block = model.cache_bytes(64)
    origin = model.new_cache()
    assert model.cache_bytes_in_use == 0
    assert [origin.growth(count) // block for count in (0, 1, 64, 65)] == [0, 1, 1, 2]
    model.forward([TokenRun(origin, [1] * 100)])
    fork = origin.fork(100)
    assert model.cache_bytes_in_use == 2 * block
    assert fork.growth(1) == origin.growth(1) == block  # a copy of the second block
    assert fork.growth(64) == 2 * block
    model.forward([TokenRun(fork, [2])])
    assert model.cache_bytes_in_use == 3 * block
    assert fork.growth(1) == origin.growth(1) == 0
    whole = origin.fork(64)
    assert whole.growth(1) == block
    assert model.cache_bytes_in_use == 3 * block
    del origin, whole
    gc.collect()
    assert model.cache_bytes_in_use == 2 * block
    del fork
    gc.collect()
    assert model.cache_bytes_in_use == 0


@pytest.mark.parametrize(
    ("types", "load_options", "full"),
    [
        (BlockType.F32, {}, True),
        (BlockType.F16, {}, False),
        (BlockType.F32, {"quantize": "8bit"}, False),
        (BlockType.Q8_0, {"dtype": "float32"}, True),
        (BlockType.F32, {"cache_dtype": "float16"}, False),
        (BlockType.Q4_0, {"cache_dtype": "float32"}, True),
    ],
)
def test_caches_are_f16_unless_all_is_f32(
    types: BlockType, load_options: dict[str, Any], full: bool, tmp_path: Path
) -> None:
    model = load(tmp_path, Recipe(types={"": types}), **load_options)
    assert model.cache_bytes(64) == 64 * 2 * 2 * 2 * 16 * (4 if full else 2)


def test_unfolding_blocks_to_float32_keeps_their_values(tmp_path: Path) -> None:
    """A dense model with the dequantised values, and the same by way of dtype float32: equal to the bit."""
    with make_checkpoint(tmp_path, Recipe(types={"": BlockType.Q4_1})) as blocks:
        unfolded = NativeModel.load(blocks, dtype="float32", threads=1)
        dense = {
            name: dataclasses.replace(
                tensor, block_type=BlockType.F32, stored=tensor.dequantize().reshape(-1).view(np.uint8)
            )
            for name, tensor in blocks.tensors.items()
        }
        plain = NativeModel.load(_with(blocks, dense, tmp_path / "other.gguf"), threads=1)
    assert read(unfolded, [3, 1, 4, 1, 5]).tobytes() == read(plain, [3, 1, 4, 1, 5]).tobytes()


def _with(checkpoint: Checkpoint, tensors: dict[str, Tensor], path: Path) -> Checkpoint:
    """The same checkpoint with other tensors, and so with another identity."""
    path.write_bytes(checkpoint.path.read_bytes())
    from draftsmith.checkpoint import open_checkpoint

    return dataclasses.replace(open_checkpoint(path), config=checkpoint.config, tensors=tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_blocks_are_never_rounded_a_second_time(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Q4_1.*second time"):
        load(tmp_path, Recipe(types={"": BlockType.Q4_1}), dtype=dtype)


def test_quantize_leaves_blocks_as_they_are(tmp_path: Path) -> None:
    recipe = Recipe(types={"": BlockType.Q8_0})
    plain, squeezed = load(tmp_path, recipe), load(tmp_path, recipe, quantize="4bit")
    assert read(plain, [1, 2]).tobytes() == read(squeezed, [1, 2]).tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 24, "num_heads": 2}, "head dimension is 24"),
        ({"head_dim": 272, "num_heads": 1, "num_kv_heads": 1}, "head dimension is 272"),
        ({"hidden_size": 56}, "multiples of 16"),
        ({"intermediate_size": 100}, "multiples of 16"),
    ],
)
def test_shapes_that_the_engine_lacks_are_refused_in_one_sentence(
    changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        load(tmp_path, Recipe(config=changes))
    assert "\n" not in str(caught.value)


def test_kernels_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert instruction_set() == _native.instruction_sets()[-1]
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, "portable")
    assert instruction_set() == "portable"
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, "")
    assert instruction_set() == _native.instruction_sets()[-1]
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, "neon")
    with pytest.raises(UsageError, match=r"DRAFTSMITH_ISA is 'neon'.*portable"):
        load(tmp_path)


def test_threads_are_shared_and_counted(tmp_path: Path) -> None:
    assert thread_team().size == len(os.sched_getaffinity(0))
    assert thread_team(2) is thread_team(2)
    for threads in (0, -1, 257):
        with pytest.raises(UsageError, match=f"threads is {threads}"):
            load(tmp_path, threads=threads)


def test_more_threads_than_work(tmp_path: Path) -> None:
    assert read(load(tmp_path, threads=9), [1, 2, 3]).tobytes() == read(load(tmp_path), [1, 2, 3]).tobytes()


def test_a_later_token_cannot_spoil_an_earlier_one(tmp_path: Path) -> None:
    """Values of a token beyond the range of the f16 cache: the tokens before it must not notice, checked together."""
    with make_checkpoint(tmp_path, Recipe()) as checkpoint:
        tensors = dict(checkpoint.tensors)
        embedding = tensors["model.embed_tokens.weight"].dequantize().copy()
        embedding[:, 0] = 0
        embedding[99, 0] = 8  # token 99 alone has something in the first dimension, and that becomes a huge value
        value = tensors["model.layers.0.self_attn.v_proj.weight"].dequantize().copy()
        value[:, 0] = 1e6
        for name, values in (
            ("model.embed_tokens.weight", embedding),
            ("model.layers.0.self_attn.v_proj.weight", value),
        ):
            tensors[name] = dataclasses.replace(tensors[name], stored=values.reshape(-1).view(np.uint8))
        model = NativeModel.load(_with(checkpoint, tensors, tmp_path / "other.gguf"), threads=1, cache_dtype="float16")
    alone = read(model, [1, 2, 3, 4])
    assert np.isfinite(alone).all()
    for length in (1, 2, 3, 4):  # rows are worked on in fours: some token is in the same four as token 99
        assert read(model, [*[1, 2, 3, 4][:length], 99])[:length].tobytes() == alone[:length].tobytes()


OTHER_CACHE = """
import sys
from pathlib import Path
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun
from tests.support.native_models import Recipe, make_checkpoint

folder = Path(sys.argv[1])
big = NativeModel.load(make_checkpoint(folder, Recipe(config={"num_layers": 12, "num_kv_heads": 4}), 1), threads=1)
small = NativeModel.load(make_checkpoint(folder, Recipe(config={"num_layers": 1, "num_kv_heads": 1}), 2), threads=1)
cache = small.new_cache()
try:
    big.forward([TokenRun(cache, list(range(100)))])
except ValueError as error:
    assert cache.length == 0
    print("refused:", error)
"""


def test_the_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    """In a process of its own: an engine that does not look would write outside the cache's memory."""
    root = Path(__file__).resolve().parents[2]
    source = str(Path(sys.modules["draftsmith"].__path__[0]).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(root)])}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_CACHE, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("refused:"), (done.returncode, done.stdout, done.stderr[-300:])


def test_dynamic_rope_is_stretched_to_the_context_asked_for(tmp_path: Path) -> None:
    rope = RopeConfig(theta=10000.0, max_position_embeddings=64, rope_type="dynamic", factor=2.0)
    recipe = Recipe(config={"rope": rope, "max_context": 64})
    assert small_config(**recipe.config).max_context == 64
    short, long = load(tmp_path, recipe), load(tmp_path, recipe, max_context=128)
    assert (short.max_context, long.max_context) == (64, 128)
    assert read(short, [1, 2, 3]).tobytes() != read(long, [1, 2, 3]).tobytes()
