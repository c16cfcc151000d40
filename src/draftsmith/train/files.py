"""Rows from files, one by one, so that data may be larger than memory. A damaged row is told, not skipped in silence.

JSON lines, JSON (an array), plain text (one document a file), Parquet (needs pyarrow); the first three also gzipped.
"""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from draftsmith.errors import UsageError

__all__ = ["Row", "RowProblem", "list_files", "read_rows"]

SUFFIXES = (".jsonl", ".json", ".txt", ".md", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """``number`` counts from 1, as editors do; for JSON lines it is the line."""

    file: Path
    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that cannot be used, and why."""

    file: Path
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.number}: {self.reason}"


def list_files(path: Path) -> list[Path]:
    """The data files of a path, in order of their names: itself, those in the folder, or those that its last part
    matches with ``*``. Raises UsageError."""
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if _kind(file) in SUFFIXES)
    else:
        files = sorted(path.parent.glob(path.name)) if "*" in path.name else []
    if not files and not path.is_dir():
        raise UsageError(f"there is no data file {path}; give a file or a folder of files")
    for file in files:
        if _kind(file) not in SUFFIXES:
            raise UsageError(f"{file} is no kind of data file; expected one of {', '.join(SUFFIXES)}, or .gz of these")
    if not files:
        raise UsageError(f"the folder {path} has no data files; expected some of {', '.join(SUFFIXES)}")
    return files


def read_rows(file: Path) -> Iterator[Row | RowProblem]:
    """Every row of a file, or what is wrong with it. Raises UsageError when the file as a whole cannot be read."""
    kind = _kind(file)
    try:
        if kind == ".parquet":
            yield from _parquet(file)
            return
        with _open(file) as stream:
            if kind == ".jsonl":
                yield from _json_lines(file, stream)
            elif kind == ".json":
                yield from _json_array(file, stream)
            else:
                yield Row(file, 1, {"text": stream.read().decode("utf-8")})
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from None
    except (OSError, EOFError) as error:
        raise UsageError(f"{file} cannot be read ({error}); check the file") from None


def _kind(file: Path) -> str:
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix.lower()


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _json_lines(file: Path, stream: BinaryIO) -> Iterator[Row | RowProblem]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except UnicodeDecodeError:
            yield RowProblem(file, number, "is not UTF-8 text")
        except (ValueError, RecursionError):
            yield RowProblem(file, number, "is not JSON; expected one object a line")
        else:
            yield _row(file, number, value)


def _json_array(file: Path, stream: BinaryIO) -> Iterator[Row | RowProblem]:
    try:
        values = json.loads(stream.read())
    except (ValueError, RecursionError):
        raise UsageError(f"{file} is not JSON; expected an array of objects (or name it .jsonl)") from None
    if not isinstance(values, list):
        raise UsageError(f"{file} holds a JSON {type(values).__name__}; expected an array of objects")
    for number, value in enumerate(values, start=1):
        yield _row(file, number, value)


def _row(file: Path, number: int, value: Any) -> Row | RowProblem:
    if not isinstance(value, dict):
        return RowProblem(file, number, f"is a JSON {type(value).__name__}; expected an object")
    return Row(file, number, value)


def _parquet(file: Path) -> Iterator[Row | RowProblem]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UsageError(f"{file} is a Parquet file, which needs pyarrow; install it, or convert to .jsonl") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield _row(file, number, value)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UsageError(f"{file} is a damaged Parquet file ({str(error).splitlines()[0]}); get it again") from None
