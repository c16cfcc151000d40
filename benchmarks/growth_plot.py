"""The picture of growth.py's page: four small panels. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot"]

Rows = Sequence[Mapping[str, Any]]


def plot(found: Mapping[str, Rows], path: Path) -> Path:
    """Write the picture and return its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((context, batch), (threads, cache)) = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    names = list(dict.fromkeys(row["model"] for row in found.get("context", ())))
    colours = {name: f"C{index}" for index, name in enumerate(names)}

    def lines(axes: Any, rows: Rows, x: str, y: str, label: str = "{model}", **style: Any) -> None:
        for name in dict.fromkeys(row["model"] for row in rows):
            mine = [row for row in rows if row["model"] == name]
            text = label.format(model=name)
            axes.plot(
                [row[x] for row in mine],
                [row[y] for row in mine],
                "o",
                ms=3,
                color=colours.get(name),
                label=text,
                **style,
            )

    for dtype, style in (("float16", "-"), ("int8", "--")):
        rows = [row for row in found.get("context", ()) if row["keys and values"] == dtype]
        lines(context, rows, "context", "ms", f"{{model}}, {dtype}", ls=style)
        lines(cache, rows, "context", "cache_mb", f"{{model}}, {dtype}", ls=style)
    lines(batch, found.get("batch", ()), "batch", "tokens_per_s", ls="-")
    lines(threads, found.get("threads", ()), "threads", "ms", ls="-")
    for axes, title, x, y in (
        (context, "One token against the context", "tokens before it", "ms"),
        (cache, "Keys and values", "tokens", "MB"),
        (batch, "Sequences side by side, 512 tokens each", "sequences", "tokens/s in all"),
        (threads, "One token against the threads", "threads", "ms"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y, yscale="log")
        axes.grid(alpha=0.3)
    for axes in (context, cache):
        axes.set_xscale("log", base=2)
        axes.set_xticks([512, 2048, 8192, 32768], ["512", "2k", "8k", "32k"])
    batch.set_xticks([1, 2, 4, 8, 16])
    threads.set_xticks([1, 2])
    context.legend(fontsize=6.5)
    batch.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=72)
    plt.close(figure)
    return path
