"""Writes that either happen or do not: to a temporary name beside the target, fsync, rename."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from draftsmith.errors import DiskFull, ResourceError

__all__ = ["atomic_file", "explain_os_error", "require_space"]


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends well, and leaves nothing behind when it does not.

    Folders on the way are made. A link stays: what it leads to is written. A device or a pipe (/dev/stdout) is written
    as it is, which nothing can take back. Raises DiskFull when space runs out, ResourceError when the place cannot be
    written.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as file:
                yield file
        else:
            with _replacing(Path(os.path.realpath(path))) as file:
                yield file
    except OSError as error:
        raise explain_os_error(error, path) from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``path`` that takes its place when the block ends well."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain_os_error(error: OSError, path: Path) -> ResourceError:
    """The sentence for a failed write to ``path``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"there is no space left to write {path}; free some or choose another place")
    return ResourceError(f"{path} cannot be written: {error.strerror or error}; choose another place")


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raise DiskFull when the file system of ``folder`` (which need not exist yet) has less than ``num_bytes`` free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise DiskFull(
            f"{what} needs {num_bytes / 1e6:.0f} MB in {folder}, but {free / 1e6:.0f} MB are free; free some space or "
            "set DRAFTSMITH_CACHE to another place"
        )
