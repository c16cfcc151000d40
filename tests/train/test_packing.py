"""Packing: every document once, bins that hold, and no leakage: packed and single documents have equal losses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.train.encode import Document
from draftsmith.train.models import load_learner
from draftsmith.train.objectives import CrossEntropy, hidden_states, runs_of
from draftsmith.train.packing import pack, plan_bins, spread
from draftsmith.train.store import StoreWriter, TokenStore
from tests.support.tiny import tiny_folder
from tests.support.training import random_store


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=300),
    st.integers(50, 120),
    st.integers(0, 2**40),
    st.integers(0, 5),
)
def test_bins_hold_every_group_once(lengths: list[int], capacity: int, seed: int, epoch: int) -> None:
    array = np.array(lengths, np.int64)
    bins = plan_bins(array, capacity, seed, epoch)
    assert Counter(group for groups in bins for group in groups) == Counter(range(len(lengths)))
    assert all(sum(lengths[group] for group in groups) <= capacity for groups in bins)
    assert bins == plan_bins(array, capacity, seed, epoch)


def test_bins_are_well_filled_and_differ_between_epochs() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 2000)
    bins = plan_bins(lengths, 2048, 0, 0)
    assert lengths.sum() / (len(bins) * 2048) > 0.95
    assert bins != plan_bins(lengths, 2048, 0, 1)


def test_a_batch_says_where_everything_is(tmp_path: Path) -> None:
    first = Document(np.array([5, 6, 7, 8], np.uint32), np.array([False, True, True, False]))
    second = Document(np.array([9, 3, 4], np.uint32), np.array([False, False, True]))
    with StoreWriter(tmp_path / "store") as writer:
        for document in (first, second):
            writer.add(document)
        store = writer.finish({})
    batch = pack(store, [1, 0])
    assert batch.ids.tolist() == [9, 3, 4, 5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert (batch.at.tolist(), batch.labels.tolist()) == ([1, 3, 4], [4, 6, 7])
    assert (batch.document.tolist(), batch.lengths) == ([0, 1, 1], (3, 4))
    assert runs_of(batch).tolist() == [1, 2, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return random_store(tmp_path_factory.mktemp("data") / "store", 9)


def test_packed_loss_is_the_unpacked_loss(folder: Path, store: TokenStore) -> None:
    """Losses and gradients: of all documents in one batch, and of each alone, put together."""
    model = load_learner(str(folder)).model
    objective = CrossEntropy(chunk=16)
    packed = objective.loss_sum(model, pack(store, range(9)))
    torch.autograd.backward(packed)
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    single = sum(objective.loss_sum(model, pack(store, [number])) for number in range(9))
    assert isinstance(single, torch.Tensor)
    torch.autograd.backward(single)
    assert abs(packed.item() - single.item()) <= 1e-6 * abs(single.item())
    for one, other in zip(together, model.parameters(), strict=True):
        assert torch.allclose(one, other.grad, rtol=1e-4, atol=1e-5)


def test_a_document_does_not_see_its_neighbours(folder: Path, store: TokenStore) -> None:
    """Byte by byte: its hidden states are the same whoever stands before it."""
    model = load_learner(str(folder)).model
    with torch.no_grad():
        after_one = hidden_states(model, pack(store, [0, 5]))
        after_other = hidden_states(model, pack(store, [1, 5]))
    learnt = int(store.learnt[5])
    assert torch.allclose(after_one[-learnt:], after_other[-learnt:], atol=1e-6)
    assert not torch.allclose(after_one[:3], after_other[:3], atol=1e-3)


def test_plain_transformers_gives_the_same_loss(folder: Path, store: TokenStore) -> None:
    """The oracle: the library's own attention and loss, one document at a time."""
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total = 0.0
    for number in range(9):
        document = store.document(number)
        ids = torch.from_numpy(document.ids.astype(np.int64))[None]
        labels = ids.masked_fill(~torch.from_numpy(np.array(document.mask)), -100)
        with torch.no_grad():
            total += float(oracle(ids, labels=labels).loss) * int(document.mask.sum())
    ours = CrossEntropy(chunk=7).loss_sum(load_learner(str(folder)).model, pack(store, range(9)))
    assert ours.item() == pytest.approx(total, rel=1e-6)


def test_sliding_windows_hold_within_documents(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.support.hf_models import random_model
    from tests.support.made_tokenizers import byte_level_json

    random_model(tmp_path, "mistral", sliding_window=7)
    (tmp_path / "tokenizer.json").write_bytes(byte_level_json("gpt-2"))
    store = random_store(tmp_path / "store", 3, vocabulary=199)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    model = load_learner(str(tmp_path)).model
    for number in range(3):
        ids = torch.from_numpy(store.document(number).ids.astype(np.int64))[None]
        with torch.no_grad():
            expected = oracle.model(ids).last_hidden_state[0]
            batch = pack(store, [(number + 1) % 3, number])
            ours = hidden_states(model, batch)[-int(store.learnt[number]) :]
        assert torch.allclose(
            ours, expected[torch.from_numpy(np.flatnonzero(store.document(number).mask) - 1)], atol=1e-4
        )


def test_positions_are_spread_over_a_longer_context(store: TokenStore) -> None:
    """Two runs a document, from 0, within the context; all distances occur, and the seed decides."""
    batch = pack(store, range(9))
    farthest = []
    for seed in range(200):
        wide = spread(batch, 1000, (seed, 0, 0))
        assert wide.ids is batch.ids
        start = 0
        for length in batch.lengths:
            positions = wide.positions[start : start + length]
            steps = np.diff(positions)
            assert positions[0] == 0
            assert (steps > 1).sum() <= 1
            assert (steps >= 1).all()
            assert positions[-1] < 1000
            farthest.append(int(positions[-1]))
            start += length
    assert min(farthest) < 60
    assert max(farthest) > 990
    again = spread(batch, 1000, (3, 0, 0)).positions
    assert (again == spread(batch, 1000, (3, 0, 0)).positions).all()
    assert (spread(batch, 20, (3, 0, 0)).positions <= batch.positions.max()).all()
