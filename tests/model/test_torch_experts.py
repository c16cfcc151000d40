"""Experts in 4 bits: nothing of them stays in 16, and what comes out is what their unfolded weights give."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

import bitsandbytes.functional as bnb
import numpy as np
import torch

from draftsmith.errors import UnsupportedModel, UsageError
from draftsmith.model.protocol import TokenRun
from draftsmith.model.torch_backend import TorchModel, TorchOptions, load_torch_model
from draftsmith.model.torch_backend.experts import PackedExperts, expert_tensors, pack_experts
from tests.support.torch_models import CONTEXT, random_module, torch_folder

IDS = [5, 9, 3, 7, 60, 2, 8, 30]
CPU = torch.device("cpu")


def logits(module: Any) -> np.ndarray[Any, Any]:
    model = TorchModel(module, max_context=CONTEXT)
    return model.forward([TokenRun(model.new_cache(), IDS, num_logits=len(IDS))])[0]


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_packed_experts_compute_with_their_unfolded_weights(architecture: str) -> None:
    packed, unfolded = random_module(architecture), random_module(architecture)
    for part, name in expert_tensors(unfolded):
        whole = getattr(part, name).data
        for i, weight in enumerate(whole):
            whole[i] = bnb.dequantize_4bit(*bnb.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4"))
    before = logits(packed)
    assert pack_experts(packed, CPU) == len(list(expert_tensors(unfolded))) > 0
    assert not list(expert_tensors(packed))
    np.testing.assert_allclose(logits(packed), logits(unfolded), atol=2e-4)
    assert np.abs(logits(packed) - before).max() > 1e-2  # they were rounded


def test_a_folder_is_loaded_so(tmp_path: Path) -> None:
    folder = torch_folder(tmp_path / "model", "mixtral", intermediate_size=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_torch_model(folder, "model", TorchOptions(quantize="4bit"))
    layer = model.module.model.layers[0]
    assert isinstance(layer.mlp.experts.gate_up_proj, PackedExperts)
    assert type(layer.self_attn.q_proj).__name__ == "Linear4bit"
    assert max(p.numel() for p in layer.parameters() if p.dtype == torch.float32) < 64 * 128
    whole = load_torch_model(folder, "model", TorchOptions())
    [rows] = model.forward([TokenRun(model.new_cache(), IDS)])
    [expected] = whole.forward([TokenRun(whole.new_cache(), IDS)])
    assert np.corrcoef(rows[0][97:112], expected[0][97:112])[0, 1] > 0.8


def test_what_cannot_be_done_is_one_sentence(tmp_path: Path) -> None:
    folder = torch_folder(tmp_path / "model", "mixtral", intermediate_size=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="8bit, which would leave the experts of model in 16 bits; take 4bit"):
            load_torch_model(folder, "model", TorchOptions(quantize="8bit"))
    with pytest.raises(UnsupportedModel, match="experts of GptOssExperts are kept in a form that cannot be quantised"):
        pack_experts(random_module("gpt_oss"), CPU)
    experts = PackedExperts(torch.randn(2, 64, 64), CPU)
    with pytest.raises(UnsupportedModel, match="calls matmul on its experts, which cannot be done in 4 bits"):
        torch.matmul(torch.randn(1, 64), experts[0])  # type: ignore[arg-type]
