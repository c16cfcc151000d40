"""report: every kind of result has its pictures, and files that are none are refused."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.cli import main
from draftsmith.errors import UsageError
from draftsmith.measure.document import as_html, as_markdown, reference_name
from draftsmith.measure.figures import Bar, bars, curve, heat_map, timeline
from draftsmith.measure.report import report_page

ORIGIN = {
    "models": {"target": "big", "draft": "small"}, "weights_sha256": {"target": {"big.gguf": "ab" * 32}},
    "cpu": "Made up", "cpus": 2, "git_commit": None, "date": "2026-01-01T00:00:00+00:00", "draftsmith": "0",
    "python": "3", "platform": "Linux", "options": {}, "prompts": "built in", "cost_context": 120,
    "differences": [], "certificate_sha256": "cd" * 32,
}  # fmt: skip
GROUP = {
    "prompts": 2, "tokens_per_s": 60.0, "plain_tokens_per_s": 40.0, "speedup": 1.5, "speedup_ci95": [1.2, 1.8],
    "predicted_speedup": 1.6, "worst_prompt_speedup": 1.1, "acceptance_rate": 0.7, "mean_acceptance_length": 3.1,
    "identical": True,
}  # fmt: skip
BENCH: dict[str, Any] = {
    **GROUP,
    "tokens": 99,
    "plain": {"tokens_per_s": 40.0, "step_s": 0.02},
    "speculative": {
        **GROUP, "drafter": "small", "acceptance_by_position": [0.9, 0.5],
        "time_share": {"target": 0.7, "draft": 0.2, "other": 0.1}, "memory": {"target_bytes": 10**8},
    },
    "by_category": {"code <&>": GROUP},
    "draft_cost_c": 0.2,
    "verify_cost_v": {"2": 1.1, "16": 2.0},
    "provenance": ORIGIN,
    "details": {
        "timeline": [{"drafted": 3, "accepted": 1}, {"drafted": 0, "accepted": 0}],
        "roofline": {
            "read_bandwidth": 10e9,
            "phases": [
                {"phase": "plain step", "bytes": 10**8, "seconds": 0.02, "share_of_bandwidth": 0.5},
                {"phase": "draft step", "bytes": 10**6, "seconds": 0.0001, "share_of_bandwidth": 1.0},
            ],
        },
    },
}  # fmt: skip
GRID = {
    "accuracy": 0.75,
    "accuracy_ci95": [0.3, 0.95],
    "cells": [{"length": n, "depth": d, "hits": 1 + (d == 0), "trials": 2} for n in (512, 1024) for d in (0, 1)],
}
EVAL = {
    "tasks": {
        "perplexity": {
            "perplexity": 9.0, "tokens": 100, "windows": 1, "context": 101,
            "by_position": [{"start": 1, "end": 64, "tokens": 63, "perplexity": 10.0}],
        },
        "needle": GRID,
        "variables": {
            "accuracy": 0.4,
            "by_length": [{"length": 512, "trials": 1, "accuracy": 0.4, "asked": 5, "found": 2, "perfect": 0}],
        },
        "format": {
            "adherence": 0.5, "adherence_ci95": [0.1, 0.9], "replies": 2, "temperature": 0.7,
            "by_turn": [{"turn": 1, "replies": 2, "kept": 1, "began_another": 1, "ran_on": 0, "empty": 0}],
        },
        "acceptance": [
            {"temperature": 0.7, "context": 128, "replies": 2, "acceptance_rate": 0.5, "mean_acceptance_length": 2.0}
        ],
    },
    "provenance": ORIGIN,
}  # fmt: skip
PLAN = {
    "recommendation": {"advice": "Use small with --num-draft-tokens 4: expect 1.50x, measured 1.48x."},
    "candidates": [
        {
            "draft": "a/small",
            "num_draft_tokens": 4,
            "predicted_speedup": 1.5,
            "predicted_speedup_ci95": [1.3, 1.7],
            "measured_speedup": 1.48,
            "measured_speedup_auto": None,
            "acceptance_rate": 0.6,
            "mean_acceptance_length": 2.4,
            "draft_cost_c": 0.125,
        }
    ],
    "provenance": ORIGIN,
}


def test_every_picture_is_well_formed() -> None:
    pictures = [
        bars("a < b", [Bar("x & y", 1.5, "1.5", (1.0, 2.0)), Bar("z", 0.0, "0")], mark=1.0),
        curve("v", {1.0: 1.0, 16.0: 2.0}, x_name="m", y_name="v(m)"),
        timeline("rounds", [(3, 1), (0, 0), (5, 5)]),
        heat_map("grid", ["512"], ["0%", "100%"], [[(1, 2)], [(0, 2)]]),
    ]
    for picture in pictures:
        root = ElementTree.fromstring(picture)  # noqa: S314 (our own text)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            for name, limit in (("x", width), ("y", height), ("cx", width), ("cy", height), ("x2", width)):
                assert 0 <= float(element.attrib.get(name, 0)) <= limit, ElementTree.tostring(element)


@pytest.mark.parametrize("top", [0.0021, 0.99, 1.08, 2.9, 3.3, 10.0, 77.0, 2500.0])
def test_axes_have_round_numbers(top: float) -> None:
    picture = ElementTree.fromstring(curve("v", {1.0: top / 1.08}, x_name="x", y_name="y"))  # noqa: S314
    labels = [
        one.text or "" for one in picture.iter() if one.get("class") == "soft" and one.get("text-anchor") == "end"
    ]
    assert 3 <= len(labels) <= 7
    assert labels[0] == "0"
    assert all(len(label.strip("0.")) <= 2 for label in labels), labels
    assert float(labels[-1]) <= top * 1.0001


def test_the_page_has_everything_and_needs_nothing() -> None:
    page = report_page([("bench.json", BENCH), ("eval.json", EVAL), ("plan.json", PLAN)])
    html = as_html(page)
    assert html.count("<svg") == 5 + 3 + 1  # bench: categories, positions, costs, roofline, rounds; eval: 3; plan: 1
    assert not re.search(r"https?:|<script|src=|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert "code &lt;&amp;&gt;" in html
    text = as_markdown(page)
    for words in (
        "1.50x",
        "bonus token included",
        "accepted / draft tokens",
        "Use small with",
        "| a/small | 4 | 1.50x | 1.48x |  | 60% | 2.40 | 0.125 |",
        "5.0 GB/s, 50%",
        "2/2",
        "10.00 ms | 20.00 ms",
    ):
        assert words in text, words


def test_pages_name_files_and_not_where_they_lie() -> None:
    bench: dict[str, Any] = copy.deepcopy(BENCH)
    plan: Any = copy.deepcopy(PLAN)
    bench["speculative"]["drafter"] = "/home/me/small.gguf+lookup"
    bench["provenance"]["models"]["target"] = plan["provenance"]["models"]["target"] = "~/models/big.gguf"
    plan["candidates"][0]["draft"] = "/home/me/small.gguf"
    plan["recommendation"]["advice"] = "Use /home/me/small.gguf with --num-draft-tokens 4."
    text = as_html(report_page([("bench.json", bench), ("plan.json", plan)]))
    for words in ("big.gguf and its drafter", "small.gguf+lookup: 60.0", "Use small.gguf with"):
        assert words in text
    assert "/home" not in text
    assert "~/models" not in text
    assert reference_name("org/name@main") == "org/name@main"


@pytest.mark.parametrize("value", [BENCH, EVAL, PLAN])
def test_incomplete_results_are_refused_in_one_sentence(value: dict[str, Any]) -> None:
    damaged = copy.deepcopy(value)
    damaged["provenance"] = {}
    with pytest.raises(UsageError, match="incomplete") as caught:
        report_page([("x.json", damaged)])
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, page = tmp_path / "bench.json", tmp_path / "page.html"
    source.write_text(json.dumps(BENCH))
    assert main(["report", str(source), "--output", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert main(["report", str(source)]) == 0
    assert capsys.readouterr().out.startswith("# big and its drafter")


@pytest.mark.parametrize(
    ("content", "args", "said"),
    [
        ("{", (), "is not JSON"),
        ("[]", (), "is no result of bench, certify, plan or eval"),
        ("{}", ("--output", "x.pdf"), "ends in .html or .md"),
    ],
)
def test_what_is_no_result_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, args: tuple[str, ...], said: str
) -> None:
    source = tmp_path / "x.json"
    source.write_text(content)
    assert main(["report", str(source), *args]) == 2
    assert said in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing.json")]) == 2
