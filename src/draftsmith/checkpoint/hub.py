"""Fetches models from a Hugging Face hub with the official client, into its own cache, shared with other programs.

The hub is asked first what the repository holds, so that only files that we read are fetched (never pickles). Without
a network, what is in the cache is used. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN are honoured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from draftsmith.checkpoint.atomic import explain_os_error, require_space
from draftsmith.checkpoint.progress import Progress
from draftsmith.errors import CheckpointError, DraftsmithError, HubError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

__all__ = [
    "TIMEOUT_S",
    "CachedRepository",
    "UnreachableError",
    "cache_folder",
    "cached_repositories",
    "explain",
    "fetch_repository",
    "remove_repository",
]

TIMEOUT_S: Final = 10.0
SMALL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
SHARD: Final = re.compile(r"model-\d+-of-\d+\.safetensors")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class CachedRepository:
    """A model of the hub that is in the cache. ``files`` maps names to paths, of its newest revision."""

    name: str
    revision: str
    num_bytes: int
    files: Mapping[str, Path]


def fetch_repository(
    name: str, revision: str | None, file: str | None, progress: Progress, local_only: bool = False
) -> tuple[Path, str]:
    """(path of the folder, or of ``file`` in it; the commit). ``file`` None takes the model of the repository.

    Raises HubError when the hub has no such model or cannot be reached and the cache does not have it, UsageError when
    the repository holds several GGUF files and none is named, CheckpointError when it holds nothing that we read.
    """
    fixed = revision is not None and COMMIT.fullmatch(revision) is not None
    if fixed or local_only:
        found = _find_in_cache(name, revision, file)
        if found:
            return found
        if local_only:
            raise HubError(f"{name} is not in the cache; fetch it with: draftsmith models pull {name}")
    try:
        sizes, newest = _list_files(name, revision)
    except UnreachableError as error:
        found = _find_in_cache(name, revision, file)
        if found:
            return found
        raise HubError(f"the hub could not be reached for {name}: {error}; check the network or HF_ENDPOINT") from None
    wanted = [file] if file else _choose_files(name, sizes)
    missing = [path for path in wanted if path not in sizes]
    if missing:
        raise HubError(f"{name} has no file {missing[0]} at revision {revision or 'main'}; look at its list of files")
    here = _snapshot(name, newest) if newest else None
    if here and newest and all((here / path).is_file() for path in wanted):
        return _model_in(here, wanted), newest
    paths = _download(name, revision, {path: sizes[path] for path in wanted}, progress)
    commit = _commit_of(paths[0], wanted[0])
    if any(_commit_of(path, file) != commit for path, file in zip(paths, wanted, strict=True)):
        raise HubError(f"{name} was changed on the hub while it was being fetched; try again")
    return _model_in(_snapshot(name, commit), wanted), commit


class UnreachableError(Exception):
    """The hub did not answer, or answered that it is out of order."""


def cache_folder() -> Path:
    """Where the client keeps what it fetched."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home, "hub").expanduser()


def explain(error: Exception, name: str, revision: str | None) -> Exception:
    """The client's exception in one sentence; UnreachableError when the cache may help."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{name} is gated; accept its terms on the hub's page and set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name} has no revision {revision!r}; look at its branches, tags and commits")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"the hub has no {name}, or it is private and HF_TOKEN is not set; check the spelling")
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name!r} is not a valid name on the hub; write org/name")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and status < 500 and status != 429:
        return HubError(f"the hub refused {name} with status {status}; check the reference and HF_TOKEN")
    return UnreachableError(f"status {status}" if status else type(error).__name__)


def _list_files(name: str, revision: str | None) -> tuple[dict[str, int], str | None]:
    """(size of every file in the repository, the commit that this is)."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    except Exception as error:  # the client raises its own errors and those of its HTTP library; all are explained
        raise explain(error, name, revision) from None
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}, info.sha


def _choose_files(name: str, sizes: Mapping[str, int]) -> list[str]:
    """The files of the one model in a repository: a folder with safetensors, else its only GGUF file."""
    weights = [SINGLE] if SINGLE in sizes else [INDEX, *filter(SHARD.fullmatch, sizes)] if INDEX in sizes else []
    if weights and "config.json" in sizes:
        return [*(file for file in SMALL_FILES if file in sizes), *weights]
    gguf_files = [file for file in sizes if file.endswith(".gguf")]
    if len(gguf_files) == 1:
        return gguf_files
    if gguf_files:
        shown = ", ".join(sorted(gguf_files)[:6]) + (", ..." if len(gguf_files) > 6 else "")
        raise UsageError(f"{name} holds {len(gguf_files)} GGUF files; name one, as in {name}:FILE, from {shown}")
    raise CheckpointError(
        f"{name} holds neither safetensors nor GGUF files; pickles are never read, take another model"
    )


def _download(name: str, revision: str | None, sizes: Mapping[str, int], progress: Progress) -> list[Path]:
    from huggingface_hub import hf_hub_download

    cache = cache_folder()
    require_space(cache, sum(sizes.values()), name)
    paths, done, total = [], 0, sum(sizes.values())
    for file, size in sizes.items():
        bar = _bar_class(progress, done, total)
        try:
            path = hf_hub_download(
                name,
                file,
                revision=revision,
                cache_dir=cache,
                endpoint=os.environ.get("HF_ENDPOINT"),
                tqdm_class=bar,
            )
        except OSError as error:  # the client's network errors are OSErrors too, but have no number
            if error.errno is None:
                raise _interrupted(error, name, revision, file) from None
            raise explain_os_error(error, cache) from error
        except Exception as error:
            raise _interrupted(error, name, revision, file) from None
        paths.append(Path(path))
        done += size
        progress(done, total)
    return paths


def _interrupted(error: Exception, name: str, revision: str | None, file: str) -> DraftsmithError:
    explained = explain(error, name, revision)
    if isinstance(explained, DraftsmithError):
        return explained
    return HubError(f"fetching {file} of {name} stopped: {explained}; try again, it goes on where it stopped")


def _bar_class(progress: Progress, before: int, total: int) -> Any:
    """What the client takes for a tqdm class; it draws nothing and calls ``progress``."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.done = initial

        def update(self, amount: float | None = 1) -> None:
            self.done += int(amount or 0)
            progress(before + self.done, total)

        def ignore(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        update_transfer = set_transfer_postfix_str = set_postfix_str = refresh = close = ignore

    return Bar


def _find_in_cache(name: str, revision: str | None, file: str | None) -> tuple[Path, str] | None:
    """What the cache has of the model at this revision, if it is all there."""
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        try:
            commit = (_repository(name) / "refs" / commit).read_text().strip()
        except OSError:
            return None
    snapshot = _snapshot(name, commit)
    if file:
        return (snapshot / file, commit) if (snapshot / file).is_file() else None
    names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    try:
        chosen = _choose_files(name, dict.fromkeys(names, 0))
    except DraftsmithError:
        return None
    return _model_in(snapshot, chosen), commit


def _repository(name: str) -> Path:
    """Where the client keeps a model: with folders refs, blobs and snapshots."""
    return cache_folder() / f"models--{name.replace('/', '--')}"


def _snapshot(name: str, commit: str) -> Path:
    return _repository(name) / "snapshots" / commit


def _model_in(snapshot: Path, files: Sequence[str]) -> Path:
    """What to open: the GGUF file, or the folder of all files."""
    return snapshot / files[0] if files[0].endswith(".gguf") else snapshot


def _commit_of(path: Path, file: str) -> str:
    """The commit that a path in the cache belongs to: .../snapshots/<commit>/<file>."""
    return path.parents[file.count("/")].name


def _scan() -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(cache_folder())
    except CacheNotFound:
        return None


def cached_repositories() -> tuple[CachedRepository, ...]:
    """The hub's models in the cache that hold something that we read, by name."""
    cache = _scan()
    found = []
    for repository in cache.repos if cache else ():
        revisions = sorted(repository.revisions, key=lambda revision: revision.last_modified)
        if repository.repo_type != "model" or not revisions:
            continue
        newest = revisions[-1]
        files = {path.file_path.relative_to(newest.snapshot_path).as_posix(): path.file_path for path in newest.files}
        if any(file.endswith((".safetensors", ".gguf")) for file in files):
            found.append(CachedRepository(repository.repo_id, newest.commit_hash, repository.size_on_disk, files))
    return tuple(sorted(found, key=lambda repository: repository.name))


def remove_repository(name: str) -> int | None:
    """Remove all revisions of a model from the cache. The bytes freed; None when it is not there."""
    cache = _scan()
    for repository in cache.repos if cache else ():
        if repository.repo_type == "model" and repository.repo_id == name and cache:
            strategy = cache.delete_revisions(*(revision.commit_hash for revision in repository.revisions))
            strategy.execute()
            return strategy.expected_freed_size
    return None
