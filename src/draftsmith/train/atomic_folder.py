"""Folders that appear whole, and the removal of what killed programs left of others."""

from __future__ import annotations

import shutil
from pathlib import Path

from draftsmith.checkpoint.atomic_folder import PART_SUFFIX, atomic_folder

__all__ = ["atomic_folder", "remove_leftovers"]


def remove_leftovers(folder: Path) -> None:
    """Remove what killed programs left half-written in ``folder``."""
    for path in folder.glob(f".*{PART_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
