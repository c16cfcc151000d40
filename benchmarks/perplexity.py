"""Perplexity of the native engine beside `transformers` in fp32 on the same GGUF file, weight for weight.

    python -m benchmarks.perplexity --model MODEL.gguf [--text FILE] [--tokens 20000] [--window 1024]

The reference reads the file with its own code and dequantises it to float32, so the difference is what our reader,
kernels, 8-bit activations and cache do. The text is cut into windows without overlap; every token of a window but the
first is scored. Without ``--text`` the prose of Python's own language reference is read, which comes with Python
(``pydoc_data.topics``). Needs the dev extra; `transformers` takes minutes.
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import add_record_option, report, run_script, table
from draftsmith.checkpoint import open_checkpoint
from draftsmith.model.native import NativeModel
from draftsmith.model.protocol import TokenRun

CHUNK = 128  # rows of logits at once: 150,000 entries of vocabulary are 80 MB


def python_reference() -> str:
    """Some 600,000 characters of English prose that every CPython has."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: Path | None) -> str:
    """The text to score; ``.gz`` is unpacked."""
    if path is None:
        return python_reference()
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def log_probabilities(logits: npt.NDArray[np.float32], token_ids: Sequence[int]) -> npt.NDArray[np.float64]:
    """Natural log-probability [R] of the token that follows each of the rows [R, V]."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    chosen = rows[np.arange(len(token_ids)), list(token_ids)]
    return np.asarray(chosen - np.log(np.exp(rows).sum(axis=-1)))


def native_scores(model: NativeModel, windows: Sequence[Sequence[int]]) -> Iterator[float]:
    """Sum of log-probabilities for each window."""
    for window in windows:
        cache, total = model.new_cache(len(window)), 0.0
        for start in range(0, len(window) - 1, CHUNK):
            ids = window[start : min(start + CHUNK, len(window) - 1)]
            [logits] = model.forward([TokenRun(cache, ids, num_logits=len(ids))])
            total += float(log_probabilities(logits, window[start + 1 : start + 1 + len(ids)]).sum())
        yield total


def reference_model(path: Path) -> Any:
    """The file as `transformers` reads it: its own config, names and dequantised weights, in float32.

    Its reader is called directly because ``from_pretrained`` wants another package for GGUF files.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, modeling_gguf_pytorch_utils

    library: Any = modeling_gguf_pytorch_utils  # not typed, and not quite public
    factory: Any = AutoModelForCausalLM
    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    model = factory.from_config(config, dtype=torch.float32)
    weights = library.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if config.tie_word_embeddings:
        missing = [name for name in missing if name != "lm_head.weight"]
    if missing or unexpected:
        raise SystemExit(f"transformers reads {path.name} without {missing} and with {unexpected}; is it supported?")
    model.tie_weights()
    return model.eval()


def reference_scores(path: Path, windows: Sequence[Sequence[int]], threads: int) -> Iterator[float]:
    """The same from `transformers` in fp32."""
    import torch

    torch.set_num_threads(threads)
    model = reference_model(path)
    for window in windows:
        with torch.inference_mode():
            logits = model(torch.tensor([window[:-1]])).logits[0].numpy()
        starts = range(0, len(logits), CHUNK)
        chunks = [(logits[start : start + CHUNK], window[start + 1 : start + 1 + CHUNK]) for start in starts]
        yield sum(float(log_probabilities(rows, token_ids).sum()) for rows, token_ids in chunks)


def run(name: str, scores: Iterator[float], windows: Sequence[Sequence[int]]) -> tuple[float, float]:
    """Perplexity over all windows, and the seconds that it took."""
    begin, total, count = time.perf_counter(), 0.0, 0
    for index, (score, window) in enumerate(zip(scores, windows, strict=True), start=1):
        total, count = total + score, count + len(window) - 1
        print(f"  {name} {index}/{len(windows)}: {math.exp(-total / count):.4f}", file=sys.stderr)
    return math.exp(-total / count), time.perf_counter() - begin


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="a .gguf file")
    parser.add_argument("--text", type=Path, help="a UTF-8 text file, also .gz")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-percent", type=float, default=0.5, help="fail above this difference (default 0.5)")
    add_record_option(parser)
    return parser.parse_args()


def main() -> int:
    """Run both, print the table and the JSON line; exit code 1 when they differ by more than the limit."""
    options = parse()
    checkpoint = open_checkpoint(options.model)
    ids = checkpoint.tokenizer().encode(read_text(options.text)[: options.tokens * 12], add_bos=False)[: options.tokens]
    windows = [ids[start : start + options.window] for start in range(0, len(ids), options.window)]
    windows = [window for window in windows if len(window) > 1]
    model = NativeModel.load(checkpoint, max_context=options.window, threads=options.threads)
    ours, our_seconds = run("draftsmith", native_scores(model, windows), windows)
    theirs, their_seconds = run("transformers", reference_scores(options.model, windows, options.threads), windows)
    percent = 100 * (ours / theirs - 1)
    rows = [["draftsmith, native", ours, our_seconds], ["transformers, fp32", theirs, their_seconds]]
    rows = [[name, f"{perplexity:.4f}", seconds] for name, perplexity, seconds in rows]
    text = options.text.name if options.text else "Python's language reference"
    caption = f"{options.model.name}, {len(ids)} tokens of {text}, windows of {options.window}: {percent:+.3f} %"
    result = {"model": options.model.name, "text": text, "tokens": len(ids), "window": options.window}
    result |= {"draftsmith": ours, "transformers_fp32": theirs, "difference_percent": percent}
    shown = [caption, table(["engine", "perplexity", "seconds"], rows)]
    report(f"Perplexity: {options.model.name}", shown, result, options.record, files=[options.model])
    return int(abs(percent) > options.limit_percent)


if __name__ == "__main__":
    run_script(main)
