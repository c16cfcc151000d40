"""One model on both backends of this machine: speed, what checking several tokens costs, and how often texts part.

    python -m benchmarks.backends [--target REF] [--tokens N] [--record NAME]

Texts are written plainly and with prompt lookup, greedily; ``parted`` counts the replies that the drafter changed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.common import PROMPTS, add_record_option, report, run_script, table
from draftsmith.engine import DEFAULT_TARGET, LLM
from draftsmith.measure.costs import measure_costs
from draftsmith.types import Message, SamplingParams


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run the model."""

    name: str
    options: dict[str, Any]


WAYS = (
    Way("native, as in the file", {"backend": "native"}),
    Way("native, float32", {"backend": "native", "dtype": "float32"}),
    Way("torch, float32", {"backend": "torch", "dtype": "float32"}),
    Way("torch, float32, exact", {"backend": "torch", "dtype": "float32", "exact": True}),
    Way("torch, bfloat16", {"backend": "torch", "dtype": "bfloat16"}),
    Way("torch, bfloat16, exact", {"backend": "torch", "dtype": "bfloat16", "exact": True}),
)


def main() -> None:
    """Measure every way in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--only", help="ways whose names contain this")
    add_record_option(parser)
    options = parser.parse_args()
    rows = [measure(way, options.target, options.tokens) for way in WAYS if (options.only or "") in way.name]
    shown = table(
        ["backend", "tokens/s", "with lookup", "v(2)", "v(4)", "v(8)", "load, s", "parted"],
        [
            [
                row["way"],
                row["plain_tokens_per_s"],
                row["lookup_tokens_per_s"],
                *row["verify_cost_v"],
                row["load_s"],
                f"{row['parted']} of {row['replies']}",
            ]
            for row in rows
        ],
    )
    packages = ("torch", "transformers")
    report(f"{options.target} on both backends", [shown], {"ways": rows}, options.record, packages=packages)


def measure(way: Way, target: str, tokens: int) -> dict[str, Any]:
    """One row of the table."""
    plain = LLM(target, "none", **way.options)
    lookup = LLM(plain.target, "lookup", num_draft_tokens=7)
    params = SamplingParams(greedy=True, max_new_tokens=tokens, ignore_eos=True)
    parted, plain_speeds, lookup_speeds = 0, [], []
    for prompt in PROMPTS:
        one, other = (llm.chat([Message("user", prompt.text)], params) for llm in (plain, lookup))
        parted += one.token_ids != other.token_ids
        plain_speeds.append(one.timing.tokens_per_s)
        lookup_speeds.append(other.timing.tokens_per_s)
    text = plain.tokenizer.encode(PROMPTS[1].text)
    costs = measure_costs(plain.target.model, None, text, repeats=7, sizes=(1, 2, 4, 8)).verify
    return {
        "way": way.name,
        "plain_tokens_per_s": round(median(plain_speeds), 2),
        "lookup_tokens_per_s": round(median(lookup_speeds), 2),
        "verify_cost_v": [round(costs[size], 2) for size in (2, 4, 8)],
        "load_s": round(plain.load_s, 2),
        "parted": parted,
        "replies": len(PROMPTS),
    }


if __name__ == "__main__":
    run_script(main)
