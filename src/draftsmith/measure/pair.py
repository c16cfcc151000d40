"""A target, alone and with a drafter: the two things that every measurement compares."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draftsmith.engine import LLM, DraftChoice, EngineOptions, LoadedModel, Progress
from draftsmith.engine.options import no_progress
from draftsmith.engine.pruned import is_pruned
from draftsmith.errors import UsageError
from draftsmith.measure.recording import RecordingModel
from draftsmith.model.protocol import Model, TokenRun

__all__ = ["Memory", "Pair", "load_pair", "resident_bytes"]

NOT_MODELS = ("auto", "lookup", "suffix", "none")
MIXES = ("+lookup", "+suffix")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of this process before loading, with the target, and with target and draft."""

    before: int
    with_target: int
    with_draft: int

    def as_dict(self) -> dict[str, int]:
        """Only what JSON knows, with the peak so far."""
        scale = 1 if sys.platform == "darwin" else 1024
        return {
            "target_bytes": self.with_target - self.before,
            "draft_bytes": self.with_draft - self.with_target,
            "resident_bytes": resident_bytes(),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """Two LLMs that share the target's weights but no cache.

    ``target`` records its forwards. The draft model is used as it is: wrapped, it would lose its way of writing drafts.
    """

    plain: LLM
    speculative: LLM
    target: RecordingModel
    memory: Memory
    options: dict[str, Any]


def load_pair(
    target: str | Path | LoadedModel,
    draft: DraftChoice = "auto",
    *,
    progress: Progress = no_progress,
    **options: Any,
) -> Pair:
    """Load target and drafter once, for plain and for speculative decoding.

    ``options`` are those of ``LLM``. Raises UsageError without a drafter, and whatever ``LLM`` raises.
    """
    if draft in (None, "none"):
        raise UsageError("there is nothing to compare with --draft none; give a draft model or lookup")
    common = {name: value for name, value in options.items() if name not in ("num_draft_tokens", "rule")}
    before = resident_bytes()
    loaded = target if isinstance(target, LoadedModel) else LLM(target, "none", progress=progress, **common).target
    _touch(loaded.model)
    with_target = resident_bytes()
    recorded = RecordingModel(loaded.model)
    shared = replace(loaded, model=recorded)
    plain = LLM(shared, "none", progress=progress, **common)
    drafts_only = isinstance(draft, str | Path) and (str(draft) in NOT_MODELS or is_pruned(draft))
    if isinstance(draft, str | Path) and not drafts_only and not str(draft).endswith(MIXES):
        draft = LLM(draft, "none", progress=progress, **_of_draft(common)).target
    speculative = LLM(shared, draft, progress=progress, **options)
    if speculative.draft_model is not None:
        _touch(speculative.draft_model)
    memory = Memory(before, with_target, resident_bytes())
    return Pair(plain, speculative, recorded, memory, {**options, "draft": speculative.drafter_name})


def _of_draft(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``LLM`` that load the draft model where it is to run."""
    names = ("backend", "device", "draft_backend", "draft_device", "dtype")
    places = {name: options[name] for name in names if name in options}
    draft = EngineOptions(**places).for_draft()
    rest = {name: value for name, value in options.items() if name not in (*places, "exact")}
    return {**rest, "backend": draft.backend, "device": draft.device, "dtype": draft.dtype}


def _touch(model: Model) -> None:
    """Weights that are mapped from a file count as resident once a token has met them."""
    model.forward([TokenRun(model.new_cache(1), [0])])


def resident_bytes() -> int:
    """Memory of this process that is in use now; its peak where the system tells only that."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
