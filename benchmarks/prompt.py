"""Reading a prompt and writing plainly, beside llama.cpp and ik_llama.cpp with several quantisations.

    python -m benchmarks.prompt --target MODEL.gguf [--peer-target OTHER.gguf ...] [--make Q4_0 --into FOLDER]
                                [--prompt 512] [--tokens 64] [--threads 2] [--peers llama.cpp,ik_llama.cpp]

``--make TYPE`` writes the target's matrices in another block type for the peers (from the target's values, so rounded
twice; speed does not mind). Every engine and file is a process of its own, and all take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import PeerMissingError, Reply, add_record_option, report, run_script, table
from benchmarks.llama_cpp_peer import LlamaCpp, system_info
from benchmarks.workers import Runner, Worker
from draftsmith.checkpoint import open_checkpoint
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.tensor import Tensor
from draftsmith.engine import LLM
from draftsmith.quant import BlockType, dequantize, quantize
from draftsmith.types import SamplingParams

PEERS = ("llama.cpp", "ik_llama.cpp")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True, help="what we run; the peers, too")
    parser.add_argument("--peer-target", type=Path, action="append", default=[], help="another file, for the peers")
    parser.add_argument(
        "--make", action="append", default=[], metavar="TYPE", help="a block type to write for the peers"
    )
    parser.add_argument("--into", type=Path, default=Path(), help="the folder of what --make writes")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    add_record_option(parser)
    options = parser.parse_args(arguments)
    options.peers = [name for name in options.peers.split(",") if name]
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"there is no peer {sorted(unknown)[0]!r}; there are {', '.join(PEERS)}")
    if unknown := set(options.make) - set(BlockType.__members__):
        parser.error(f"there is no block type {sorted(unknown)[0]!r}; there are {', '.join(BlockType.__members__)}")
    return options


def requantised(source: Path, kind: BlockType, folder: Path) -> Path:
    """The model with all matrices in this type, without a tokenizer; made if it is not there."""
    path = folder / f"{source.stem}-as-{kind.name.lower()}.gguf"
    if path.exists():
        return path
    with open_checkpoint(source) as checkpoint:
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            if len(tensor.shape) == 1:
                tensors[name] = tensor
                continue
            values = dequantize(tensor.block_type, tensor.data, tensor.shape)
            tensors[name] = Tensor(name, kind, tensor.shape, quantize(kind, values))
        write_gguf_model(path, checkpoint.config, tensors, {"tokenizer.ggml.model": "no_vocab"})
    return path


def make_ours(target: Path, threads: int, context: int, tokens: int) -> Mapping[str, Runner]:
    """Plain decoding by draftsmith, greedy, its caches empty at the beginning."""
    llm = LLM(target, None, threads=threads, max_context=context)
    params = SamplingParams(greedy=True, max_new_tokens=tokens, ignore_eos=True)

    def run(prompt_ids: Any) -> Reply:
        llm.generate([[1]], SamplingParams(greedy=True, max_new_tokens=1))  # what is kept shares no beginning
        [completion] = llm.generate([list(prompt_ids)], params)
        return Reply(tuple(completion.token_ids), completion.timing.prefill_s, completion.timing.decode_s)

    return {"draftsmith": run}


def make_peer(peer: str, path: Path, threads: int, context: int, tokens: int) -> Mapping[str, Runner]:
    """Plain decoding by a peer."""
    engine = LlamaCpp(path, threads=threads, context=context, peer=peer)
    print(f"{peer}: {system_info(peer)}", file=sys.stderr)
    return {peer: lambda prompt_ids: engine.greedy(prompt_ids, tokens)}


def main() -> int:
    """Run all in turns, print the table and the JSON line."""
    options = parse()
    made = [requantised(options.target, BlockType[kind], options.into) for kind in options.make]
    files = [options.target, *options.peer_target, *made]
    sizes = (options.threads, options.prompt + options.tokens + 8, options.tokens)
    makers = {f"draftsmith, {options.target.name}": partial(make_ours, options.target, *sizes)}
    for peer in options.peers:
        makers |= {f"{peer}, {path.name}": partial(make_peer, peer, path, *sizes) for path in files}
    left_out, replies = [], dict[str, list[Reply]]()
    prompt_ids = [100 + i * 7919 % 20_000 for i in range(options.prompt)]
    with contextlib.ExitStack() as stack:
        runners = {}
        for name, make in makers.items():
            try:
                [runners[name]] = stack.enter_context(Worker(make)).runners.values()
            except PeerMissingError as error:
                left_out.append(f"Left out: {name}: {error}")
        for _ in range(options.repeat):
            for name, run in runners.items():
                replies.setdefault(name, []).append(run(prompt_ids))
    rows: list[list[object]] = []
    for name, those in replies.items():
        reading = [options.prompt / reply.prefill_s for reply in those]
        writing = [reply.tokens_per_s for reply in those]
        rows.append([name, max(reading), statistics.median(reading), max(writing), statistics.median(writing)])
    keys = ("engine", "read_best", "read_median", "written_best", "written_median")
    header = ["engine and file", "read, tokens/s, best", "median", "written, tokens/s, best", "median"]
    result = {"prompt": options.prompt, "tokens": options.tokens, "threads": options.threads, "repeat": options.repeat}
    engines = [dict(zip(keys, row, strict=True)) for row in rows]
    tables = [table(header, rows), *left_out]
    title = f"Reading {options.prompt} tokens and writing {options.tokens}, beside other engines: {options.target.stem}"
    report(title, tables, result | {"engines": engines}, options.record, files=files)
    return 0


if __name__ == "__main__":
    run_script(main)
