"""Losses are what their definitions say: sums over whole distributions, written out again here in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from draftsmith.train.chunks import by_chunks, cross_entropy
from draftsmith.train.divergences import DIVERGENCES, acceptance, accepted_lengths, bucketed, renormalised
from draftsmith.train.models import load_learner
from draftsmith.train.objectives import CrossEntropy, Distillation, Preference, preference_losses, runs_of
from draftsmith.train.packing import pack
from draftsmith.train.schema import DistillLoss
from tests.support.tiny import tiny_folder
from tests.support.training import random_store

Floats = npt.NDArray[np.float64]


def distributions(count: int, size: int, seed: int, sharpness: float = 2.0) -> torch.Tensor:
    """float64 [count, size] of log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, size, generator=generator, dtype=torch.float64) * sharpness).log_softmax(-1)


def _kl(p: Floats, q: Floats) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0))


def _jsd(p: Floats, q: Floats, beta: float = 0.3) -> float:
    middle = beta * p + (1 - beta) * q
    return beta * _kl(p, middle) + (1 - beta) * _kl(q, middle)


DEFINITIONS: dict[DistillLoss, Callable[[Floats, Floats], float]] = {
    "forward_kl": _kl,
    "reverse_kl": lambda p, q: _kl(q, p),
    "jsd": _jsd,
    "tv": lambda p, q: 0.5 * float(np.abs(p - q).sum()),
    "log_acceptance": lambda p, q: -math.log(float(np.minimum(p, q).sum())),
    "accepted_length": lambda p, q: 1 - float(np.minimum(p, q).sum()),
}


@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("size", [2, 3, 11])
def test_each_divergence_is_its_definition(loss: DistillLoss, size: int) -> None:
    log_p, log_q = distributions(40, size, 1), distributions(40, size, 2)
    values = DIVERGENCES[loss](log_p, log_q, 0.3)
    for value, p, q in zip(values.tolist(), log_p.exp().numpy(), log_q.exp().numpy(), strict=True):
        assert value == pytest.approx(DEFINITIONS[loss](p, q), abs=1e-12)
    assert torch.allclose(DIVERGENCES[loss](log_p, log_p, 0.3), torch.zeros(40, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_gradients_are_those_of_the_definition(loss: DistillLoss) -> None:
    log_p, logits = distributions(5, 7, 1), distributions(5, 7, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DIVERGENCES[loss](log_p, x.log_softmax(-1), 0.3), (logits,))


@pytest.mark.parametrize("loss", ["forward_kl", "jsd", "tv", "log_acceptance"])
def test_tokens_that_the_target_never_writes_are_harmless(loss: DistillLoss) -> None:
    log_p = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64).log()
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    value = DIVERGENCES[loss](log_p, logits.log_softmax(-1), 0.3)
    torch.autograd.backward(value.sum())
    expected = DEFINITIONS[loss](log_p.exp().numpy()[0], np.full(3, 1 / 3))
    assert value.item() == pytest.approx(expected, abs=1e-12)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_buckets_of_everything_are_the_whole_distribution() -> None:
    """With all ids stored, the stored form gives the definition; with fewer, a lower bound."""
    log_p, log_q = distributions(30, 6, 1), distributions(30, 6, 2)
    exact = DIVERGENCES["forward_kl"](log_p, log_q, 0.5)
    order = log_p.argsort(-1, descending=True)
    for count in (6, 3, 1):
        ids = order[:, :count]
        value = DIVERGENCES["forward_kl"](renormalised(log_p.gather(-1, ids)), bucketed(log_q, ids), 0.5)
        assert (value <= exact + 1e-4).all()
        if count == 6:
            assert torch.allclose(value, exact, atol=1e-4)


def test_accepted_length_is_the_expectation_over_all_outcomes() -> None:
    """Of a round of k = 3, by enumerating which draft token is the first to be rejected."""
    rates = torch.tensor([0.9, 0.5, 0.25, 0.8, 0.6], dtype=torch.float64)
    run = torch.tensor([1, 1, 1, 2, 2])
    lengths = accepted_lengths(rates, run, 3)
    for start, (following, value) in enumerate(zip(run.tolist(), lengths.tolist(), strict=True)):
        inside = [rate for rate, r in zip(rates[start:].tolist(), run[start:].tolist(), strict=True) if r == following]
        inside = inside[:3]
        expected = 0.0
        for accepted in range(len(inside) + 1):  # accepted tokens, then a rejection unless all were accepted
            stop = 1 - inside[accepted] if accepted < len(inside) else 1.0
            expected += math.prod(inside[:accepted]) * stop * (accepted + 1)
        assert value == pytest.approx(expected, abs=1e-12)


def test_chunked_cross_entropy_is_the_plain_one() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(50, 8, dtype=torch.float32, requires_grad=True)
    head = torch.randn(30, 8, dtype=torch.float32, requires_grad=True)
    labels = torch.randint(0, 30, (50,))
    logits = hidden @ head.T
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = torch.autograd.grad(plain.sum() + 1e-2 * logits.logsumexp(-1).square().sum(), (hidden, head))
    for chunk in (1, 7, 50, 64):
        values = by_chunks(cross_entropy(), hidden, head, labels, chunk=chunk)
        assert torch.allclose(values, plain, atol=1e-6)
        with_z = by_chunks(cross_entropy(1e-2), hidden, head, labels, chunk=chunk).sum()
        for ours, theirs in zip(torch.autograd.grad(with_z, (hidden, head)), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_whole_matrix_of_logits_is_never_there() -> None:
    sizes: list[int] = []

    def rows(logits: torch.Tensor) -> torch.Tensor:
        sizes.append(logits.shape[0])
        return logits.logsumexp(-1)

    hidden = torch.randn(50, 4, requires_grad=True)
    torch.autograd.backward(by_chunks(rows, hidden, torch.randn(9, 4), chunk=8).sum())
    assert max(sizes) == 8
    assert sum(sizes) == 100  # once forward, once again for the gradient


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("models")
    return str(tiny_folder(place / "draft", seed=1)), str(tiny_folder(place / "target", seed=2))


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_distillation_from_a_model_is_the_definition(
    loss: DistillLoss, folders: tuple[str, str], tmp_path: Path
) -> None:
    draft, target = (load_learner(folder).model for folder in folders)
    store = random_store(tmp_path / "store", 4)
    batch = pack(store, range(4))
    objective = Distillation(loss, 5, target, jsd_beta=0.3, draft_length=3)
    with torch.no_grad():
        value = objective.loss_sum(draft, batch).item()
        log_p, log_q = (_log_probs(model, store, 4) for model in (target, draft))
    expected = DIVERGENCES[loss](log_p, log_q, 0.3)
    if loss == "accepted_length":
        expected = -accepted_lengths(acceptance(log_p, log_q), runs_of(batch), 3)
    assert value == pytest.approx(expected.sum().item(), rel=1e-5)


def _log_probs(model: Any, store: Any, count: int) -> torch.Tensor:
    """Of the places that predict, one document at a time with the library's own forward."""
    rows = []
    for number in range(count):
        document = store.document(number)
        logits = model(torch.from_numpy(document.ids.astype(np.int64))[None]).logits[0].double()
        rows.append(logits[torch.from_numpy(np.flatnonzero(document.mask) - 1)])
    return torch.cat(rows).log_softmax(-1)


def test_stored_log_probabilities_lead_to_the_target(folders: tuple[str, str], tmp_path: Path) -> None:
    """What is stored for all ids gives nearly the loss of the distributions that it was made from."""
    model = load_learner(folders[0]).model
    store = random_store(tmp_path / "store", 3, vocabulary=256, top_k=256)
    batch = pack(store, range(3))
    assert batch.top_ids is not None
    assert batch.top_logprobs is not None
    with torch.no_grad():
        log_q = _log_probs(model, store, 3).gather(-1, torch.from_numpy(batch.top_ids))
        log_p = torch.from_numpy(batch.top_logprobs).double()
        for loss in ("forward_kl", "tv"):
            expected = DIVERGENCES[loss](log_p, log_q, 0.5).sum().item()
            value = Distillation(loss, 8).loss_sum(model, batch).item()
            assert value == pytest.approx(expected, rel=2e-2)


def test_a_pruned_vocabulary_learns_the_kept_part(folders: tuple[str, str], tmp_path: Path) -> None:
    draft, target = (load_learner(folder).model for folder in folders)
    store = random_store(tmp_path / "store", 3)
    batch = pack(store, range(3))
    kept = torch.tensor([97, 5, 98, 40, 99, 7])
    with torch.no_grad():
        log_p, log_q = (_log_probs(model, store, 3) for model in (target, draft))
        log_q = log_q[:, kept].log_softmax(-1)
        expected = (1 - torch.minimum(log_p[:, kept].exp(), log_q.exp()).sum(-1)).sum().item()
        value = Distillation("tv", 8, target, kept_ids=kept).loss_sum(draft, batch).item()
        assert value == pytest.approx(expected, rel=1e-5)
        # cross-entropy leaves out what the draft cannot write
        rows = [kept.tolist().index(label) if label in kept else -1 for label in batch.labels.tolist()]
        expected = -sum(log_q[i, row].item() for i, row in enumerate(rows) if row >= 0)
        assert CrossEntropy(8, kept_ids=kept).loss_sum(draft, batch).item() == pytest.approx(expected, rel=1e-5)


def test_dpo_is_the_formula(folders: tuple[str, str], tmp_path: Path) -> None:
    """Equation 7 of arXiv:2305.18290, from log-probabilities that the library computes for each reply alone."""
    policy, reference = (load_learner(folder).model for folder in folders)
    store = random_store(tmp_path / "store", 3, group=2)
    batch = pack(store, [2, 0, 1])
    sums = {}
    for name, model in (("policy", policy), ("reference", reference)):
        for number in range(6):
            document = store.document(number)
            ids = torch.from_numpy(document.ids.astype(np.int64))
            places = torch.from_numpy(np.flatnonzero(document.mask))
            log_probs = model(ids[None]).logits[0].double().log_softmax(-1)
            sums[name, number] = log_probs[places - 1, ids[places]].sum()
    expected = torch.stack(
        [
            -torch.sigmoid(
                0.2
                * (
                    (sums["policy", 2 * pair] - sums["reference", 2 * pair])
                    - (sums["policy", 2 * pair + 1] - sums["reference", 2 * pair + 1])
                )
            ).log()
            for pair in range(3)
        ]
    ).sum()
    parameters = list(policy.parameters())
    gradients = torch.autograd.grad(expected, parameters)
    objective = Preference(reference, 8, beta=0.2)
    value = objective.loss_sum(policy, batch)
    assert objective.terms(batch) == 3
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(value, parameters), gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_other_preference_losses_are_their_formulas() -> None:
    margins = torch.tensor([0.5, -1.5, 0.0], dtype=torch.float64)
    smooth = preference_losses(margins, beta=0.3, label_smoothing=0.1)
    ipo = preference_losses(margins, beta=0.3, ipo=True)
    for i, margin in enumerate(margins.tolist()):
        right, wrong = 1 / (1 + math.exp(-0.3 * margin)), 1 / (1 + math.exp(0.3 * margin))
        assert smooth[i].item() == pytest.approx(-0.9 * math.log(right) - 0.1 * math.log(wrong))
        assert ipo[i].item() == pytest.approx((margin - 1 / 0.6) ** 2)
    assert all(a >= 0 for a, _ in pairwise(smooth.tolist()))
