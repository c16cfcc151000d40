"""Replies that the target writes itself, with its likeliest tokens at each place.

Runs on the native engine, many replies at once and, with ``processes``, on several engines. Every reply's seed follows
from the stage's seed and the prompt, and what a part holds from its number, so the result depends neither on
interruptions nor on the number of processes: finished parts are kept, and only what is missing is written.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from draftsmith.checkpoint import open_checkpoint, resolve
from draftsmith.engine import LLM
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.text import choose_format
from draftsmith.train.encode import Document
from draftsmith.train.endpoint import EndpointWriter
from draftsmith.train.parts import HELDOUT, PART_PATTERN, pack_part, part_metadata, write_part
from draftsmith.train.prepare import Tell
from draftsmith.train.prompts import Writer, first_turn, prompt_key, seed_of
from draftsmith.train.schema import GenerateStage
from draftsmith.types import Completion, Message, SamplingParams

__all__ = [
    "Part",
    "count_jobs",
    "keep_part",
    "load_writer",
    "packed_replies",
    "parts_of",
    "pool_of",
    "result_of",
    "write_replies",
    "write_replies_together",
]

TELL_EVERY_S = 20.0


@dataclass(frozen=True, slots=True)
class Job:
    """A reply, or several turns of them, to write. ``key`` names prompt and sample."""

    key: str
    messages: tuple[Message, ...]
    seed: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A file to write: number, and the jobs in it. ``held_out``: not to be trained on."""

    number: int
    jobs: tuple[Job, ...]
    held_out: bool = False

    def path(self, folder: Path) -> Path:
        """Where it belongs in ``folder``."""
        return (folder / HELDOUT if self.held_out else folder) / f"part-{self.number:05d}.safetensors"

    def is_in(self, folder: Path) -> bool:
        """Whether it was written before."""
        path = self.path(folder)
        return path.exists() and part_metadata(path)["prompts"] == [job.key for job in self.jobs]


def load_writer(stage: GenerateStage, model: str) -> Writer:
    """What writes for the stage: the engine with its target, or its endpoint. Raises what ``LLM`` raises."""
    if stage.endpoint is not None:
        return _endpoint(stage, stage.endpoint, model)
    return LLM(
        model,
        stage.draft,
        prompt_format=stage.prompt_format,
        quantize=None if stage.quantize == "none" else stage.quantize,
        threads=stage.threads,
        max_context=stage.max_context,
    )


def _endpoint(stage: GenerateStage, address: str, model: str) -> EndpointWriter:
    if stage.draft not in ("auto", "none") or stage.quantize != "none" or stage.processes > 1:
        raise UsageError(
            f"stage.{stage.name} has an endpoint, which decides on draft, quantize and processes itself; leave them out"
        )
    checkpoint = open_checkpoint(resolve(model).path)
    tokenizer = checkpoint.tokenizer()
    return EndpointWriter(
        address=address,
        name=stage.endpoint_model or model,
        tokenizer=tokenizer,
        prompt_format=choose_format(tokenizer, stage.prompt_format),
        max_context=stage.max_context or checkpoint.config.max_context,
        requests=stage.requests,
    )


def write_replies(
    writer: Writer, stage: GenerateStage, prompts: Sequence[tuple[Message, ...]], folder: Path, tell: Tell
) -> dict[str, int]:
    """Write the parts that are missing in ``folder``; counts of what is there then. Raises DraftsmithError."""
    parts = parts_of(prompts, stage)
    for part in parts:
        if not part.is_in(folder):
            keep_part(part, packed_replies(writer, stage, part), folder)
        tell(f"{sum(len(p.jobs) for p in parts[: part.number + 1])} of {count_jobs(parts)} written")
    return result_of(prompts, parts, folder)


def write_replies_together(
    model: str, stage: GenerateStage, prompts: Sequence[tuple[Message, ...]], folder: Path, tell: Tell
) -> dict[str, int]:
    """``write_replies`` by ``stage.processes`` processes, each with an engine of its own."""
    parts = parts_of(prompts, stage)
    missing = [part for part in parts if not part.is_in(folder)]
    with pool_of(stage.processes) as pool:
        shares = [missing[rank :: stage.processes] for rank in range(stage.processes)]
        running = {pool.submit(_write_share, model, stage, share, folder) for share in shares if share}
        while running:
            done, running = wait(running, TELL_EVERY_S)
            for future in done:
                future.result()
            tell(f"{sum(len(p.jobs) for p in parts if p.is_in(folder))} of {count_jobs(parts)} written")
    return result_of(prompts, parts, folder)


def pool_of(processes: int) -> ProcessPoolExecutor:
    """Processes that end with this one, even where it is killed: or they would go on writing into a folder that the
    next run uses."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - this is a process of a pool

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_share(model: str, stage: GenerateStage, parts: Sequence[Part], folder: Path) -> None:
    writer = load_writer(stage, model)
    for part in parts:
        keep_part(part, packed_replies(writer, stage, part), folder)


def packed_replies(writer: Writer, stage: GenerateStage, part: Part) -> bytes:
    """The part's file; empty when the target said nothing to any of its prompts."""
    documents = _replies(writer, stage, part.jobs)
    metadata = {
        "fingerprint": writer.tokenizer.fingerprint(),
        "target": writer.name,
        "prompts": [job.key for job in part.jobs],
    }
    return pack_part(documents, metadata) if documents else b""


def keep_part(part: Part, content: bytes, folder: Path) -> None:
    """Write what ``packed_replies`` gave."""
    if content:
        path = part.path(folder)
        path.parent.mkdir(exist_ok=True)
        write_part(path, content)


def _replies(writer: Writer, stage: GenerateStage, jobs: Sequence[Job]) -> list[Document]:
    """One document for each reply of each conversation: what stands before it, and the reply, which is learnt.

    All conversations take their first turn together, then all that have one their second, and so on. A conversation
    ends where the target says nothing, and where it has outgrown the context.
    """
    histories = [first_turn(job.messages) for job in jobs]
    documents: list[list[Document]] = [[] for _ in jobs]
    turn, going = 0, [number for number, history in enumerate(histories) if history]
    while going:
        encoded = {n: writer.prompt_format.encode(histories[n], add_generation_prompt=True).token_ids for n in going}
        going = [n for n in going if len(encoded[n]) < writer.max_context]
        prompts = [encoded[n] for n in going]
        sampling = [_sampling(writer, stage, jobs[n], turn) for n in going]
        still: list[int] = []
        for n, prompt, completion in zip(going, prompts, writer.generate(prompts, sampling), strict=True):
            if not completion.token_ids or not completion.text.strip():
                continue
            documents[n].append(_document(prompt, completion))
            before = (*histories[n], Message("assistant", completion.text))
            more = first_turn(jobs[n].messages[len(before) - turn - 1 :])
            histories[n] = (*before, *more)
            still += [n] if more else []
        turn, going = turn + 1, still
    return [document for written in documents for document in written]


def _sampling(writer: Writer, stage: GenerateStage, job: Job, turn: int) -> SamplingParams:
    params = SamplingParams(
        max_new_tokens=stage.max_new_tokens,
        temperature=stage.temperature,
        top_k=stage.top_k,
        top_p=stage.top_p,
        seed=seed_of(job.seed, turn),
        logprobs=stage.top_logprobs or None,
        stop=writer.prompt_format.stop_strings,
    )
    return replace(params, greedy=True) if job.greedy else params


def _document(prompt_ids: Sequence[int], completion: Completion) -> Document:
    ids = np.array([*prompt_ids, *completion.token_ids], np.uint32)
    mask = np.arange(ids.size) >= len(prompt_ids)
    if completion.logprobs is None:
        return Document(ids, mask)
    top = [entry.top for entry in completion.logprobs]
    return Document(
        ids,
        mask,
        np.array([[token_id for token_id, _ in row] for row in top], np.uint32),
        np.array([[logprob for _, logprob in row] for row in top], np.float16),
    )


def parts_of(prompts: Sequence[tuple[Message, ...]], stage: GenerateStage) -> list[Part]:
    """Jobs in an order drawn by the seed, so that the first parts stand for all; those held out come last.

    All samples of a prompt are on one side, whatever else is asked for beside it.
    """
    parts: list[Part] = []
    for held_out in (False, True):
        jobs = [
            _job(messages, sample, stage)
            for messages in prompts
            if _is_held_out(messages, stage) == held_out
            for sample in range(stage.samples)
        ]
        jobs.sort(key=lambda job: job.seed)
        for start in range(0, len(jobs), stage.rows_per_part):
            parts.append(Part(len(parts), tuple(jobs[start : start + stage.rows_per_part]), held_out))
    return parts


def _is_held_out(messages: tuple[Message, ...], stage: GenerateStage) -> bool:
    opening = tuple(takewhile(lambda message: message.role != "assistant", messages))  # all turns of one on one side
    return seed_of(stage.seed, prompt_key(opening), "heldout") / 2.0**63 < stage.heldout_share


def _job(messages: tuple[Message, ...], sample: int, stage: GenerateStage) -> Job:
    name = f"{prompt_key(messages)[:24]}-{sample}"
    draw = seed_of(stage.seed, name, "greedy") / 2.0**63
    return Job(name, messages, seed_of(stage.seed, name), greedy=draw < stage.greedy_share)


def count_jobs(parts: Sequence[Part]) -> int:
    """Replies, or conversations, that the parts ask for."""
    return sum(len(part.jobs) for part in parts)


def result_of(prompts: Sequence[tuple[Message, ...]], parts: Sequence[Part], folder: Path) -> dict[str, int]:
    """Counts for the record. Raises DraftsmithError when there is no part at all."""
    if not any(folder.glob(PART_PATTERN)):
        raise DraftsmithError("the target wrote no reply to any prompt; look at the prompts and at max_new_tokens")
    counts = {"prompts": len(prompts), "replies": count_jobs(parts)}
    held_out = count_jobs([part for part in parts if part.held_out])
    return counts | ({"held_out": held_out} if held_out else {})
