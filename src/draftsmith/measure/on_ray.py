"""Perplexity and acceptance by the workers of Ray: windows and prompts are shared out, each worker has its own engine.

What comes out is what one engine measures: losses are added in the windows' order, counts are whole numbers. Drafts
whose length follows measured costs (``auto``) differ from run to run anyway; with a fixed length counts are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np

from draftsmith.engine import LLM
from draftsmith.engine.ray_workers import on_ray, seen_from_anywhere
from draftsmith.measure.acceptance import AcceptanceRow, added_up, measure_acceptance
from draftsmith.measure.conversation import Report, tell_nobody
from draftsmith.measure.perplexity import PerplexityResult, summed_up, window_losses
from draftsmith.measure.prompts import PromptItem
from draftsmith.types import SamplingParams

__all__ = ["acceptance_on_ray", "perplexity_on_ray"]

Options = Mapping[str, Any]
"""The keyword arguments of ``LLM``."""


def perplexity_on_ray(
    options: Options, windows: Sequence[Sequence[int]], context: int, workers: int, report: Report = tell_nobody
) -> PerplexityResult:
    """``perplexity.measure_perplexity`` of ``perplexity.cut_windows``. Raises UsageError, DraftsmithError."""
    found: dict[int, bytes] = {}
    for number, content in on_ray(partial(_start_reading, _portable(options), windows), range(len(windows)), workers):
        report(len(found), len(windows), "perplexity")
        found[number] = content
    return summed_up([np.frombuffer(found[number], np.float64) for number in range(len(windows))], context)


def acceptance_on_ray(
    options: Options,
    items: Sequence[PromptItem],
    temperatures: Sequence[float],
    sampling: SamplingParams,
    workers: int,
    report: Report = tell_nobody,
) -> tuple[AcceptanceRow, ...]:
    """``acceptance.measure_acceptance``. Raises UsageError, DraftsmithError."""
    rows: list[AcceptanceRow] = []
    start = partial(_start_answering, _portable(options), items, temperatures, sampling)
    for done, (_, content) in enumerate(on_ray(start, range(len(items)), workers)):
        report(done, len(items), "acceptance")
        rows += [AcceptanceRow(*row) for row in json.loads(content)]
    return added_up(rows)


def _portable(options: Options) -> Options:
    """With models that workers find."""
    named = {key: seen_from_anywhere(str(options[key])) for key in ("target", "draft") if options.get(key)}
    return {**options, **named}


def _start_reading(options: Options, windows: Sequence[Sequence[int]]) -> Callable[[int], bytes]:
    model = LLM(**options).target.model
    return lambda number: window_losses(model, windows[number]).tobytes()


def _start_answering(
    options: Options, items: Sequence[PromptItem], temperatures: Sequence[float], sampling: SamplingParams
) -> Callable[[int], bytes]:
    llm = LLM(**options)

    def answer(number: int) -> bytes:
        rows = measure_acceptance(llm, [items[number]], temperatures, sampling)
        return json.dumps([astuple(row) for row in rows]).encode()

    return answer
