"""Folders that were quantised elsewhere: they give the logits of the weights that their blocks stand for.

The packages that unpack them are no part of the extra ``torch``: GPTQ and AWQ want ``gptqmodel`` (GPTQ also
``optimum``), the others ``compressed-tensors`` and ``torchao``. Where they are not installed, these tests are skipped;
what is said then is tested in ``tests/engine/test_backend.py``.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TorchAoConfig

from draftsmith.errors import UsageError
from draftsmith.model.protocol import TokenRun
from draftsmith.model.torch_backend import TorchModel, TorchOptions, load_torch_model
from draftsmith.speculate import FixedLength, PromptLookupDrafter, generate
from draftsmith.types import Request, SamplingParams
from tests.support.torch_models import torch_folder

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of the eight weights in a word
IDS = [*b"some text that comes before some text"]
Packed = dict[str, torch.Tensor]


def words(values: torch.Tensor) -> torch.Tensor:
    """int32 [n, m] of [n, m, 8] numbers from 0 to 15, the first in the lowest bits."""
    whole = sum(values[..., i].long() << (4 * i) for i in range(8))
    return torch.where(torch.as_tensor(whole) >= 2**31, whole - 2**32, whole).int()


def by_columns(values: torch.Tensor) -> torch.Tensor:
    return words(values.reshape(values.shape[0], -1, 8))


def by_rows(values: torch.Tensor) -> torch.Tensor:
    return by_columns(values.T.contiguous()).T.contiguous()


def gptq(q: torch.Tensor, scales: torch.Tensor) -> Packed:
    """``q`` [out, in] from 0 to 15, ``scales`` [out, groups]; zeros are stored less one."""
    zeros = torch.full((scales.shape[1], scales.shape[0]), 7)
    groups = (torch.arange(q.shape[1]) // GROUP).int()
    return {"qweight": by_rows(q.T), "scales": scales.T, "qzeros": by_columns(zeros), "g_idx": groups}


def awq(q: torch.Tensor, scales: torch.Tensor) -> Packed:
    """The same, eight outputs in a word."""
    zeros = torch.full((scales.shape[1], scales.shape[0]), 8)
    order = [8 * i + j for i in range(q.shape[0] // 8) for j in AWQ_ORDER]
    return {"qweight": by_columns(q.T[:, order]), "scales": scales.T, "qzeros": by_columns(zeros[:, order])}


def compressed(q: torch.Tensor, scales: torch.Tensor) -> Packed:
    """The ``pack-quantized`` format of compressed-tensors."""
    return {"weight_packed": by_columns(q), "weight_scale": scales, "weight_shape": torch.tensor(q.shape)}


WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
FORMATS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Packed], dict[str, Any], tuple[str, ...]]] = {
    "gptq": (gptq, {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}, ("gptqmodel", "optimum")),
    "awq": (awq, {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}, ("gptqmodel",)),
    "compressed-tensors": (
        compressed,
        {
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
        },
        ("compressed_tensors",),
    ),
}


def quantised_folder(folder: Path, plain: Path, method: str) -> Path:
    """``plain`` in such blocks; its own weights become what the blocks stand for."""
    pack, settings, _ = FORMATS[method]
    shutil.copytree(plain, folder)
    weights, stored = load_file(plain / "model.safetensors"), dict[str, torch.Tensor]()
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        grouped = weight.reshape(weight.shape[0], -1, GROUP)
        scales = (grouped.abs().amax(-1, keepdim=True) / 7).half().float()
        q = (grouped / scales).round().clamp(-8, 7)
        weights[name] = (q * scales).reshape(weight.shape)
        packed = pack((q + 8).long().reshape(weight.shape), scales[..., 0].half())
        stored |= {f"{name.removesuffix('.weight')}.{part}": tensor.contiguous() for part, tensor in packed.items()}
    for place, tensors in ((plain, weights), (folder, stored)):
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    config = {**stated, "quantization_config": {"quant_method": method, **settings}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def loaded(folder: Path) -> TorchModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that unpack
        return load_torch_model(folder, folder.name, TorchOptions())


def logits(model: TorchModel, ids: Sequence[int]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.forward([TokenRun(model.new_cache(), ids, num_logits=len(ids))])[0]


def check_drafts(model: TorchModel) -> None:
    """A text with drafts is the one without."""
    params = SamplingParams(greedy=True, max_new_tokens=20, ignore_eos=True, seed=0)
    request = Request(prompt_ids=tuple(IDS), sampling=params)
    texts = []
    for session in (None, PromptLookupDrafter(2, 1).start(request, "coupled")):
        rounds = generate(model, model.new_cache(), request, session=session, policy=FixedLength(3))
        texts.append([i for written in rounds for i in written.token_ids])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("method", FORMATS)
def test_blocks_of_other_tools_are_read(method: str, tmp_path: Path) -> None:
    missing = [package for package in FORMATS[method][2] if find_spec(package) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    plain = torch_folder(tmp_path / "plain", "llama", intermediate_size=128)
    before = logits(loaded(plain), IDS)
    folder = quantised_folder(tmp_path / method, plain, method)
    model = loaded(folder)
    found, expected = logits(model, IDS), logits(loaded(plain), IDS)
    scale = float(np.abs(expected).max())
    assert np.abs(found - expected).max() < 5e-3 * scale  # kernels of 16 bits
    assert np.abs(before - expected).max() > 2e-2 * scale  # what rounding to blocks did is seen
    check_drafts(model)
    with pytest.raises(UsageError, match="is quantised already; leave it out"):
        load_torch_model(folder, "model", TorchOptions(quantize="4bit"))


def test_folders_of_torchao_are_read(tmp_path: Path) -> None:
    quantization: Any = pytest.importorskip("torchao.quantization")
    plain = torch_folder(tmp_path / "plain", "olmo2", intermediate_size=128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
        module: Any = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, quantization_config=config)
        module.save_pretrained(tmp_path / "int8")
    model = loaded(tmp_path / "int8")
    assert type(model.module.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    expected = module(torch.tensor([IDS])).logits[0].float().detach().numpy()
    np.testing.assert_allclose(logits(model, IDS), expected, atol=1e-4)
    check_drafts(model)
