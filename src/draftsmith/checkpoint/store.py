"""What ``draftsmith models`` does: list, pull, show and remove the models that were fetched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from draftsmith.checkpoint.aliases import ALIASES, Alias
from draftsmith.checkpoint.checkpoint import open_checkpoint
from draftsmith.checkpoint.config import ModelConfig
from draftsmith.checkpoint.progress import Progress, no_progress
from draftsmith.checkpoint.reference import ResolvedModel, alias_path, parse_reference, resolve
from draftsmith.errors import CheckpointError, UsageError

__all__ = ["ListedModel", "ModelDetails", "list_models", "pull", "remove", "show"]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One line of the list. ``reference`` is what to write for it; ``path`` is None when it is not fetched yet."""

    reference: str
    source: Literal["hub", "alias"]
    num_bytes: int
    path: Path | None
    revision: str | None
    description: str


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What a checkpoint holds. ``block_types`` gives the number of weights stored as each type, most first."""

    resolved: ResolvedModel
    config: ModelConfig
    num_parameters: int
    num_bytes: int
    block_types: Mapping[str, int]
    sha256: str


def list_models() -> tuple[ListedModel, ...]:
    """All aliases, fetched or not, and the hub's models in the cache."""
    from draftsmith.checkpoint.hub import cached_repositories

    listed = []
    for alias in ALIASES.values():
        path = alias_path(alias)
        fetched = path if path.is_file() else None
        listed.append(ListedModel(alias.name, "alias", alias.num_bytes, fetched, alias.version, alias.description))
    for repository in cached_repositories():
        gguf_files = [file for file in repository.files if file.endswith(".gguf")]
        for file in sorted(gguf_files):
            path = repository.files[file]
            reference = f"{repository.name}:{file}"
            listed.append(ListedModel(reference, "hub", path.stat().st_size, path, repository.revision, "GGUF file"))
        if "config.json" in repository.files and len(gguf_files) < len(repository.files):
            path = repository.files["config.json"].parent
            size = sum(file.stat().st_size for file in repository.files.values() if file.name not in gguf_files)
            listed.append(ListedModel(repository.name, "hub", size, path, repository.revision, "Hugging Face folder"))
    return tuple(listed)


def pull(reference: str, *, progress: Progress = no_progress) -> ResolvedModel:
    """Fetch a model into the cache and check that it can be opened. Raises what resolve and open_checkpoint raise."""
    resolved = resolve(reference, progress=progress)
    open_checkpoint(resolved.path).close()
    return resolved


def show(reference: str) -> ModelDetails:
    """What is in a model that is here already; its files are read in full for their hash.

    Raises HubError when it is not in the cache, CheckpointError when it is damaged.
    """
    resolved = resolve(reference, local_only=True)
    with open_checkpoint(resolved.path) as checkpoint:
        counts: Counter[str] = Counter()
        for tensor in checkpoint.tensors.values():
            counts[tensor.block_type.name] += int(np.prod(tensor.shape, dtype=np.int64))
        sha256 = checkpoint.sha256()
        if resolved.sha256 not in (None, sha256):
            raise CheckpointError(
                f"{resolved.path} is not the file that was fetched; run: draftsmith models remove {reference}"
            )
        return ModelDetails(
            resolved=resolved,
            config=checkpoint.config,
            num_parameters=counts.total(),
            num_bytes=checkpoint.num_bytes,
            block_types=MappingProxyType(dict(counts.most_common())),
            sha256=sha256,
        )


def remove(reference: str) -> int:
    """Remove a fetched model from the cache; the bytes freed. A hub's model goes with all its files and revisions.

    Raises UsageError when it is not in the cache or is the user's own file.
    """
    parsed = parse_reference(reference)
    if isinstance(parsed, Path):
        raise UsageError(f"{reference} is your own file or folder; only models that draftsmith fetched can be removed")
    if isinstance(parsed, Alias):
        path = alias_path(parsed)
        size = path.stat().st_size if path.is_file() else None
        path.unlink(missing_ok=True)
    else:
        from draftsmith.checkpoint.hub import remove_repository

        size = remove_repository(parsed.name)
    if size is None:
        raise UsageError(f"{reference} is not in the cache; draftsmith models list shows what is")
    return size
