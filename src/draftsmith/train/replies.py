"""Text that the target writes itself: replies to prompts, and prompts too, with its likeliest tokens at each place.

Runs on the native engine. Every reply's seed follows from the stage's seed and the prompt, so the result does not
depend on interruptions: finished parts are kept, and only what is missing is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from draftsmith.engine import LLM
from draftsmith.errors import DraftsmithError, UsageError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.train.encode import Document
from draftsmith.train.files import RowProblem, list_files, read_rows
from draftsmith.train.parts import PART_PATTERN, part_metadata, write_part
from draftsmith.train.prepare import Tell
from draftsmith.train.rows import BadRow, parse_prompt
from draftsmith.train.schema import DataSource, GenerateStage
from draftsmith.types import Completion, Message, SamplingParams

__all__ = ["Writer", "load_writer", "read_prompts", "write_prompts", "write_replies"]

_MARK = "\N{INVISIBLE SEPARATOR}user\N{INVISIBLE SEPARATOR}"
MAX_PROMPT_TOKENS = 512  # of prompts that the target makes up
TRIES = 4  # attempts for each prompt that is wanted; some are cut off or come twice


class Writer(Protocol):
    """What is needed of the engine."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def tokenizer(self) -> Tokenizer: ...  # noqa: D102
    @property
    def prompt_format(self) -> PromptFormat: ...  # noqa: D102
    def chat(self, messages: Sequence[Message], sampling: SamplingParams) -> Completion: ...  # noqa: D102
    def generate(self, prompts: Sequence[int], sampling: SamplingParams) -> list[Completion]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Job:
    """A reply, or several turns of them, to write. ``key`` names prompt and sample."""

    key: str
    messages: tuple[Message, ...]
    seed: int


def load_writer(stage: GenerateStage, model: str) -> LLM:
    """The engine with the target of the stage. Raises what ``LLM`` raises."""
    return LLM(
        model,
        stage.draft,
        prompt_format=stage.prompt_format,
        quantize=None if stage.quantize == "none" else stage.quantize,
        threads=stage.threads,
        max_context=stage.max_context,
    )


def read_prompts(sources: Iterable[DataSource], tell: Tell) -> list[tuple[Message, ...]]:
    """The prompts of all sources, each once, in order. Raises UsageError, after telling each bad row."""
    seen: set[str] = set()
    prompts: list[tuple[Message, ...]] = []
    problems = 0
    for source in sources:
        rows = (row for file in list_files(Path(source.path)) for row in read_rows(file))
        for row in islice(rows, source.limit):
            problem = row if isinstance(row, RowProblem) else None
            if not isinstance(row, RowProblem):
                try:
                    messages = parse_prompt(row.values)
                except BadRow as error:
                    problem = RowProblem(row.file, row.number, str(error))
            if problem is not None:
                problems += 1
                tell(str(problem))
            elif (key := _prompt_key(messages)) not in seen:
                seen.add(key)
                prompts.append(messages)
    if problems:
        raise UsageError(f"{problems} rows hold no prompt, and nothing was generated; mend or remove them")
    return prompts


def write_prompts(writer: Writer, stage: GenerateStage, path: Path, tell: Tell) -> list[tuple[Message, ...]]:
    """``num_prompts`` user messages that the target makes up, kept in ``path`` as they come, a JSON object a line."""
    start = _user_turn_start(writer)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    entries: list[str | None] = [json.loads(line)["prompt"] for line in whole]
    seen = {entry for entry in entries if entry}
    with path.open("ab") as file:
        file.truncate(sum(map(len, whole)))
        for attempt in range(len(entries), stage.num_prompts * TRIES):
            if len(seen) >= stage.num_prompts:
                break
            sampling = SamplingParams(
                max_new_tokens=MAX_PROMPT_TOKENS,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                seed=_seed(stage.seed, attempt),
                stop=writer.prompt_format.stop_strings,
            )
            [completion] = writer.generate(start, sampling)
            text = completion.text.strip()
            good = completion.finish_reason == "stop" and text and text not in seen
            seen |= {text} if good else set()
            file.write(json.dumps({"prompt": text if good else None}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            if attempt % 50 == 49:
                tell(f"{len(seen)} of {stage.num_prompts} prompts made up")
    return [(Message("user", text),) for text in sorted(seen)[: stage.num_prompts]]


def write_replies(
    writer: Writer, stage: GenerateStage, prompts: Sequence[tuple[Message, ...]], folder: Path, tell: Tell
) -> dict[str, int]:
    """Write the parts that are missing in ``folder``; counts of what is there then."""
    parts = sorted(folder.glob(PART_PATTERN))
    done = {key for part in parts for key in part_metadata(part)["prompts"]}
    jobs = list(_jobs(prompts, stage))
    missing = [job for job in jobs if job.key not in done]
    for start in range(0, len(missing), stage.rows_per_part):
        batch = missing[start : start + stage.rows_per_part]
        documents = [document for job in batch for document in _replies(writer, stage, job)]
        if documents:
            metadata = {
                "fingerprint": writer.tokenizer.fingerprint(),
                "target": writer.name,
                "prompts": [job.key for job in batch],
            }
            write_part(
                folder / f"part-{len(parts) + start // stage.rows_per_part:05d}.safetensors", documents, metadata
            )
        tell(f"{len(jobs) - len(missing) + start + len(batch)} of {len(jobs)} prompts answered")
    if not any(folder.glob(PART_PATTERN)):
        raise DraftsmithError("the target wrote no reply to any prompt; look at the prompts and at max_new_tokens")
    return {"prompts": len(prompts), "replies": len(jobs)}


def _replies(writer: Writer, stage: GenerateStage, job: Job) -> Iterator[Document]:
    """One document for each reply of the conversation: what stands before it, and the reply, which is learnt."""
    history: list[Message] = []
    for turn, message in enumerate(job.messages):
        history.append(message)
        if message.role != "user":
            continue
        sampling = SamplingParams(
            max_new_tokens=stage.max_new_tokens,
            temperature=stage.temperature,
            top_k=stage.top_k,
            top_p=stage.top_p,
            seed=_seed(job.seed, turn),
            logprobs=stage.top_logprobs or None,
        )
        completion = writer.chat(history, sampling)
        prompt_ids = writer.prompt_format.encode(history, add_generation_prompt=True).token_ids
        if not completion.token_ids or not completion.text.strip():
            return
        yield _document(prompt_ids, completion)
        history.append(Message("assistant", completion.text))


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


def _jobs(prompts: Sequence[tuple[Message, ...]], stage: GenerateStage) -> Iterator[Job]:
    for messages in prompts:
        key = _prompt_key(messages)
        for sample in range(stage.samples):
            name = f"{key[:24]}-{sample}"
            yield Job(name, messages, _seed(stage.seed, name))


def _prompt_key(messages: Sequence[Message]) -> str:
    """Equal for prompts that differ in white space or in the way that accents are encoded only."""
    said = [[m.role, " ".join(unicodedata.normalize("NFC", m.content).split())] for m in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _seed(*parts: int | str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def _user_turn_start(writer: Writer) -> list[int]:
    """The ids that the prompt format writes before a user's first message."""
    text = writer.prompt_format.encode([Message("user", _MARK)], add_generation_prompt=True).text
    before, mark, _ = text.partition(_MARK)
    if not mark:
        raise UsageError("the prompt format does not show the user's message as it is; num_prompts must be 0")
    return writer.tokenizer.encode(before, add_bos=False, parse_special=True)
