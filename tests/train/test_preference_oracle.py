"""DPO and IPO beside TRL: the loss and every gradient of one batch, as ``DPOTrainer`` computed them once.

``data/trl_dpo.json`` holds, for models of ``tiny_folder`` with seed 0 (policy) and 1 (reference) and the pairs of
``tests.support.preferences``, TRL's mean loss in fp32 and, for each weight, its gradient's norm and its product with
numbers that rise evenly from -1 to 1. TRL itself would bring along 300 MB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftsmith.train.encode import Document
from draftsmith.train.models import load_learner
from draftsmith.train.objectives import Preference
from draftsmith.train.packing import pack
from draftsmith.train.store import StoreWriter
from tests.support.preferences import PAIRS
from tests.support.tiny import tiny_folder

RECORD = json.loads((Path(__file__).parent / "data" / "trl_dpo.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: f"{case['loss']}-{case['beta']}")
def test_loss_and_gradients_are_those_of_trl(case: dict[str, Any], tmp_path: Path) -> None:
    policy = load_learner(str(tiny_folder(tmp_path / "policy"))).model
    reference = load_learner(str(tiny_folder(tmp_path / "reference", seed=1))).model
    with StoreWriter(tmp_path / "store", 2) as writer:
        for prompt, *replies in PAIRS:
            for reply in replies:
                ids = np.array([*prompt, *reply], np.uint32)
                writer.add(Document(ids, np.arange(ids.size) >= len(prompt)))
        store = writer.finish({})
    objective = Preference(reference, 8, beta=case["beta"], ipo=case["loss"] == "ipo")
    batch = pack(store, range(len(PAIRS)))
    loss = objective.loss_sum(policy, batch) / objective.terms(batch)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(case["value"], rel=2e-5)
    assert {name for name, _ in policy.named_parameters()} == case["gradients"].keys()
    for name, parameter in policy.named_parameters():
        norm, product = case["gradients"][name]
        assert parameter.grad is not None
        gradient = parameter.grad.double().flatten()
        assert float(gradient.norm()) == pytest.approx(norm, rel=2e-4), name
        rising = torch.linspace(-1, 1, gradient.numel(), dtype=torch.float64)
        assert float(gradient @ rising) == pytest.approx(product, rel=2e-3, abs=3e-4 * norm), name
