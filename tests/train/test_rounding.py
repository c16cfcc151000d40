"""Rounded weights while learning: those that the packed file will hold, with gradients for what lies beneath."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from draftsmith.quant import BlockType, dequantize, quantize
from draftsmith.train.models import load_learner
from draftsmith.train.rounding import computing_once, round_blocks, round_weights, stop_rounding
from draftsmith.train.schema import RoundTo
from draftsmith.train.vocabulary import prune, restore
from tests.support.tiny import tiny_folder

IDS = torch.tensor([[104, 105, 33, 104]])


def stored(weight: torch.Tensor, blocks: RoundTo) -> torch.Tensor:
    kind = BlockType[blocks]
    values = weight.detach().numpy()
    return torch.from_numpy(dequantize(kind, quantize(kind, values), values.shape))


@pytest.mark.parametrize("blocks", ["Q4_1", "Q8_0"])
def test_rounded_values_are_stored_without_loss(blocks: RoundTo) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 64)[:, None]
    weight[3] = 0.0
    weight[4] = 0.25
    rounded = round_blocks(weight, blocks)
    assert torch.allclose(stored(rounded, blocks), rounded, rtol=2e-3, atol=1e-7)
    lost, least = (rounded - weight).square().sum(), (stored(weight, blocks) - weight).square().sum()
    assert 0 < least <= lost * (1 + 1e-6) < 1.3 * least
    assert torch.allclose(rounded[3:5], weight[3:5], rtol=1e-3, atol=0)


def test_8_bits_are_those_of_the_file() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    assert np.allclose(round_blocks(weight, "Q8_0").numpy(), stored(weight, "Q8_0").numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_computes_with_them_and_learns_what_is_beneath(tmp_path: Path, tied: bool) -> None:
    folder = str(tiny_folder(tmp_path / "tiny"))
    model, plain = (load_learner(folder).model for _ in range(2))
    for each in (model, plain):
        if tied:
            each.get_output_embeddings().weight = each.get_input_embeddings().weight
        prune(each, torch.tensor([256, 104, 105, 33]))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    round_weights(model, "Q4_1")
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim == 2:
                parameter.copy_(round_blocks(parameter, "Q4_1"))
    with computing_once():
        ours, theirs = model(IDS).logits, plain(IDS).logits
    assert torch.equal(ours, theirs)
    gradients = [
        torch.autograd.grad(logits.square().sum(), list(each.parameters()))
        for logits, each in ((ours, model), (theirs, plain))
    ]
    # The order of parameters may differ; a tied matrix is one of them in both.
    assert sorted(float(g.norm()) for g in gradients[0]) == pytest.approx(sorted(float(g.norm()) for g in gradients[1]))
    stop_rounding(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    restore(model, torch.tensor([256, 104, 105, 33]), None if tied else torch.zeros(260, 64))
    assert model(IDS).logits.shape[-1] == 260
