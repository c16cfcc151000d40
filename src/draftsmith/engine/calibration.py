"""Measured costs, kept on disk: the second start with the same models on the same machine measures nothing.

One small JSON file for each (target, draft, machine, threads, build of the engine), under the cache folder. It can be
deleted at any time; one that cannot be read, or whose numbers make no sense, is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftsmith.checkpoint.atomic import atomic_file
from draftsmith.checkpoint.cache_dir import cache_dir
from draftsmith.engine.calibrate import StepCosts, measure_steps
from draftsmith.engine.live import LiveCosts
from draftsmith.engine.loading import LoadedDrafter, LoadedModel
from draftsmith.errors import ResourceError
from draftsmith.provenance import machine, version
from draftsmith.speculate import CostModel

__all__ = ["Calibration", "calibration_path", "read_calibration", "write_calibration"]

FORMAT = "draftsmith calibration 4"
_MAX_BYTES = 1 << 16
_FAR = 0.2
_LONGEST_STEP_S = 3600.0


class Calibration:
    """The costs of one pair of models: from disk, or else measured and put there; and followed while text is written.

    ``steps`` never changes. ``live`` does, and when it has proved ``steps`` wrong, the file is written anew for
    the next start.
    """

    def __init__(self, target: LoadedModel, drafter: LoadedDrafter | None, threads: int | None) -> None:
        draft, identity = (drafter.model, drafter.identity) if drafter is not None else (None, "")
        self._path = calibration_path((target.identity, identity), threads)
        known = read_calibration(self._path) if self._path is not None else None
        self.steps = known or measure_steps(target.model, draft)
        self.live = LiveCosts(self.steps)
        self._written = known or self._keep(self.steps)

    def refresh(self) -> None:
        """Write down what was learnt if it is far from what is written; for the end of a text."""
        now = self.live.steps()
        if _far_apart(now.costs, self._written.costs):
            self._written = self._keep(now)

    def _keep(self, steps: StepCosts) -> StepCosts:
        if self._path is not None:
            write_calibration(self._path, steps)
        return steps


def calibration_path(identities: Sequence[str | None], threads: int | None) -> Path | None:
    """Where the costs of these models (target, then draft) belong; None when one of them has no identity.

    ``threads`` None: one for each processor, as for the engine.
    """
    if any(identity is None for identity in identities):
        return None
    cpu, isa, cpus = machine()
    parts = [FORMAT, *identities, cpu, isa, cpus, threads or cpus, version(), _build()]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    return cache_dir() / "calibration" / f"{key}.json"


def read_calibration(path: Path) -> StepCosts | None:
    """The costs in ``path``; None when there are none that make sense."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        value: Any = json.loads(path.read_bytes())
        if value["format"] != FORMAT:
            return None
        verify = tuple(map(float, value["verify"]))
        step, read, start = (float(value[name]) for name in ("draft_step", "draft_read", "draft_start"))
        context_step, context_row = (float(value[name]) for name in ("context_step", "context_row"))
        costs = CostModel(step, verify, read, start, context_step, context_row)
        steps = StepCosts(float(value["plain_s"]), costs)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if _makes_sense(steps) else None


def write_calibration(path: Path, steps: StepCosts) -> None:
    """Keep ``steps`` for the next start. Where that cannot be, the next start measures again: no reason to fail."""
    value = {
        "format": FORMAT,
        "plain_s": steps.plain_s,
        "draft_step": steps.costs.draft_step,
        "draft_read": steps.costs.draft_read,
        "draft_start": steps.costs.draft_start,
        "verify": list(steps.costs.verify),
        "context_step": steps.costs.context_step,
        "context_row": steps.costs.context_row,
    }
    with contextlib.suppress(ResourceError), atomic_file(path) as file:
        file.write(json.dumps(value).encode())


def _far_apart(a: CostModel, b: CostModel) -> bool:
    pairs = [
        (a.draft_cost(1), b.draft_cost(1)),
        *((a.verify_cost(size), b.verify_cost(size)) for size in (2, 4, 8, 16)),
    ]
    return any(abs(one - other) > _FAR * max(one, other) for one, other in pairs)


def _makes_sense(steps: StepCosts) -> bool:
    costs = steps.costs
    numbers = [
        *(steps.plain_s, costs.context_step, costs.context_row),
        *(costs.draft_step, costs.draft_read, costs.draft_start),
        *costs.verify,
    ]
    return (
        all(math.isfinite(number) for number in numbers)
        and 0 < steps.plain_s < _LONGEST_STEP_S
        and costs.verify[0] == 1
        and list(costs.verify) == sorted(costs.verify)
    )


def _build() -> str:
    """Changes with every build of the native engine, whose speed is what was measured."""
    from draftsmith.model import _native

    try:
        state = Path(str(_native.__file__)).stat()
    except OSError:
        return ""
    return f"{state.st_size} {state.st_mtime_ns}"
