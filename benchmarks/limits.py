"""What this machine can do at most, and what share of it each phase of the engine reaches.

    python -m benchmarks.limits --model MODEL.gguf [--threads N] [--context 128] [--prompt 512]

Read bandwidth is the best rate of reading 512 MiB once, the peak of 8-bit products the rate of the kernels' own
instruction with operands in registers. A phase's bytes are the packed weights (and the keys and values), once; its
products are one for each weight and token. Both are measured between the phases, in the same process. ``verify`` is the
time of m tokens / that of one, v(m). Best of the repetitions, as others may use the machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.checkpoint import open_checkpoint
from draftsmith.model import _native
from draftsmith.model.native import NativeModel, instruction_set, thread_team
from draftsmith.model.protocol import KVCache, TokenRun

SIZES = (1, 2, 4, 8, 16)
REPEATS = 9


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file or a Hugging Face folder")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=128, help="tokens before the step")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is read")
    add_record_option(parser)
    return parser.parse_args()


def seconds_of(model: NativeModel, cache: KVCache, tokens: list[int], num_logits: int) -> float:
    """One forward; the cache is then as before."""
    length = cache.length
    began = time.perf_counter()
    model.forward([TokenRun(cache, tokens, num_logits)])
    spent = time.perf_counter() - began
    cache.truncate(length)
    return spent


def main() -> int:
    """Measure all in turn, print the table and the JSON line."""
    options = parse()
    team, kernels = thread_team(options.threads), instruction_set()
    with open_checkpoint(options.model) as checkpoint:
        room = max(options.context + SIZES[-1], options.prompt)
        model = NativeModel.load(checkpoint, threads=options.threads, max_context=room)
        weights = sum(t.num_rows * t.shape[-1] for n, t in checkpoint.tensors.items() if "proj" in n)
    head = model.config.vocab_size * model.config.hidden_size
    memory = np.ones(512 << 20, np.uint8)
    cache, empty = model.new_cache(), model.new_cache()
    model.forward([TokenRun(cache, [1] * options.context)])
    bandwidth, products, prompt = 0.0, 0.0, float("inf")
    best = dict.fromkeys(SIZES, float("inf"))
    for _ in range(REPEATS):
        bandwidth = max(bandwidth, _native.read_rate(memory, kernels, team))
        products = max(products, _native.peak_products("int8", kernels, team, 20_000))
        for size in SIZES:
            best[size] = min(best[size], seconds_of(model, cache, [7] * size, size))
    floats = max(_native.peak_products("float32", kernels, team, 20_000) for _ in range(3))
    for _ in range(2):
        prompt = min(prompt, seconds_of(model, empty, [7] * options.prompt, 1))
    read = model.weight_bytes + model.cache_bytes(1) * options.context // 64
    rows: list[list[object]] = []
    for size, spent in [*best.items(), (options.prompt, prompt)]:
        needed = size * weights + (size if size in best else 1) * head
        name = f"{'one token' if size == 1 else f'{size} tokens'}{'' if size in best else ' of a prompt'}"
        shares = (100 * read / spent / bandwidth, 100 * needed / spent / products)
        rows.append([name, 1e3 * spent, spent / best[1], *shares, size / spent])
    header = ["phase", "ms", "times one token", "% of bandwidth", "% of int8 products", "tokens/s"]
    limits = {
        "read_gb_per_s": bandwidth / 1e9,
        "int8_products_per_s": products,
        "float32_products_per_s": floats,
        "weight_bytes": model.weight_bytes,
    }
    peaks = [["read bandwidth, GB/s", bandwidth / 1e9], ["int8 products, 1e9/s", products / 1e9]]
    peaks.append(["float32 products, 1e9/s", floats / 1e9])
    result = {"model": options.model.name, "threads": team.size, "kernels": kernels, "context": options.context}
    phases = [dict(zip(("phase", "ms", "v", "bandwidth", "products", "rate"), row, strict=True)) for row in rows]
    tables = [table(["limit", "measured"], peaks), table(header, rows)]
    title = f"The machine's limits and {options.model.stem}, {team.size} threads, kernels {kernels}"
    report(title, tables, result | {"limits": limits, "phases": phases}, options.record, files=[options.model])
    return 0


if __name__ == "__main__":
    run_script(main)
