"""How near steps come to the memory's limit: the bytes that each must read / its time, beside the read bandwidth.

A step of one token, and a check of a few, wait for memory: they cannot take less than bytes / bandwidth (the slope of a
roofline; Williams et al. 2009). Weights are read once however many tokens are checked, so a check whose share of the
bandwidth falls is one that has begun to wait for arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from draftsmith.measure.costs import CostCurves
from draftsmith.model.protocol import Model
from draftsmith.speculate.drafters.model import common_vocabulary

__all__ = ["Phase", "ReadingModel", "Roofline", "measure_roofline"]

CHECKS = (2, 4, 8, 16)


@runtime_checkable
class ReadingModel(Protocol):
    """A model that knows what its steps read; see ``NativeModel``."""

    def step_bytes(self, context: int, vocab_limit: int | None = None) -> int:
        """Bytes that a step after ``context`` tokens must read."""
        ...


@runtime_checkable
class _MeasuredMemory(ReadingModel, Protocol):
    def read_bandwidth(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Phase:
    """What is done in one go: ``num_bytes`` that it must read, and the ``seconds`` that it takes."""

    name: str
    num_bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.num_bytes / self.seconds


@dataclass(frozen=True, slots=True)
class Roofline:
    """``bandwidth``: bytes per second that the same threads read from memory at best."""

    bandwidth: float
    phases: tuple[Phase, ...]

    def as_dict(self) -> dict[str, Any]:
        """Only what JSON knows."""
        phases = [
            {"phase": p.name, "bytes": p.num_bytes, "seconds": p.seconds, "share_of_bandwidth": p.rate / self.bandwidth}
            for p in self.phases
        ]
        return {"read_bandwidth": self.bandwidth, "phases": phases}


def measure_roofline(target: Model, draft: Model | None, costs: CostCurves) -> Roofline | None:
    """The steps that ``costs`` timed, beside the bandwidth as it is now; None where the backend cannot tell."""
    if not isinstance(target, _MeasuredMemory):
        return None
    context = costs.context
    read = target.step_bytes(context)
    phases = [Phase("plain step", read, costs.plain_s)]
    phases += [
        Phase(f"check of {size}", read, costs.plain_s * costs.verify[size]) for size in CHECKS if size in costs.verify
    ]
    if isinstance(draft, ReadingModel) and costs.draft_cost:
        limit = common_vocabulary(min(draft.vocab_size, target.vocab_size))
        phases.append(Phase("draft step", draft.step_bytes(context, limit), costs.plain_s * costs.draft_cost))
    return Roofline(target.read_bandwidth(), tuple(phases))
