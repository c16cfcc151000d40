"""Rotary frequencies equal those of ``transformers`` for every scaling, in both spellings of the config."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from draftsmith.checkpoint import RopeConfig, rope_frequencies
from draftsmith.checkpoint.folder_config import folder_config
from draftsmith.checkpoint.json_file import JsonObject
from draftsmith.errors import CheckpointError
from tests.support.tiny_models import HF_LLAMA

HEAD_DIM = 16
LONG = [1.0 + 0.5 * index for index in range(8)]
SHORT = [1.0 + 0.01 * index for index in range(8)]
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn, all options": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "beta_fast": 16.0,
        "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False,
    },
    "yarn, own attention factor": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attention_factor": 1.7,
    },
    "longrope": {
        "rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT, "original_max_position_embeddings": 512,
    },
    "longrope with a factor": {
        "rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT, "original_max_position_embeddings": 512,
        "factor": 3.0,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}  # fmt: skip


def described(scaling: dict[str, Any], spelling: str, theta: float) -> dict[str, Any]:
    """A config.json as transformers 4 or 5 writes it."""
    values: dict[str, Any] = {**HF_LLAMA, "max_position_embeddings": 2048}
    del values["rope_theta"]
    if spelling == "rope_parameters":
        return {**values, "rope_parameters": {**scaling, "rope_theta": theta}}
    if spelling == "rope_scaling with type":
        scaling = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    return {**values, "rope_theta": theta, "rope_scaling": scaling if len(scaling) > 1 else None}


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling", "rope_scaling with type"])
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_agrees_with_transformers(scaling: dict[str, Any], spelling: str, theta: float) -> None:
    values = json.loads(json.dumps(described(scaling, spelling, theta)))
    rope = folder_config(JsonObject(Path("config.json"), values)).rope
    reference = LlamaConfig(**values)
    for context in (256, 2048, 8192):
        if scaling["rope_type"] == "default":
            expected, expected_scaling = LlamaRotaryEmbedding(reference).get_buffer("inv_freq"), 1.0
        else:
            compute = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
            expected, expected_scaling = compute(reference, seq_len=context)
        frequencies, attention_scaling = rope_frequencies(rope, HEAD_DIM, context)
        assert frequencies.dtype == np.float32
        np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
        assert attention_scaling == pytest.approx(expected_scaling, rel=1e-9)


def test_the_context_at_load_decides() -> None:
    """Dynamic and longrope have two faces; which one is shown depends on the context asked for, not on any text."""
    values = described(SCALINGS["longrope"], "rope_parameters", 10000.0)
    rope = folder_config(JsonObject(Path("config.json"), values)).rope
    plain = 10000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(rope_frequencies(rope, HEAD_DIM, 512)[0], plain / SHORT, rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(rope, HEAD_DIM, 513)[0], plain / LONG, rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(rope, HEAD_DIM)[0], plain / LONG, rtol=1e-6)
    dynamic = RopeConfig(theta=10000.0, max_position_embeddings=512, rope_type="dynamic", factor=2.0)
    np.testing.assert_allclose(rope_frequencies(dynamic, HEAD_DIM)[0], plain, rtol=1e-6)
    assert (rope_frequencies(dynamic, HEAD_DIM, 1024)[0][1:] < plain[1:]).all()


def test_frequency_factors_divide() -> None:
    rope = RopeConfig(theta=10000.0, max_position_embeddings=512, frequency_factors=tuple(LONG))
    plain = RopeConfig(theta=10000.0, max_position_embeddings=512)
    scaled, factor = rope_frequencies(rope, HEAD_DIM)
    np.testing.assert_allclose(scaled * np.array(LONG), rope_frequencies(plain, HEAD_DIM)[0], rtol=1e-6)
    assert factor == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "longrope", "long_factor": (1.0,)}, "states 1 longrope factors; there must be 8"),
        ({"frequency_factors": (0.0,) * 8}, "states 8 frequency factors; there must be 8, all above 0"),
        ({"rope_type": "llama3", "high_freq_factor": 1.0}, "they must differ"),
        ({"rope_type": "yarn", "attention_factor": math.inf}, "no finite frequencies"),
    ],
)
def test_refuses_contradictions(changes: dict[str, Any], message: str) -> None:
    rope = RopeConfig(**{"theta": 10000.0, "max_position_embeddings": 512, "factor": 4.0, **changes})
    with pytest.raises(CheckpointError, match=message):
        rope_frequencies(rope, HEAD_DIM, 1024)
