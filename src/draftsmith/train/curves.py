"""The curves of a stage as a picture, ``curves.png``: drawn by matplotlib where it is installed (extra ``train``)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draftsmith.checkpoint.atomic import atomic_file

__all__ = ["PICTURE", "Artist", "panels_of"]

PICTURE = "curves.png"
_EVERY_S = 60.0
_SMOOTH = 0.05  # of the steps: the width of the running mean
_SET = "learning rate"  # is set, not measured: it is drawn as it was
_PANELS: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (
    ("loss", (("loss", "training"), ("eval_loss", "held out"))),
    ("acceptance", (("eval_acceptance", "sampled"), ("eval_greedy_match", "greedy"))),
    ("mean acceptance length", (("eval_length_sampled", "sampled"), ("eval_length_greedy", "greedy"))),
    ("preferred", (("eval_preference_accuracy", "chosen over rejected"),)),
    (_SET, (("learning_rate", ""),)),
    ("gradient norm", (("gradient_norm", ""),)),
)

Line = tuple[str, list[int], list[float]]


class Artist:
    """Draws the metrics of a stage's folder into it. Without matplotlib nothing is drawn."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last = time.monotonic()

    def draw_sometimes(self, folder: Path) -> None:
        """Draw if the last time was a minute ago: training should not wait for pictures."""
        if time.monotonic() - self._last >= _EVERY_S:
            self.draw(folder)
            self._last = time.monotonic()

    def draw(self, folder: Path) -> None:
        """``folder/metrics.jsonl`` to ``folder/curves.png``."""
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        panels = panels_of([json.loads(line) for line in lines])
        if panels and find_spec("matplotlib") is not None:
            _paint(self._title, panels, folder / PICTURE)


def panels_of(records: Sequence[Mapping[str, float]]) -> dict[str, list[Line]]:
    """For each panel that has something to show its lines: name, steps, values."""
    panels: dict[str, list[Line]] = {}
    for title, keys in _PANELS:
        lines = []
        for key, name in keys:
            known = [(int(record["step"]), float(record[key])) for record in records if key in record]
            if known:
                lines.append((name, [step for step, _ in known], [value for _, value in known]))
        if lines:
            panels[title] = lines
    return panels


def _paint(title: str, panels: Mapping[str, Sequence[Line]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 3.4 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, (name, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, 2, place)
        for label, steps, values in lines:
            _line(axes, label, steps, values, scatters=name != _SET)
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(visible=True, alpha=0.3)
        if any(label for label, _, _ in lines):
            axes.legend()
    with atomic_file(path) as file:
        figure.savefig(file, format="png")


def _line(axes: Any, label: str, steps: Sequence[int], values: Sequence[float], *, scatters: bool) -> None:
    """The values; many of them, where they scatter, thin, with their running mean over it."""
    width = round(_SMOOTH * len(values))
    if width < 2 or not scatters:
        axes.plot(steps, values, label=label, marker="o" if len(values) <= 30 else None, markersize=3)
        return
    [thin] = axes.plot(steps, values, alpha=0.3, linewidth=0.8)
    means = [sum(values[max(0, i - width + 1) : i + 1]) / min(width, i + 1) for i in range(len(values))]
    axes.plot(steps, means, label=label, color=thin.get_color())
