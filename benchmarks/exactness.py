"""Whether real models write the same tokens whatever drafts for them: nothing, prompt lookup, good and bad models.

    python -m benchmarks.exactness [--target REF] [--draft REF] [--prompts FILE.jsonl] [--limit N] [--max-new-tokens 64]

Every prompt is answered greedily and with all sampling options on (seeded), by the reference loop: plain, and once with
every drafter. The draft lengths take turns from prompt to prompt (``--every-k``: each one for every prompt). All is
compared to the bit: token ids, the reason for the end, and log-probabilities, which come from the logits. The drafters
are prompt lookup, a model with random weights, and ``--draft`` or, without it, the target less its last layer.
FILE.jsonl has one ``{"id", "category", "turns": [...]}`` a line, of which the first turn is asked. Exit code 1 when
anything differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import PROMPTS, add_record_option, report, run_script, table
from draftsmith.checkpoint import Checkpoint, ModelConfig, RopeConfig, Tensor, open_checkpoint, resolve
from draftsmith.checkpoint.gguf_writer import write_gguf_model
from draftsmith.checkpoint.layout import expected_tensors
from draftsmith.model.native import NativeModel
from draftsmith.quant import BlockType, quantize
from draftsmith.speculate import Drafter, FixedLength, ModelDrafter, PromptLookupDrafter, SpeculationCounter, generate
from draftsmith.text import choose_format
from draftsmith.types import Message, Request, SamplingParams, SpeculationStats, TokenLogprobs, VerificationRule

__all__ = [
    "DRAFT_LENGTHS",
    "Case",
    "Comparison",
    "Target",
    "compare",
    "load_target",
    "random_draft",
    "without_last_layer",
]

DRAFT_LENGTHS = (1, 2, 3, 5, 8, 16)
GREEDY = SamplingParams(greedy=True, logprobs=2)
EVERY_OPTION = SamplingParams(
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
    logit_bias={11: 1.0, 13: -1.0, 198: 0.5},
    seed=1,
    logprobs=2,
)


@dataclass(frozen=True, slots=True)
class Target:
    """A loaded model, its checkpoint (still open) and what encodes prompts for it."""

    name: str
    checkpoint: Checkpoint
    model: NativeModel
    eos_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt under one way to sample."""

    prompt: str  # its id
    sampling: str
    request: Request


@dataclass(frozen=True, slots=True)
class Written:
    """All that must not depend on the drafter."""

    token_ids: tuple[int, ...]
    finish_reason: str | None
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One reply with a drafter beside the plain one. ``differs_at`` is the first token that is not the same."""

    case: Case
    drafter: str
    draft_length: int
    rule: VerificationRule
    num_tokens: int
    differs_at: int | None
    stats: SpeculationStats


def load_target(path: Path, threads: int | None = None, max_context: int = 2048) -> Target:
    """Open and pack a model; long contexts are cut, which makes no difference to short texts."""
    checkpoint = open_checkpoint(path)
    context = min(max_context, checkpoint.config.max_context)
    model = NativeModel.load(checkpoint, threads=threads, max_context=context)
    return Target(path.stem, checkpoint, model, checkpoint.tokenizer().eos_ids)


def cases(target: Target, prompts: Mapping[str, str], max_new_tokens: int) -> Iterator[Case]:
    """Every prompt as a chat's first turn, greedy and sampled; each prompt has a seed of its own."""
    prompt_format = choose_format(target.checkpoint.tokenizer())
    for index, (name, text) in enumerate(prompts.items()):
        ids = prompt_format.encode([Message("user", text)]).token_ids
        room = target.model.max_context - max_new_tokens
        for sampling, params in (("greedy", GREEDY), ("every option", EVERY_OPTION)):
            seed = None if params.greedy else index
            asked = dataclasses.replace(params, max_new_tokens=max_new_tokens, seed=seed or 0)
            yield Case(name, sampling, Request(prompt_ids=ids[-room:], sampling=asked))


def write(
    target: Target, request: Request, drafter: Drafter | None, draft_length: int, rule: VerificationRule
) -> tuple[Written, SpeculationStats]:
    """One text by the reference loop, with caches of its own."""
    counter = SpeculationCounter(drafter.name if drafter else "none")
    session = drafter.start(request, rule) if drafter else None
    cache = target.model.new_cache()
    policy = FixedLength(draft_length)
    rounds = list(
        generate(target.model, cache, request, eos_ids=target.eos_ids, session=session, policy=policy, rule=rule)
    )
    for finished in rounds:
        counter.add(finished)
    token_ids = tuple(token_id for finished in rounds for token_id in finished.token_ids)
    logprobs = tuple(entry for finished in rounds for entry in finished.logprobs)
    return Written(token_ids, rounds[-1].finish_reason, logprobs), counter.stats()


def first_difference(one: Written, other: Written) -> int | None:
    """The first position where the two texts, or the logits they were chosen from, are not the same."""
    if one == other:
        return None
    pairs = enumerate(
        zip(
            zip(one.token_ids, one.logprobs, strict=True),
            zip(other.token_ids, other.logprobs, strict=True),
            strict=False,
        )
    )
    return next((i for i, (a, b) in pairs if a != b), min(len(one.token_ids), len(other.token_ids)))


def compare(
    target: Target,
    drafters: Sequence[Drafter],
    prompts: Mapping[str, str],
    max_new_tokens: int,
    *,
    lengths: Sequence[int] = DRAFT_LENGTHS,
    every_length: bool = False,
) -> Iterator[Comparison]:
    """Each reply with a drafter beside the plain one. Greedy texts take turns with the two verification rules.

    The draft ``lengths`` take turns from prompt to prompt, each drafter beginning with another; with ``every_length``
    all are tried each time.
    """
    for index, case in enumerate(cases(target, prompts, max_new_tokens)):
        plain, _ = write(target, case.request, None, 0, "coupled")
        turn = index // 2
        rule: VerificationRule = "rejection" if case.request.sampling.greedy and turn % 2 else "coupled"
        for offset, drafter in enumerate(drafters):
            for length in lengths if every_length else (lengths[(turn + offset) % len(lengths)],):
                drafted, stats = write(target, case.request, drafter, length, rule)
                differs_at = first_difference(plain, drafted)
                yield Comparison(case, drafter.name, length, rule, len(plain.token_ids), differs_at, stats)


def without_last_layer(target: Target, threads: int | None = None) -> Drafter:
    """The target without its last layer: a draft model that agrees with it now and then."""
    config = target.checkpoint.config
    keep = max(1, config.num_layers - 1)
    lower = dataclasses.replace(config, num_layers=keep, sliding_layers=config.sliding_layers[:keep])
    tensors = {name: target.checkpoint.tensors[name] for name in expected_tensors(lower)}
    checkpoint = dataclasses.replace(target.checkpoint, config=lower, tensors=tensors)
    model = NativeModel.load(checkpoint, threads=threads, max_context=target.model.max_context)
    return ModelDrafter(model, target_vocab_size=target.model.vocab_size, name="without last layer")


def random_draft(target: Target, folder: Path, threads: int | None = None) -> Drafter:
    """A small model of the target's vocabulary with random weights, written to ``folder``."""
    context = target.model.max_context
    config = ModelConfig(
        architecture="llama",
        vocab_size=target.model.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_context=context,
        tie_embeddings=True,
        rope=RopeConfig(theta=10000.0, max_position_embeddings=context),
    )
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        kind = BlockType.F16 if len(shape) == 2 else BlockType.F32
        tensors[name] = Tensor(name, kind, shape, quantize(kind, rng.standard_normal(shape).astype(np.float32) * 0.3))
    path = folder / "random.gguf"
    write_gguf_model(path, config, tensors)
    with open_checkpoint(path) as checkpoint:
        model = NativeModel.load(checkpoint, threads=threads)
    return ModelDrafter(model, target_vocab_size=target.model.vocab_size, name="random weights")


def read_prompts(path: Path | None, limit: int | None) -> dict[str, str]:
    """First turns by id, at most ``limit`` of them, evenly spread over the file."""
    if path is None:
        return {prompt.category: prompt.text for prompt in PROMPTS}
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    wanted = min(limit or len(entries), len(entries))
    chosen = [entries[i * len(entries) // wanted] for i in range(wanted)]
    return {str(entry["id"]): str(entry["turns"][0]) for entry in chosen}


def rows(results: Sequence[Comparison]) -> list[list[object]]:
    """A line of the table for every drafter and way to sample."""
    lines = []
    for drafter, sampling in dict.fromkeys((result.drafter, result.case.sampling) for result in results):
        part = [result for result in results if (result.drafter, result.case.sampling) == (drafter, sampling)]
        drafted = sum(result.stats.num_draft_tokens for result in part)
        accepted = sum(result.stats.num_accepted_tokens for result in part)
        same = sum(result.differs_at is None for result in part)
        tokens = sum(result.num_tokens for result in part)
        lines.append([drafter, sampling, len(part), tokens, accepted / max(drafted, 1), same, len(part) - same])
    return lines


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m-instruct", help="path, hub id or alias")
    parser.add_argument("--draft", help="path, hub id or alias of a draft model")
    parser.add_argument("--prompts", type=Path, help="a .jsonl file; without it three prompts are asked")
    parser.add_argument("--limit", type=int, help="ask so many of the prompts, spread over the file")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--every-k", action="store_true", help="every draft length for every prompt")
    parser.add_argument("--threads", type=int)
    add_record_option(parser)
    return parser.parse_args()


def main() -> int:
    """Run, print the table and the JSON line; exit code 1 when a reply differs."""
    options = parse()
    target = load_target(resolve(options.target).path, options.threads)
    drafters: list[Drafter] = [PromptLookupDrafter()]
    if options.draft is None:
        drafters.append(without_last_layer(target, options.threads))
    else:
        draft = load_target(resolve(options.draft).path, options.threads)
        drafters.append(ModelDrafter(draft.model, target_vocab_size=target.model.vocab_size, name=draft.name))
    prompts = read_prompts(options.prompts, options.limit)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        drafters.append(random_draft(target, Path(folder), options.threads))
        every = options.every_k
        for result in compare(target, drafters, prompts, options.max_new_tokens, every_length=every):
            results.append(result)
            if result.differs_at is not None:
                print(f"  DIFFERS: {result}", file=sys.stderr)
            elif len(results) % 100 == 0:
                print(f"  {len(results)} replies compared", file=sys.stderr)
    differing = [
        {
            "prompt": result.case.prompt,
            "sampling": result.case.sampling,
            "drafter": result.drafter,
            "draft_length": result.draft_length,
            "rule": result.rule,
            "position": result.differs_at,
        }
        for result in results
        if result.differs_at is not None
    ]
    header = ["drafter", "sampling", "replies", "tokens", "acceptance rate", "identical", "different"]
    compared = rows(results)
    summary = {
        "target": target.name,
        "prompts": len(prompts),
        "max_new_tokens": options.max_new_tokens,
        "draft_lengths": DRAFT_LENGTHS,
        "replies": len(results),
        "tokens": sum(result.num_tokens for result in results),
        "identical": not differing,
        "differences": differing,
        "by_drafter": [dict(zip(header, line, strict=True)) for line in compared],
    }
    report(f"Exactness: {target.name}", [table(header, compared)], summary, options.record)
    return int(bool(differing))


if __name__ == "__main__":
    run_script(main)
