"""Drafts that know only a part of their target's vocabulary.

Such a GGUF file has M rows in its embedding and its output layer. Row i stands for the target's id ``token_ids[i]``;
what a text holds of other ids is read with the row ``rows[id]`` of a similar one, and never written. Both arrays are in
the file's metadata, with the fingerprint of the target's tokenizer; the file has none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from draftsmith.errors import CheckpointError

__all__ = ["DraftVocabulary"]

_PREFIX: Final = "draftsmith.draft."
_TOKEN_IDS, _ROWS, _FINGERPRINT = _PREFIX + "token_ids", _PREFIX + "rows", _PREFIX + "fingerprint"


@dataclass(frozen=True, slots=True, eq=False)
class DraftVocabulary:
    """``token_ids`` int64 [M]: the target's id of each row. ``rows`` int64 [V]: the row that reads each of the target's
    ids. ``fingerprint``: the target's tokenizer's (``Tokenizer.fingerprint()``)."""

    token_ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    fingerprint: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any], num_rows: int, path: Path) -> DraftVocabulary | None:
        """From a GGUF file's metadata; None when it states none. Raises CheckpointError when it makes no sense."""
        if _TOKEN_IDS not in metadata:
            return None
        wrong = CheckpointError(
            f"{path} states a vocabulary that does not fit its {num_rows} rows; make the draft again"
        )
        fingerprint = metadata.get(_FINGERPRINT)
        ids, rows = (np.asarray(metadata.get(key, ())) for key in (_TOKEN_IDS, _ROWS))
        if not isinstance(fingerprint, str) or ids.dtype.kind not in "iu" or rows.dtype.kind not in "iu":
            raise wrong
        if ids.shape != (num_rows,) or rows.ndim != 1 or ids.min() < 0 or ids.max() >= rows.size:
            raise wrong
        if rows.min() < 0 or rows.max() >= num_rows or not np.array_equal(rows[ids], np.arange(num_rows)):
            raise wrong  # every row reads its own id, so none occurs twice
        return cls(ids.astype(np.int64), rows.astype(np.int64), fingerprint)

    def metadata(self) -> dict[str, Any]:
        """The keys for a GGUF file."""
        return {_TOKEN_IDS: self.token_ids.tolist(), _ROWS: self.rows.tolist(), _FINGERPRINT: self.fingerprint}
