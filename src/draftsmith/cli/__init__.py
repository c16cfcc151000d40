"""The command line: ``draftsmith generate``, ``chat`` and ``models``. ``main`` is the entry point.

This module imports next to nothing, so that ``draftsmith --help`` answers at once; commands load what they use.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command (``args`` defaults to the process's own) and return its exit code. Prints errors, raises none.

    0: done; 1: failed; 2: wrong usage; 130: interrupted.
    """
    from draftsmith.cli.app import run

    return run(args)
