"""Encoded documents on disk, read through memory maps: data of any size, and every document found by its number.

A store is a folder of flat arrays and a meta.json, written last: without it the store is not there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from draftsmith.checkpoint.atomic import atomic_file, explain_os_error
from draftsmith.errors import CheckpointError
from draftsmith.train.encode import Document

__all__ = ["StoreWriter", "TokenStore"]

_ARRAYS = {"ids": np.uint32, "mask": np.bool_, "lengths": np.int64, "top_ids": np.uint32, "top_logprobs": np.float16}


class TokenStore:
    """``group`` documents belong together (2 for preferences: chosen, rejected); ``len`` counts groups.

    ``lengths`` int64 [documents]; ``top_k`` is the number of log-probabilities a learnt token has, 0 for none.
    """

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when the store is damaged."""
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.group, self.top_k = int(meta["group"]), int(meta["top_k"])
            self.report: dict[str, Any] = meta["report"]
            self.lengths = np.fromfile(folder / "lengths.bin", np.int64)
            self._ids, self._mask = _map(folder, "ids"), _map(folder, "mask")
            learnt = np.fromfile(folder / "learnt.bin", np.int64)
            if self.top_k:
                self._top_ids = _map(folder, "top_ids").reshape(-1, self.top_k)
                self._top_logprobs = _map(folder, "top_logprobs").reshape(-1, self.top_k)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the encoded data in {folder} is damaged ({error}); remove the folder") from None
        self.learnt = learnt
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self._tops = np.concatenate([[0], np.cumsum(learnt)])
        if self._ids.size != self._starts[-1] or self._mask.size != self._ids.size:
            raise CheckpointError(f"the encoded data in {folder} is incomplete; remove the folder")

    def __len__(self) -> int:
        return self.lengths.size // self.group

    def document(self, number: int) -> Document:
        """Document ``number``; its arrays are views of the files."""
        start, end = self._starts[number], self._starts[number + 1]
        ids, mask = self._ids[start:end], self._mask[start:end]
        if not self.top_k:
            return Document(ids, mask)
        rows = slice(self._tops[number], self._tops[number + 1])
        return Document(ids, mask, self._top_ids[rows], self._top_logprobs[rows])

    def group_lengths(self) -> npt.NDArray[np.int64]:
        """int64 [groups]: tokens of each group."""
        return np.asarray(self.lengths.reshape(-1, self.group).sum(axis=1))


def _map(folder: Path, name: str) -> npt.NDArray[Any]:
    path = folder / f"{name}.bin"
    if path.stat().st_size == 0:
        return np.zeros(0, _ARRAYS[name])
    return np.memmap(path, _ARRAYS[name], mode="r")


class StoreWriter:
    """Writes a store document by document; used as a context. ``finish`` makes it complete; without it nothing stays.

    All documents have log-probabilities of one width, or none has. Raises DiskFull, ResourceError.
    """

    def __init__(self, folder: Path, group: int = 1) -> None:
        self._folder, self._group = folder, group
        self._lengths: list[int] = []
        self._learnt: list[int] = []
        self._top_k = 0
        self._finished = False
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._files = {name: (folder / f"{name}.bin").open("wb") for name in _ARRAYS if name != "lengths"}
        except OSError as error:
            raise explain_os_error(error, folder) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if not self._finished:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, document: Document) -> None:
        """Append one document."""
        self._lengths.append(document.ids.size)
        self._learnt.append(int(document.mask.sum()))
        self._write("ids", document.ids)
        self._write("mask", document.mask)
        if document.top_ids is not None and document.top_logprobs is not None:
            self._top_k = document.top_ids.shape[1]
            self._write("top_ids", document.top_ids)
            self._write("top_logprobs", document.top_logprobs)

    def finish(self, report: dict[str, Any]) -> TokenStore:
        """Complete the store; ``report`` is kept beside the data."""
        try:
            for file in self._files.values():
                file.flush()
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        meta = {"group": self._group, "top_k": self._top_k, "report": report}
        for name, content in (
            ("lengths.bin", np.array(self._lengths, np.int64).tobytes()),
            ("learnt.bin", np.array(self._learnt, np.int64).tobytes()),
            ("meta.json", json.dumps(meta).encode()),
        ):
            with atomic_file(self._folder / name) as complete:
                complete.write(content)
        self._finished = True
        return TokenStore(self._folder)

    def _write(self, name: str, values: npt.NDArray[Any]) -> None:
        try:
            self._files[name].write(np.ascontiguousarray(values, _ARRAYS[name]).tobytes())
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
