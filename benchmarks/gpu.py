"""The torch backend on a GPU: what is promised of it, measured, with a verdict for each promise.

    python -m benchmarks.gpu [--tiny] [--parts NAME,NAME] [--out FOLDER] [--budget SECONDS] [--record NAME]

All parts take under 25 minutes on an H100 or H200. After each part FOLDER/gpu.json and FOLDER/gpu.md are written anew,
so that a run that is cut off leaves its tables; a later run with other ``--parts`` adds to them. A part that fails is
told in its place, and one that would begin after the budget is left out. Exit codes: 0 all verdicts hold, 1 one does
not or a part is missing, 2 wrong usage. Needs torch with CUDA, transformers and accelerate, bitsandbytes for the parts
in 4 bits (memory, experts), and no compiled engine: PYTHONPATH=src will do.

Weights are random, of the shapes of TinyLlama-1.1B, Mistral-7B and Mixtral-8x7B, and texts and acceptance are set by
construction (``gpu_shapes.Script``): speed does not depend on what weights say. ``--tiny`` runs the same code on the
processor with shapes of a few thousand weights, to see that it works; its verdicts say nothing and do not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_parts, gpu_waits
from benchmarks.common import add_record_option, report, run_script, table
from benchmarks.gpu_parts import Found, Setting

PARTS: dict[str, Callable[[Setting], Found]] = {
    "plain": gpu_parts.plain_speed,
    "waits": gpu_waits.waits,
    "speculative": gpu_parts.speculative_speed,
    "exact": gpu_parts.exactness,
    "memory": gpu_parts.four_bit_memory,
    "experts": gpu_parts.experts,
    "long": gpu_parts.long_context,
}


def main() -> int:
    """All parts that were asked for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiny", action="store_true", help="small shapes on the processor, to try the script")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAME,NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), metavar="FOLDER", help="where tables are kept")
    parser.add_argument("--budget", type=float, default=1400, metavar="SECONDS", help="no part begins later than this")
    add_record_option(parser)
    options = parser.parse_args()
    names = options.parts.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny tries the script on the processor")
    setting = Setting(torch.device("cpu" if options.tiny else "cuda"), options.tiny)
    device = "the processor, tiny shapes" if options.tiny else torch.cuda.get_device_name()
    options.out.mkdir(parents=True, exist_ok=True)
    results = _before(options.out / "gpu.json", device)
    began = time.perf_counter()
    for name in names:
        results["parts"][name] = _measured(name, setting, began, options.budget)
        _save(options.out, results)
    tables = _tables(results)
    report(f"The torch backend on {device}", tables, results, options.record, packages=("torch", "bitsandbytes"))
    return 0 if options.tiny and not _errors(results) else int(not _all_hold(results))


def _measured(name: str, setting: Setting, began: float, budget: float) -> dict[str, Any]:
    """One part's result, or why there is none."""
    begun = time.perf_counter()
    if begun - began > budget:
        return {"error": f"left out: {budget:.0f} seconds were over; run it with --parts {name}"}
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        found = asdict(PARTS[name](setting))
    except Exception as error:  # the other parts may still be measured
        lines = str(error).strip().splitlines() or [""]
        found = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
    found["seconds"] = round(time.perf_counter() - begun, 1)
    gc.collect()
    setting.peak_bytes()
    return found


def _before(path: Path, device: str) -> dict[str, Any]:
    """What earlier runs on the same device left."""
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        results = {}
    return results if results.get("device") == device else {"device": device, "parts": {}}


def _save(folder: Path, results: dict[str, Any]) -> None:
    for name, text in (("gpu.json", json.dumps(results, indent=1)), ("gpu.md", "\n\n".join(_tables(results)))):
        new = folder / f"{name}.new"
        new.write_text(text + "\n", encoding="utf-8")
        new.replace(folder / name)


def _tables(results: dict[str, Any]) -> list[str]:
    """The verdicts, then each part's table, in Markdown."""
    verdicts = [
        [verdict["promise"], verdict["measured"], "yes" if verdict["holds"] else "NO"]
        for found in results["parts"].values()
        for verdict in found.get("verdicts", [])
    ]
    errors = [[f"part {name}", error, "NO"] for name, error in _errors(results).items()]
    tables = [table(["promise", "measured", "holds"], [*verdicts, *errors])]
    for name, found in results["parts"].items():
        if "error" not in found:
            tables += [f"### {name} ({found['seconds']} s)\n\n{found['note']}", table(found["header"], found["rows"])]
    return tables


def _errors(results: dict[str, Any]) -> dict[str, str]:
    return {name: found["error"] for name, found in results["parts"].items() if "error" in found}


def _all_hold(results: dict[str, Any]) -> bool:
    verdicts = [verdict for found in results["parts"].values() for verdict in found.get("verdicts", [])]
    return set(results["parts"]) == set(PARTS) and not _errors(results) and all(v["holds"] for v in verdicts)


if __name__ == "__main__":
    run_script(main)
