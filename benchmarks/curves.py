"""Draws what replayed traces say of draft lengths: speed by length, beside ``auto`` and ``theory``, and the costs.

    python -m benchmarks.curves --out FILE.png TRACE.json...

One panel for each trace (its file's name is the title), with times plain for every fixed length and for both policies,
and one with v(m), what checking m tokens costs, as recorded. Record with ``draftsmith generate --trace`` and
``--num-draft-tokens 16``. Needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import run_script
from draftsmith.speculate import AutoLength, FixedLength, TheoryLength, Trace, read_trace, replay

__all__ = ["main", "speeds"]

LENGTHS = tuple(range(13))


def speeds(trace: Trace) -> tuple[list[float], float, float]:
    """Times plain for each of LENGTHS, for ``auto`` and for ``theory``."""
    fixed = [replay(trace, lambda _, k=k: FixedLength(k)).speedup for k in LENGTHS]  # type: ignore[misc]
    return fixed, replay(trace, AutoLength).speedup, replay(trace, TheoryLength).speedup


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    from matplotlib.figure import Figure

    traces = {path.stem: read_trace(path) for path in options.traces}
    columns = min(4, len(traces) + 1)
    rows = (len(traces) + columns) // columns
    figure = Figure(figsize=(3.1 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (name, trace) in zip(axes, traces.items(), strict=False):
        fixed, auto, theory = speeds(trace)
        axis.plot(LENGTHS, fixed, marker=".", color="#4060a0", label="fixed")
        axis.axhline(auto, color="#c04020", label="auto")
        axis.axhline(theory, color="#808080", linestyle="--", linewidth=1, label="theory")
        axis.axhline(1, color="#c0c0c0", linewidth=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("draft tokens a round", fontsize=8)
        axis.tick_params(labelsize=7)
        best = max(LENGTHS, key=lambda k: fixed[k])
        print(f"{name:28} best fixed {best:2} {fixed[best]:.3f}  auto {auto:.3f}  theory {theory:.3f}")
    axes[0].set_ylabel("times plain", fontsize=8)
    axes[0].legend(fontsize=7)
    last = axes[len(traces)]
    for costs in dict.fromkeys(trace.costs for trace in traces.values()):
        sizes = range(1, min(17, len(costs.verify) + 1))
        last.plot(sizes, [costs.verify_cost(m) for m in sizes], marker=".", label=f"c = {costs.draft_cost(1):.2f}")
    last.set_title("v(m): checking m tokens", fontsize=9)
    last.set_xlabel("m", fontsize=8)
    last.tick_params(labelsize=7)
    last.legend(fontsize=7)
    for axis in axes[len(traces) + 1 :]:
        axis.axis("off")
    figure.savefig(options.out, dpi=80)
    return 0


if __name__ == "__main__":
    run_script(main)
