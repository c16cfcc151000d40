"""The JSON object of ``generate --json`` has the shape that docs/cli.md promises; the status line is honest."""

from __future__ import annotations

import dataclasses
import json

from draftsmith.cli.report import completion_json, status_line
from draftsmith.types import Completion, SpeculationStats, Timing

SPECULATIVE = Completion(
    text="hé",
    token_ids=(1, 2, 3, 4),
    from_draft=(False, True, True, False),
    finish_reason="stop",
    num_prompt_tokens=7,
    seed=5,
    timing=Timing(load_s=0.5, prefill_s=0.1, decode_s=0.03, num_decoded=3),
    speculation=SpeculationStats("lookup", 2, 8, 2, (1, 1)),
)
PLAIN = dataclasses.replace(SPECULATIVE, speculation=None, from_draft=(False,) * 4)


def test_json_shape() -> None:
    assert json.loads(json.dumps(completion_json(SPECULATIVE))) == {
        "text": "hé",
        "token_ids": [1, 2, 3, 4],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 4},
        "timing": {"load_s": 0.5, "prefill_s": 0.1, "decode_s": 0.03, "tokens_per_s": 3 / 0.03},
        "speculation": {
            "drafter": "lookup",
            "num_drafts": 2,
            "num_draft_tokens": 8,
            "num_accepted_tokens": 2,
            "num_accepted_tokens_per_pos": [1, 1],
            "acceptance_rate": 0.25,
            "mean_acceptance_length": 2.0,
        },
    }


def test_plain_decoding_has_no_speculation() -> None:
    assert completion_json(PLAIN)["speculation"] is None


def test_status_line() -> None:
    line = status_line(SPECULATIVE, plain_step_s=0.02)
    assert line == "4 tokens · 100 tokens/s · lookup: 2 of 8 accepted (25%) · ≈2.0x plain"


def test_status_line_without_drafter_claims_no_speed_up() -> None:
    assert status_line(PLAIN, plain_step_s=0.02) == "4 tokens · 100 tokens/s · no drafter"


def test_status_line_tells_of_a_cut_and_of_empty_drafts() -> None:
    empty = dataclasses.replace(SPECULATIVE, speculation=SpeculationStats("lookup"), finish_reason="length")
    assert status_line(empty, None) == "4 tokens · 100 tokens/s · lookup: nothing drafted · cut at the length limit"
