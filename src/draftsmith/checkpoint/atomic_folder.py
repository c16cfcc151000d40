"""A folder that is there whole or not at all, however the program ends."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from draftsmith.checkpoint.atomic import explain_os_error

__all__ = ["PART_SUFFIX", "atomic_folder"]

PART_SUFFIX = ".part"


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to write files into; when the block ends well, they are synced and it is renamed to ``folder``.

    ``folder`` must not exist unless ``replace``: then it stays as it is until the new one is complete. Raises DiskFull
    or ResourceError, and leaves nothing behind then.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        mode = temporary.stat().st_mode & 0o666  # libraries make files that only their owner can read
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(mode | (path.stat().st_mode & 0o111))
            _sync(path)
        _sync(temporary)
        if replace and folder.exists():
            _swap(temporary, folder)
        else:
            temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, old: Path) -> None:
    """Put ``new`` in the place of ``old``, which is removed; if the second renaming fails, ``old`` comes back."""
    aside = old.with_name(f".{old.name}.{secrets.token_hex(4)}{PART_SUFFIX}")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
