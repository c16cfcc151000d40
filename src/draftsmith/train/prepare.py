"""From data sources to a TokenStore: read, parse, encode; tell every bad row, and train on nothing if there is one."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from draftsmith.errors import UsageError
from draftsmith.text import PromptFormat, Tokenizer
from draftsmith.train.encode import Document, TooLong, TooLongChoice, encode, fit
from draftsmith.train.files import RowProblem, list_files, read_rows
from draftsmith.train.pairs import pairs_of_replies
from draftsmith.train.parts import PART_PATTERN, read_parts
from draftsmith.train.rows import BadRow, Preference, parse_row
from draftsmith.train.schema import DataSource
from draftsmith.train.store import StoreWriter, TokenStore

__all__ = ["DataPlan", "Tell", "documents_of", "prepare"]

Tell = Callable[[str], None]
"""Takes one line for people."""

TELL_EVERY_S = 10.0  # how far reading is, where it takes long
MAX_TOLD = 50  # problems told one by one; the rest are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """What to read and how to encode it. The sources' paths are where the files are. ``group`` 2: preferences."""

    sources: tuple[DataSource, ...]
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    max_length: int
    too_long: TooLongChoice = "stop"
    bad_rows: Literal["stop", "skip"] = "stop"
    group: int = 1

    def limited(self, rows: int) -> DataPlan:
        """The same for at most so many rows of each source."""
        return replace(self, sources=tuple(replace(s, limit=min(s.limit or rows, rows)) for s in self.sources))

    def key(self) -> str:
        """Hex digest of all that the encoded data depends on; files by size and time."""
        files = [
            (str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
            for source in self.sources
            for file in _files_of(source)
        ]
        settings = [self.max_length, self.too_long, self.bad_rows, self.group, self.prompt_format.template]
        shapes = [(source.path, source.format, source.limit) for source in self.sources]
        return hashlib.sha256(json.dumps([files, shapes, settings, self.tokenizer.fingerprint()]).encode()).hexdigest()


def prepare(plan: DataPlan, folder: Path, tell: Tell) -> TokenStore:
    """The store of ``plan`` below ``folder``, made now or found there from before.

    Raises UsageError when a row is bad (after telling each) and bad_rows is "stop", or when no row is left.
    """
    place = folder / plan.key()[:16]
    if (place / "meta.json").is_file():
        return TokenStore(place)
    problems, skipped, rows, tokens = 0, 0, 0, 0
    told = time.monotonic()
    with StoreWriter(place, plan.group) as writer:
        for found in documents_of(plan):
            if time.monotonic() - told > TELL_EVERY_S:
                tell(f"reading data: {rows:,} rows, {tokens:,} tokens")
                told = time.monotonic()
            rows += 1
            if isinstance(found, RowProblem):
                problems += 1
                if problems <= MAX_TOLD:
                    tell(str(found))
                continue
            if not found:
                skipped += 1
            for documents in found:
                for document in documents:
                    writer.add(document)
                    tokens += document.ids.size
        what = f"{problems} of {rows} rows cannot be used"
        if problems and plan.bad_rows == "stop":
            raise UsageError(f'{what}, and nothing was trained; mend or remove the rows, or set bad_rows = "skip"')
        if rows == problems + skipped:
            names = ", ".join(source.path for source in plan.sources)
            no_pairs = rows == 0 and plan.group == 2 and any(map(_is_target, plan.sources))
            advice = _NO_PAIRS if no_pairs else "check the data"
            raise UsageError(f"no row of {names} is left to train on ({what}, {skipped} are too long); {advice}")
        return writer.finish({"rows": rows, "bad_rows": problems, "too_long": skipped})


def documents_of(plan: DataPlan) -> Iterator[list[tuple[Document, ...]] | RowProblem]:
    """For each row its documents in groups, none if it is skipped as too long; or what is wrong with it."""
    for source in plan.sources:
        for count, found in enumerate(_rows_of(source, plan)):
            if source.limit is not None and count >= source.limit:
                break
            yield found


def _rows_of(source: DataSource, plan: DataPlan) -> Iterator[list[tuple[Document, ...]] | RowProblem]:
    files = _files_of(source)
    if _is_target(source):
        for file, number, documents in _replies_of(files, plan):
            yield _fitted(documents, plan, file, number)
        return
    for file in files:
        for row in read_rows(file):
            if isinstance(row, RowProblem):
                yield row
                continue
            try:
                parsed = parse_row(row.values, source.format)
                if isinstance(parsed, Preference) != (plan.group == 2):
                    raise BadRow("is no preference; expected chosen and rejected" if plan.group == 2 else _NOT_HERE)
                documents = encode(parsed, plan.tokenizer, plan.prompt_format)
            except BadRow as error:
                yield RowProblem(file, row.number, str(error))
                continue
            yield _fitted(documents, plan, file, row.number)


def _replies_of(files: Sequence[Path], plan: DataPlan) -> Iterator[tuple[Path, int, tuple[Document, ...]]]:
    """What a generate stage wrote: each reply, or the preferences that replies to one prompt make."""
    fingerprint = plan.tokenizer.fingerprint()
    if plan.group == 2:
        yield from pairs_of_replies(files, fingerprint, plan.tokenizer.eos_ids)
        return
    for file in files:
        for number, document in enumerate(read_parts(file, fingerprint), start=1):
            yield file, number, (document,)


_NO_PAIRS = (
    "replies are preferences where, of several to one prompt, some ended and some did not; give more samples, or pairs "
    "of chosen and rejected"
)
_NOT_HERE = "is a preference, which only a dpo stage learns from; expected a conversation or text"


def _fitted(
    documents: tuple[Document, ...], plan: DataPlan, file: Path, number: int
) -> list[tuple[Document, ...]] | RowProblem:
    try:
        return fit(documents, plan.max_length, plan.too_long)
    except TooLong as error:
        if plan.too_long == "stop":
            return RowProblem(file, number, f'{error}; set too_long to "skip" or "cut", or raise max_length')
        return []


def _is_target(source: DataSource) -> bool:
    return source.format == "target" or (source.format == "auto" and any(Path(source.path).glob(PART_PATTERN)))


def _files_of(source: DataSource) -> list[Path]:
    path = Path(source.path)
    if not _is_target(source):
        return list_files(path)
    files: list[Any] = sorted(path.glob(PART_PATTERN))
    if not files:
        raise UsageError(f"{path} has no files {PART_PATTERN}; give the folder that a generate stage wrote")
    return files
