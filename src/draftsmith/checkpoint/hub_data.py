"""Files of data sets on a Hugging Face hub, fetched by the official client into its own cache.

A reference is ``hf://datasets/ORG/NAME[@REVISION]/PATH``, as the client's file system writes them. The last part of
PATH may hold ``*`` for several files of one folder: ``hf://datasets/org/name/data/train-*.parquet``.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from draftsmith.checkpoint.atomic import require_space
from draftsmith.checkpoint.hub import TIMEOUT_S, UnreachableError, cache_folder, explain
from draftsmith.errors import DraftsmithError, HubError, UsageError

__all__ = ["PREFIX", "fetch_data"]

PREFIX: Final = "hf://datasets/"
_SHAPE: Final = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?/((?:[\w.=+-]+/)*[\w.=+*-]+)")


def fetch_data(reference: str) -> Path:
    """Where the files are now: the file, or a path whose last part is the pattern still.

    Raises UsageError for a reference of another shape, HubError when the hub does not have the files or cannot be
    reached (what the cache has of the commit is not fetched again), DiskFull.
    """
    shape = _SHAPE.fullmatch(reference)
    if shape is None or ".." in reference:
        raise UsageError(f"{reference} names no files of a data set; write hf://datasets/ORG/NAME[@REVISION]/PATH")
    name, revision, pattern = shape[1], shape[2], shape[3]
    try:
        return _fetch(name, revision, pattern)
    except DraftsmithError:
        raise
    except Exception as error:  # the client raises its own errors and those of its HTTP library; all are explained
        explained = explain(error, name, revision)
        if isinstance(explained, UnreachableError):
            raise HubError(
                f"the hub could not be reached for {name}: {explained}; check the network or HF_ENDPOINT"
            ) from None
        raise explained from None


def _fetch(name: str, revision: str | None, pattern: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT")
    info = HfApi(endpoint=endpoint).dataset_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    folder = pattern.rpartition("/")[0]
    sizes = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if file.rfilename.rpartition("/")[0] == folder and fnmatchcase(file.rfilename, pattern)
    }
    if not sizes:
        raise HubError(f"{name} has no file {pattern} at revision {revision or 'main'}; look at its list of files")
    cache = cache_folder()
    require_space(cache, sum(sizes.values()), name)
    paths = [
        Path(hf_hub_download(name, f, repo_type="dataset", revision=info.sha, cache_dir=cache, endpoint=endpoint))
        for f in sorted(sizes)
    ]
    return paths[0].with_name(pattern.rpartition("/")[2])
