"""Drafts that go from the draft model to the target on the device (``protocol.DeviceModel``): a round waits once.

The draft's ids are fed to the target's forward as they lie there; they, and the target's choices or its logits, come to
the host in one transfer, those of all texts of a batch together.

Shape legend: K tokens of a draft, V entries of a row of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from draftsmith.errors import CheckpointError
from draftsmith.model.protocol import Checked
from draftsmith.model.torch_backend import transfer
from draftsmith.model.torch_backend.cache import TorchCache
from draftsmith.model.torch_backend.chain import likeliest
from draftsmith.model.torch_backend.transfer import Ids, joined

__all__ = ["Checker", "DeviceDraft", "check_drafts"]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceDraft:
    """An ``UnseenDraft``. ``taken`` [2, K], of float32: ids, exact below 2**24, and probabilities. ``limit``: all ids
    are below it.
    """

    taken: torch.Tensor
    limit: int

    def __len__(self) -> int:
        return int(self.taken.shape[1])

    @property
    def ids(self) -> torch.Tensor:
        """int64 [K], on the device."""
        return self.taken[0].long()


class Checker(Protocol):
    """What is needed of the model."""

    def rows(self, ids: Ids, num_logits: int, cache: TorchCache) -> torch.Tensor:
        """Read ``ids``; [num_logits, V] on the device."""
        ...


def check_drafts(
    model: Checker, texts: Sequence[tuple[Sequence[int], DeviceDraft, TorchCache, bool]], name: str
) -> list[Checked]:
    """Append ids and draft to the cache, for each of ``texts``, which may want the logits; then wait once.

    Raises CheckpointError, which begins with ``name``, when logits are not finite numbers.
    """
    found: list[torch.Tensor] = []
    for ids, draft, cache, wants_logits in texts:
        rows = model.rows(joined(ids, draft.ids), len(draft) + 1, cache).float()
        said = rows if wants_logits else _choices(rows)
        found += [draft.taken, said]
    flat = [part.flatten().float().to(found[0].device, non_blocking=True) for part in found]
    pieces = np.split(transfer.fetch(torch.cat(flat)), np.cumsum([part.numel() for part in flat])[:-1])
    shaped = iter([piece.reshape(part.shape) for piece, part in zip(pieces, found, strict=True)])
    return [_checked(next(shaped), next(shaped), wants_logits, name) for *_, wants_logits in texts]


def _choices(rows: torch.Tensor) -> torch.Tensor:
    """[2, K + 1]: ids, exact in float32, and their logits."""
    ids, best = likeliest(rows, torch.arange(rows.shape[1], device=rows.device))
    return torch.stack((ids.float(), best))


def _checked(taken: npt.NDArray[np.float32], said: npt.NDArray[np.float32], wants_logits: bool, name: str) -> Checked:
    """``said`` [K + 1, V], or [2, K + 1]: choices, and the logits of these."""
    ids, probabilities = taken
    for whose, numbers in (("The draft model", probabilities), (name, said.max(1) if wants_logits else said[1])):
        if not np.isfinite(numbers).all():
            raise CheckpointError(
                f"{whose}'s logits are not finite numbers; its files may be damaged, so fetch them again"
            )
    choices = () if wants_logits else tuple(int(i) for i in said[0])
    draft_ids, confidences = tuple(int(i) for i in ids), tuple(float(p) for p in probabilities)
    return Checked(draft_ids, confidences, choices, said if wants_logits else None)
