"""The bits of a row of logits depend on the checkpoint and the tokens before it, and on nothing else.

The reference is the plainest run there is: portable kernels, one thread, one sequence, one token at a time. Whatever
else is done with the same tokens must give its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftsmith.checkpoint.experts import ExpertsConfig
from draftsmith.model import _native
from draftsmith.model.native import INSTRUCTION_SET_VARIABLE, NativeModel
from draftsmith.model.protocol import KVCache, Logits, TokenRun
from draftsmith.quant import BlockType
from tests.support.native_models import Recipe, make_checkpoint

SETS = _native.instruction_sets()
VOCAB_SIZE = 128
LENGTH = 330  # more than a pass of 256 rows, and into a sixth block of 64 positions
NUM_TEXTS = 4
# Lengths on both sides of every border, for a batch of sixteen.
RAGGED = (1, 2, 63, 64, 65, 127, 128, 129, 191, 200, 255, 256, 257, 300, 319, 330)

K_BLOCKS = {"": BlockType.Q4_K, "embed_tokens": BlockType.Q6_K, "down_proj": BlockType.Q6_K, "v_proj": BlockType.Q5_K}
OLD_BLOCKS = {"": BlockType.Q4_0, "o_proj": BlockType.Q5_0, "k_proj": BlockType.Q5_1, "lm_head": BlockType.Q8_0}
MIXED = {"": BlockType.BF16, "up_proj": BlockType.Q4_1, "q_proj": BlockType.F32, "lm_head": BlockType.F16}
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_heads": 4, "num_kv_heads": 1, "head_dim": 64}
SLIDING = {"sliding_window": 70, "sliding_layers": (True, True)}


def experts(number: int = 4, used: int = 2, size: int = 96, **changes: Any) -> ExpertsConfig:
    values: dict[str, Any] = {"sparse_layers": (True, True), **changes}
    return ExpertsConfig(num_experts=number, num_per_token=used, intermediate_size=size, **values)


RECIPES = {
    "float32": Recipe(),
    "bfloat16": Recipe(types={"": BlockType.BF16}),
    "8 bits": Recipe(load={"quantize": "8bit"}),
    "4 bits, tied": Recipe(config={"tie_embeddings": True}, load={"quantize": "4bit"}),
    "K blocks from a GGUF file": Recipe(config=WIDE, types=K_BLOCKS, gguf=True),
    "old blocks": Recipe(types=OLD_BLOCKS),
    "mixed types": Recipe(types=MIXED, config={"num_kv_heads": 4}),
    "sliding window": Recipe(types={"": BlockType.F16}, config={"architecture": "mistral", **SLIDING}),
    "a layer slides, biases": Recipe(
        config={"architecture": "qwen2", "qkv_bias": True, "sliding_window": 24, "sliding_layers": (False, True)},
        load={"quantize": "8bit"},
    ),
    "q and k norms, head size 80": Recipe(
        config={"architecture": "qwen3", "qk_norm": True, "head_dim": 80, "num_heads": 3, "num_kv_heads": 1},
        load={"quantize": "8bit", "cache_dtype": "float32"},
    ),
    "experts": Recipe(config={"architecture": "mixtral", "experts": experts()}),
    "experts from a GGUF file": Recipe(
        config={**WIDE, "architecture": "qwen3_moe", "qk_norm": True, "experts": experts(11, 3, 256)},
        types=K_BLOCKS,
        gguf=True,
    ),
    "experts in 4 bits, a dense layer, odd size": Recipe(
        config={
            "architecture": "qwen3_moe",
            "experts": experts(5, 4, 160, sparse_layers=(True, False), normalise=False),
        },
        load={"quantize": "4bit"},
    ),
    "8-bit keys and values": Recipe(
        types={"": BlockType.Q8_0}, config={"num_heads": 6, "head_dim": 64}, load={"cache_dtype": "int8"}
    ),
    "8-bit keys and values, biases": Recipe(
        config={"architecture": "qwen2", "qkv_bias": True}, load={"quantize": "8bit", "cache_dtype": "int8"}
    ),
    "8-bit keys and values, biases, a window, head size 80": Recipe(
        config={
            "architecture": "qwen2",
            "qkv_bias": True,
            "head_dim": 80,
            "num_heads": 3,
            "num_kv_heads": 1,
            "sliding_window": 24,
            "sliding_layers": (False, True),
        },
        load={"quantize": "8bit", "cache_dtype": "int8"},
    ),
    "8-bit keys and values, a window, head size 80": Recipe(
        config={"architecture": "mistral", "head_dim": 80, "num_heads": 3, "num_kv_heads": 1, **SLIDING},
        load={"quantize": "4bit", "cache_dtype": "int8"},
    ),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under all kernel sets and with one and two threads, and what it must answer."""

    models: dict[tuple[str, int], NativeModel]
    texts: tuple[tuple[int, ...], ...]  # [NUM_TEXTS][LENGTH]
    expected: tuple[Logits, ...]  # [NUM_TEXTS], each [LENGTH, V]

    @property
    def model(self) -> NativeModel:
        return self.models[SETS[-1], 2]


@pytest.fixture(scope="module", params=RECIPES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("models")
    models = {}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DRAFTSMITH_CACHE", str(folder / "cache"))
        recipe = RECIPES[request.param]
        with make_checkpoint(folder, recipe) as checkpoint:
            for name in SETS:
                environment.setenv(INSTRUCTION_SET_VARIABLE, name)
                for threads in (1, 2):
                    models[name, threads] = NativeModel.load(
                        checkpoint, threads=threads, max_context=None, **recipe.load
                    )
    rng = np.random.default_rng(1)
    texts = tuple(tuple(rng.integers(0, VOCAB_SIZE, LENGTH).tolist()) for _ in range(NUM_TEXTS))
    plain = models["portable", 1]
    expected = []
    for text in texts:
        cache = plain.new_cache()
        expected.append(np.concatenate([plain.forward([TokenRun(cache, [token])])[0] for token in text]))
    return Subject(models, texts, tuple(expected))


def same(logits: Logits, expected: Logits) -> bool:
    return logits.shape == expected.shape and logits.tobytes() == expected.tobytes()


def test_the_logits_say_something(subject: Subject) -> None:
    """Equal bytes of nonsense would be worth nothing: rows are finite, of a fair size, and all different."""
    rows = np.concatenate(subject.expected)
    assert np.isfinite(rows).all()
    assert 0.1 < rows.std() < 100
    assert len({row.tobytes() for row in rows}) > 0.9 * len(rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SETS)
def test_a_whole_text_at_once(subject: Subject, name: str, threads: int) -> None:
    model = subject.models[name, threads]
    for text, expected in zip(subject.texts[:2], subject.expected[:2], strict=True):
        [logits] = model.forward([TokenRun(model.new_cache(), text, LENGTH)])
        assert same(logits, expected)


@pytest.mark.parametrize("size", range(1, 17))
def test_a_batch_of_ragged_texts(subject: Subject, size: int) -> None:
    """One forward for all, each of its own length; then one token more for all, as in decoding."""
    name = "portable" if size == 3 else SETS[-1 - size % min(2, len(SETS))]
    model = subject.models[name, 1 + size // 2 % 2]
    order = np.random.default_rng(size).permutation(16)[:size]
    members = [(i % NUM_TEXTS, min(RAGGED[i], LENGTH - 1)) for i in order]
    caches = [model.new_cache() for _ in members]
    runs = [
        TokenRun(cache, subject.texts[t][:length], length) for (t, length), cache in zip(members, caches, strict=True)
    ]
    for (t, length), logits in zip(members, model.forward(runs), strict=True):
        assert same(logits, subject.expected[t][:length])
    runs = [
        TokenRun(cache, subject.texts[t][length : length + 1])
        for (t, length), cache in zip(members, caches, strict=True)
    ]
    for (t, length), logits in zip(members, model.forward(runs), strict=True):
        assert same(logits, subject.expected[t][length : length + 1])


@pytest.mark.parametrize("num_logits", [0, 1, 2, 7, 299, 300])
def test_the_number_of_rows_asked_for(subject: Subject, num_logits: int) -> None:
    model = subject.model
    runs = [TokenRun(model.new_cache(), text[:300], num_logits) for text in subject.texts]
    for logits, expected in zip(model.forward(runs), subject.expected, strict=True):
        assert same(logits, expected[300 - num_logits : 300])


@pytest.mark.parametrize("limit", [1, 15, 16, 17, 100, VOCAB_SIZE])
def test_a_part_of_the_vocabulary(subject: Subject, limit: int) -> None:
    """Some runs want the first entries alone, others all: each entry is the one that it is in a full row."""
    model = subject.model
    runs = [
        TokenRun(model.new_cache(), text[: 280 + i], 270, vocab_limit=limit if i % 2 else None)
        for i, text in enumerate(subject.texts)
    ]
    for i, logits in enumerate(model.forward(runs)):
        expected = subject.expected[i][10 + i : 280 + i]
        assert same(logits, expected[:, :limit] if i % 2 else expected)
    [logits] = model.forward([TokenRun(model.new_cache(), subject.texts[0], 300, vocab_limit=limit)])
    assert same(logits, subject.expected[0][30:, :limit])


@settings(max_examples=8)
@given(
    cuts=st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=12),
    name=st.sampled_from(SETS),
    threads=st.integers(1, 2),
)
def test_any_cut_of_the_prompt(subject: Subject, cuts: list[int], name: str, threads: int) -> None:
    model = subject.models[name, threads]
    cache = model.new_cache()
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), LENGTH], strict=True):
        [logits] = model.forward([TokenRun(cache, subject.texts[0][first:last], last - first)])
        assert same(logits, subject.expected[0][first:last])


class Sequence16:
    """One text being written, with tokens that turn out to be wrong."""

    def __init__(self, subject: Subject, model: NativeModel, index: int) -> None:
        self.text, self.expected = subject.texts[index], subject.expected[index]
        self.cache = model.new_cache()

    def run(self, right: int, wrong: Sequence[int]) -> tuple[TokenRun, Logits]:
        """A run of ``right`` tokens of the text and then ``wrong`` ones, and the rows that are known beforehand."""
        start = self.cache.length
        known = self.text[start : start + right]
        run = TokenRun(self.cache, [*known, *wrong], len(known) + len(wrong))
        return run, self.expected[start : start + len(known)]


@settings(max_examples=12)
@given(data=st.data(), name=st.sampled_from(SETS), threads=st.integers(1, 2))
def test_any_schedule_of_drafts_and_truncations(subject: Subject, data: st.DataObject, name: str, threads: int) -> None:
    """Runs of any size in batches of any kind, with wrong tokens at their ends that are then forgotten."""
    model = subject.models[name, threads]
    sequences = [Sequence16(subject, model, i) for i in range(NUM_TEXTS)]
    for _ in range(data.draw(st.integers(1, 6))):
        members = [s for s in sequences if s.cache.length < LENGTH and data.draw(st.booleans())]
        lengths = [data.draw(st.one_of(st.integers(1, 5), st.integers(1, 140))) for _ in members]
        drafts = [data.draw(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8)) for _ in members]
        runs = [s.run(length, draft) for s, length, draft in zip(members, lengths, drafts, strict=True)]
        capacity = members[0].cache.capacity if members else 0
        fitting = [i for i, (run, _) in enumerate(runs) if run.cache.length + len(run.token_ids) <= capacity]
        results = model.forward([runs[i][0] for i in fitting])
        for i, logits in zip(fitting, results, strict=True):
            known = runs[i][1]
            assert same(logits[: len(known)], known)
            back = data.draw(st.one_of(st.just(0), st.integers(0, len(known) + 3)))
            cache = members[i].cache
            cache.truncate(max(0, cache.length - len(drafts[i]) - back))


def test_a_cache_is_reused_from_the_start(subject: Subject) -> None:
    """Text after text in one cache: the longer one first, so that old keys and values lie behind the new ones."""
    model = subject.model
    cache = model.new_cache()
    for index, length in ((0, 330), (1, 129), (2, 64), (3, 65), (0, 1), (1, 330)):
        cache.truncate(0)
        [logits] = model.forward([TokenRun(cache, subject.texts[index][:length], length)])
        assert same(logits, subject.expected[index][:length])


def test_a_prefix_is_shared_between_turns(subject: Subject) -> None:
    """The second text replaces the first from some position on, as an edited chat does."""
    model, first = subject.model, subject.texts[0]
    for keep in (1, 63, 64, 100, 256):
        other = [*first[:keep], *reversed(first[keep:])]
        [expected] = model.forward([TokenRun(model.new_cache(), other, LENGTH)])
        assert same(expected[:keep], subject.expected[0][:keep])
        cache = model.new_cache()
        model.forward([TokenRun(cache, first)])
        cache.truncate(keep)
        [logits] = model.forward([TokenRun(cache, other[keep:], LENGTH - keep)])
        assert same(logits, expected[keep:])


@pytest.mark.parametrize("keep", [0, 1, 63, 64, 65, 128, 150, 199, 200])
def test_caches_that_begin_alike_part(subject: Subject, keep: int) -> None:
    """A fork shares memory with its origin; each goes on with its own tokens, and neither notices the other."""
    model, text, expected = subject.model, subject.texts[0], subject.expected[0]
    other = [*text[:keep], *subject.texts[1][keep:230]]
    [wanted] = model.forward([TokenRun(model.new_cache(), other, 230)])
    origin = model.new_cache()
    model.forward([TokenRun(origin, text[:200])])
    twins = [origin.fork(keep) for _ in range(3)]
    assert [twin.length for twin in twins] == [keep] * 3
    rows = 230 - keep
    runs = [TokenRun(twins[0], other[keep:], rows), TokenRun(origin, text[200:230], 30)]
    first, second = model.forward(runs)
    assert same(first, wanted[keep:])
    assert same(second, expected[200:230])
    [third] = model.forward([TokenRun(twins[1], text[keep:230], rows)])
    assert same(third, expected[keep:230])
    origin.truncate(keep)
    del twins[0]
    [fourth] = model.forward([TokenRun(origin, other[keep:], rows)])
    assert same(fourth, wanted[keep:])
    [fifth] = model.forward([TokenRun(twins[-1], text[keep:230], rows)])
    assert same(fifth, expected[keep:230])
    with pytest.raises(ValueError, match="fork"):
        origin.fork(231)


def test_checking_a_draft_costs_no_bit(subject: Subject) -> None:
    """The use that all this is for: after any prompt, 1 to 17 tokens checked at once."""
    model, text, expected = subject.model, subject.texts[2], subject.expected[2]
    for start in (1, 55, 60, 64, 120, 248, 256, 300):
        cache = model.new_cache()
        model.forward([TokenRun(cache, text[:start])])
        for count in range(1, 18):
            [logits] = model.forward([TokenRun(cache, text[start : start + count], count)])
            assert same(logits, expected[start : start + count])
            cache.truncate(start)


def test_python_threads_may_share_a_model(subject: Subject) -> None:
    model = subject.model

    def read(index: int) -> bool:
        [logits] = model.forward([TokenRun(model.new_cache(), subject.texts[index][:90], 90)])
        return same(logits, subject.expected[index][:90])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [0, 1, 2, 3] * 4))


def test_models_that_share_threads_do_not_disturb_each_other(subject: Subject) -> None:
    models = [subject.models[name, 2] for name in SETS]

    def read(index: int) -> bool:
        model = models[index % len(models)]
        [logits] = model.forward([TokenRun(model.new_cache(), subject.texts[0][:70], 70)])
        return same(logits, subject.expected[0][:70])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(read, range(12)))


def refuse(model: NativeModel, runs: Sequence[TokenRun], message: str) -> None:
    lengths = [run.cache.length for run in runs]
    with pytest.raises(ValueError, match=message):
        model.forward(runs)
    assert [run.cache.length for run in runs] == lengths


def test_a_refused_forward_changes_no_cache(subject: Subject) -> None:
    model, text = subject.model, subject.texts[0]
    good, bad = model.new_cache(), model.new_cache(66)
    model.forward([TokenRun(good, text[:62]), TokenRun(bad, text[:62])])
    fine = TokenRun(good, text[62:64])

    def with_tokens(token_ids: Sequence[int], num_logits: int = 1) -> list[TokenRun]:
        return [fine, TokenRun(bad, token_ids, num_logits)]

    refuse(model, with_tokens(text[62:67]), r"5 tokens does not fit.* 62 of at most 66")
    for outside in (-1, VOCAB_SIZE, 2**31 - 1, 2**31, 2**32, 2**63, -(2**40)):
        refuse(model, with_tokens([1, outside]), "outside the vocabulary")
    refuse(model, with_tokens([]), "no tokens")
    refuse(model, with_tokens([1], 2), "more rows of logits")
    refuse(model, with_tokens([1], -1), "rows of logits")
    for limit in (0, -1, VOCAB_SIZE + 1, 2**60):
        refuse(model, [fine, TokenRun(bad, [1], vocab_limit=limit)], "vocabulary")
    refuse(model, [fine, TokenRun(good, [1])], "share one cache")
    [first, second] = model.forward([TokenRun(good, text[62:70], 8), TokenRun(bad, text[62:66], 4)])
    assert same(first, subject.expected[0][62:70])
    assert same(second, subject.expected[0][62:66])
    assert model.forward([]) == []


def test_caches_keep_their_bounds(subject: Subject) -> None:
    model, text = subject.model, subject.texts[0]
    cache: KVCache = model.new_cache()
    assert (cache.length, cache.capacity) == (0, model.max_context)
    model.forward([TokenRun(cache, text[:65])])
    for length in (66, -1, 2**40):
        with pytest.raises(ValueError, match="truncate"):
            cache.truncate(length)
    assert cache.length == 65
    cache.truncate(65)
    cache.truncate(3)
    assert cache.length == 3
