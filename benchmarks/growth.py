"""Time per token and memory against context, batch, threads and model size.

    python -m benchmarks.growth --model 135M=A.gguf --model 1.5B=B.gguf --tinyllama SHAPE.gguf --json GROWTH.json
                                [--parts context,batch,threads,size,memory] [--record growth]

``--tinyllama FILE`` adds the 1.1B shape, with random weights, written to FILE if it is not there. Every part adds its
rows to the file of ``--json`` and replaces what that part found before of the same models, so that a run can be done in
pieces; ``--record`` writes the page, and the plot beside it, of all that is in the file.

A long context is made by repeating the blocks of a short one: the time of a step does not depend on what keys and
values are. ``limit`` is (weights + keys and values) / the read bandwidth measured in the same part. Best of several.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.common import ROOT, add_record_option, report, run_script, table
from benchmarks.growth_memory import two_processes
from benchmarks.growth_shapes import write_tinyllama
from draftsmith.checkpoint import open_checkpoint
from draftsmith.model import _native
from draftsmith.model.native import CacheDtype, NativeModel, instruction_set, thread_team
from draftsmith.model.protocol import TokenRun

CONTEXTS = (512, 2048, 8192, 32768)
BATCHES = (1, 2, 4, 8, 16)
THREADS = (1, 2)
REPEATS = 9
Row = dict[str, Any]
Models = dict[str, Path]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="a model and its name here")
    parser.add_argument("--tinyllama", type=Path, metavar="FILE", help="the 1.1B shape, made if the file is missing")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; all of them if not given")
    parser.add_argument("--json", type=Path, required=True, help="where the parts' rows are kept")
    add_record_option(parser)
    options = parser.parse_args(arguments)
    options.parts = [part for part in options.parts.split(",") if part]
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    if wrong := [pair for pair in options.model if "=" not in pair]:
        parser.error(f"--model is {wrong[0]!r}; it wants NAME=FILE")
    return options


@contextmanager
def loaded(path: Path, cache_dtype: CacheDtype = "auto", threads: int | None = None) -> Iterator[NativeModel]:
    """A model with all of its context, up to the longest that is measured."""
    with open_checkpoint(path) as checkpoint:
        room = min(checkpoint.config.max_context, CONTEXTS[-1] + 64)
        yield NativeModel.load(checkpoint, cache_dtype=cache_dtype, threads=threads, max_context=room)


def bandwidth() -> float:
    """Bytes per second of reading memory once, best of a few."""
    memory = np.ones(512 << 20, np.uint8)
    team, kernels = thread_team(), instruction_set()
    return float(max(_native.read_rate(memory, kernels, team) for _ in range(REPEATS)))


def step_ms(model: NativeModel, length: int, batch: int = 1) -> float:
    """Milliseconds of one token for each of ``batch`` sequences of ``length`` tokens."""
    caches = [model.new_cache() for _ in range(batch)]
    for cache in caches:
        model.forward([TokenRun(cache, [7] * 64, 0)])
        cache.repeat(length)
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        model.forward([TokenRun(cache, [7]) for cache in caches])
        best = min(best, time.perf_counter() - began)
        for cache in caches:
            cache.truncate(length)
    return 1e3 * best


def prompt_rate(model: NativeModel, length: int) -> float:
    """Tokens per second of reading a prompt, best of two."""
    cache, best = model.new_cache(), float("inf")
    for _ in range(2):
        cache.truncate(0)
        began = time.perf_counter()
        model.forward([TokenRun(cache, [7] * length)])
        best = min(best, time.perf_counter() - began)
    return length / best


def by_context(models: Models) -> Iterator[Row]:
    """One token against the context, keys and values in 16 and in 8 bits."""
    reads = bandwidth()
    dtypes: tuple[Literal["float16"], Literal["int8"]] = ("float16", "int8")
    for name, path in models.items():
        for dtype in dtypes:
            with loaded(path, dtype) as model:
                room = model.max_context - 64
                for context in dict.fromkeys(min(length, room) for length in CONTEXTS):
                    kept = model.cache_bytes(context)
                    limit, ms = 1e3 * (model.weight_bytes + kept) / reads, step_ms(model, context)
                    row = {"model": name, "keys and values": dtype, "context": context, "ms": ms}
                    yield row | {"cache_mb": kept / 1e6, "limit_ms": limit, "times_limit": ms / limit}


def by_batch(models: Models) -> Iterator[Row]:
    """One token for each of some sequences of 512."""
    for name, path in models.items():
        with loaded(path) as model:
            for batch in BATCHES:
                ms = step_ms(model, 512, batch)
                yield {"model": name, "batch": batch, "ms": ms, "tokens_per_s": 1e3 * batch / ms}


def by_threads(models: Models) -> Iterator[Row]:
    """One token, and a prompt of 512, by the number of threads."""
    for name, path in models.items():
        for threads in THREADS:
            with loaded(path, threads=threads) as model:
                yield {
                    "model": name,
                    "threads": threads,
                    "ms": step_ms(model, 512),
                    "prompt_tokens_per_s": prompt_rate(model, 512),
                }


def by_size(models: Models) -> Iterator[Row]:
    """Models beside one another at a context of 512."""
    reads = bandwidth()
    for name, path in models.items():
        with loaded(path) as model:
            ms, limit = step_ms(model, 512), 1e3 * (model.weight_bytes + model.cache_bytes(512)) / reads
            row = {"model": name, "weights_mb": model.weight_bytes / 1e6, "ms": ms, "times_limit": ms / limit}
            yield row | {"prompt_tokens_per_s": prompt_rate(model, 512)}


def by_memory(models: Models) -> Iterator[Row]:
    """Two processes with the same model: what each holds, and its share of what they hold together."""
    for name, path in models.items():
        yield {"model": name, **two_processes(path)}


PARTS: dict[str, Callable[[Models], Iterator[Row]]] = {
    "context": by_context,
    "batch": by_batch,
    "threads": by_threads,
    "size": by_size,
    "memory": by_memory,
}


def main() -> int:
    """Measure the parts, keep their rows, print all tables and the JSON line."""
    options = parse()
    models = {name: Path(file) for name, _, file in (pair.partition("=") for pair in options.model)}
    if options.tinyllama is not None:
        models["1.1B shape"] = write_tinyllama(options.tinyllama)
    found: dict[str, list[Row]] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for part in options.parts:
        fresh = list(PARTS[part](models))
        names = {row["model"] for row in fresh}
        found[part] = [row for row in found.get(part, []) if row["model"] not in names] + fresh
        options.json.write_text(json.dumps(found))
    tables = []
    for part in [part for part in PARTS if found.get(part)]:
        header = list(found[part][0])
        heading = (PARTS[part].__doc__ or "").strip()
        tables += [f"## By {part}", heading, table(header, [[row[key] for key in header] for row in found[part]])]
    if options.record is not None:
        from benchmarks.growth_plot import plot

        picture = plot(found, ROOT / "docs" / "results" / f"{options.record}.png")
        tables.insert(0, f"![Time per token against context, batch and threads]({picture.name})")
    report("How time and memory grow", tables, found, options.record, files=list(models.values()))
    return 0


if __name__ == "__main__":
    run_script(main)
