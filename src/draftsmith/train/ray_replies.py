"""The generate stage on Ray: parts are written by workers anywhere, and kept by the process that asked for them.

A part is a function of model, stage and number, so the folder is what one process would have written, to the byte, and
work that was cut off goes on with the parts that are missing. The folder need not be seen by the workers; the model
must be, by its path or its name on the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from draftsmith.engine.ray_workers import on_ray, seen_from_anywhere
from draftsmith.train.prepare import Tell
from draftsmith.train.replies import Part, count_jobs, keep_part, load_writer, packed_replies, parts_of, result_of
from draftsmith.train.schema import GenerateStage
from draftsmith.types import Message

__all__ = ["write_replies_on_ray"]


def write_replies_on_ray(
    model: str, stage: GenerateStage, prompts: Sequence[tuple[Message, ...]], folder: Path, tell: Tell, workers: int
) -> dict[str, int]:
    """``replies.write_replies`` by so many workers of Ray, each with an engine of its own. Raises DraftsmithError."""
    parts = parts_of(prompts, stage)
    missing = [part.number for part in parts if not part.is_in(folder)]
    answered = count_jobs([part for part in parts if part.number not in missing])
    for number, content in on_ray(partial(_start, seen_from_anywhere(model), stage, parts), missing, workers):
        keep_part(parts[number], content, folder)
        answered += len(parts[number].jobs)
        tell(f"{answered} of {count_jobs(parts)} written")
    return result_of(prompts, parts, folder)


def _start(model: str, stage: GenerateStage, parts: Sequence[Part]) -> Callable[[int], bytes]:
    writer = load_writer(stage, model)
    return lambda number: packed_replies(writer, stage, parts[number])
