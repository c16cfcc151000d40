"""Prompts for a target to answer: from files, and made up by the target itself (as Magpie does, arXiv:2406.08464)."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from draftsmith.errors import UsageError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.train.files import Row, RowProblem, list_files, read_rows
from draftsmith.train.prepare import Tell
from draftsmith.train.rows import BadRow, parse_prompt, parse_prompts_between
from draftsmith.train.schema import DataSource, GenerateStage
from draftsmith.types import Completion, Message, SamplingParams

__all__ = ["Writer", "first_turn", "prompt_key", "read_prompts", "seed_of", "that_fit", "write_prompts"]

_MARK = "\N{INVISIBLE SEPARATOR}user\N{INVISIBLE SEPARATOR}"
MAX_PROMPT_TOKENS = 256  # of prompts that the target makes up
PROMPT_TOP_P = 0.95  # what lies beyond makes a small target lose the thread
TRIES = 4  # attempts for each prompt that is wanted; some are cut off or come twice
MAX_TOLD = 50  # prompts that are too long told one by one; all are counted
AT_ONCE = 64  # attempts that are written together


class Writer(Protocol):
    """What is needed of the engine."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def tokenizer(self) -> Tokenizer: ...  # noqa: D102
    @property
    def prompt_format(self) -> PromptFormat: ...  # noqa: D102
    @property
    def max_context(self) -> int: ...  # noqa: D102
    def generate(  # noqa: D102
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]
    ) -> list[Completion]: ...


def read_prompts(
    sources: Iterable[DataSource], tell: Tell, *, given: bool = False, skip: bool = False
) -> list[tuple[Message, ...]]:
    """The prompts of all sources, each once, in order; ``given``: those between a row's replies, which stay.

    Bad rows are told; then, unless they are to be skipped, raises UsageError.
    """
    seen: set[str] = set()
    prompts: list[tuple[Message, ...]] = []
    problems = 0
    for source in sources:
        rows = (row for file in list_files(Path(source.path)) for row in read_rows(file))
        for row in islice(rows, source.limit):
            try:
                found = _prompts_of(row, given)
            except BadRow as error:
                problems += 1
                tell(str(error))
                continue
            for messages in found:
                if (key := prompt_key(messages)) not in seen:
                    seen.add(key)
                    prompts.append(messages)
    if problems and not skip:
        raise UsageError(
            f"{problems} rows cannot be used as prompts, and nothing was generated; mend or remove them, or set "
            'bad_rows = "skip"'
        )
    return prompts


def _prompts_of(row: Row | RowProblem, given: bool) -> list[tuple[Message, ...]]:
    """Raises BadRow that names file and row."""
    if isinstance(row, RowProblem):
        raise BadRow(str(row))
    try:
        return parse_prompts_between(row.values) if given else [parse_prompt(row.values)]
    except BadRow as error:
        raise BadRow(str(RowProblem(row.file, row.number, str(error)))) from None


def that_fit(prompts: Sequence[tuple[Message, ...]], writer: Writer, tell: Tell) -> list[tuple[Message, ...]]:
    """The prompts whose first turn leaves room for a reply in the writer's context; the others are told."""
    kept = []
    for messages in prompts:
        shown = first_turn(messages)
        size = len(writer.prompt_format.encode(shown, add_generation_prompt=True).token_ids) if shown else 0
        if size < writer.max_context:
            kept.append(messages)
        elif len(prompts) - len(kept) <= MAX_TOLD:
            room = writer.max_context
            tell(f"left out: a prompt of {size} tokens, the context has {room} ({shown[-1].content!r:.60})")
    return kept


def first_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages up to the first of the user that has no reply; empty when there is none."""
    for count, message in enumerate(messages, start=1):
        if message.role == "user" and (count == len(messages) or messages[count].role != "assistant"):
            return tuple(messages[:count])
    return ()


def write_prompts(writer: Writer, stage: GenerateStage, path: Path, tell: Tell) -> list[tuple[Message, ...]]:
    """``num_prompts`` user messages that the target makes up, kept in ``path`` as they come, a JSON object a line.

    Attempt i begins with entry i of ``prompt_starts``, taken in turn; the first that are whole and new are kept.
    """
    starts = [(text, [*_user_turn_start(writer), *_encoded(writer, text)]) for text in stage.prompt_starts or ("",)]
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    made: dict[str, None] = {}
    for line in whole:
        _keep(made, json.loads(line)["prompt"], stage.num_prompts)
    done, limit = len(whole), stage.num_prompts * TRIES
    with path.open("ab") as file:
        file.truncate(sum(map(len, whole)))
        while len(made) < stage.num_prompts and done < limit:
            attempts = range(done, min(done + AT_ONCE, limit))
            chosen = [starts[attempt % len(starts)] for attempt in attempts]
            sampling = [_prompt_sampling(writer, stage, attempt) for attempt in attempts]
            completions = writer.generate([ids for _, ids in chosen], sampling)
            for (begin, _), completion in zip(chosen, completions, strict=True):
                text = (begin + completion.text).strip()
                entry = text if completion.finish_reason == "stop" and completion.text.strip() else None
                _keep(made, entry, stage.num_prompts)
                file.write(json.dumps({"prompt": entry}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            done += len(attempts)
            tell(f"{len(made)} of {stage.num_prompts} prompts made up")
    return [(Message("user", text),) for text in made]


def prompt_key(messages: Sequence[Message]) -> str:
    """Equal for prompts that differ in white space or in the way that accents are encoded only."""
    said = [[m.role, " ".join(unicodedata.normalize("NFC", m.content).split())] for m in messages]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def seed_of(*parts: int | str) -> int:
    """A seed that follows from ``parts``, from 0 to 2^63 - 1."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def _prompt_sampling(writer: Writer, stage: GenerateStage, attempt: int) -> SamplingParams:
    return SamplingParams(
        max_new_tokens=MAX_PROMPT_TOKENS,
        temperature=1.0,
        top_k=0,
        top_p=PROMPT_TOP_P,
        seed=seed_of(stage.seed, attempt),
        stop=writer.prompt_format.stop_strings,
    )


def _keep(made: dict[str, None], entry: str | None, wanted: int) -> None:
    if entry and len(made) < wanted:
        made[entry] = None


def _encoded(writer: Writer, text: str) -> list[int]:
    return writer.tokenizer.encode(text, add_bos=False) if text else []


def _user_turn_start(writer: Writer) -> list[int]:
    """The ids that the prompt format writes before a user's first message."""
    text = writer.prompt_format.encode([Message("user", _MARK)], add_generation_prompt=True).text
    before, mark, _ = text.partition(_MARK)
    if not mark:
        raise UsageError("the prompt format does not show the user's message as it is; num_prompts must be 0")
    return writer.tokenizer.encode(before, add_bos=False, parse_special=True)
