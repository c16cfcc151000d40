"""Where draftsmith keeps what it can get or make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """$DRAFTSMITH_CACHE, else $XDG_CACHE_HOME/draftsmith, else ~/.cache/draftsmith. Not created here.

    The XDG specification says to ignore a relative $XDG_CACHE_HOME.
    """
    if own := os.environ.get("DRAFTSMITH_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "draftsmith"
