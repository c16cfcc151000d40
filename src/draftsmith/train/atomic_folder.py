"""A folder that is there whole or not at all, however the program ends."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from draftsmith.checkpoint.atomic import explain_os_error

__all__ = ["atomic_folder", "remove_leftovers"]

_SUFFIX = ".part"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write files into; when the block ends well, they are synced and it is renamed to ``folder``.

    ``folder`` must not exist. Raises DiskFull or ResourceError, and leaves nothing behind then.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_SUFFIX}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        mode = temporary.stat().st_mode & 0o666  # libraries make files that only their owner can read
        for path in temporary.iterdir():
            path.chmod(mode)
            _sync(path)
        _sync(temporary)
        temporary.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed programs left half-written in ``folder``."""
    for path in folder.glob(f".*{_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
