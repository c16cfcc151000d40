"""What a candidate of ``plan`` is made of: a draft model, something that copies, or a mix of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from draftsmith.engine import EngineOptions, LoadedModel
from draftsmith.engine.loading import load_drafter, load_model
from draftsmith.engine.pruned import is_pruned
from draftsmith.errors import UsageError
from draftsmith.measure.plan import Hits, PlainReply, drawn_hits, lookup_hits, mixed_hits, model_hits
from draftsmith.speculate import Drafter, MixedDrafter, PromptLookupDrafter, SuffixDrafter

__all__ = ["DrafterParts", "drafter_parts"]

_COPIES: Mapping[str, Callable[[], Drafter]] = MappingProxyType(
    {"lookup": PromptLookupDrafter, "suffix": SuffixDrafter}
)
_NOT_OF_ENGINE = ("num_draft_tokens", "prompt_format", "progress")


@dataclass(frozen=True, slots=True)
class DrafterParts:
    """``model`` drafts, ``copies`` copies; with both, copies come first. At least one is there. ``drafter`` is both,
    ``draws`` the model's alone."""

    name: str
    drafter: Drafter
    model: LoadedModel | None
    copies: Callable[[], Drafter] | None
    draws: Drafter | None = None

    def hits(self, target: LoadedModel, reply: PlainReply) -> Hits:
        """How it would have drafted ``reply``. A model that reads the target's ids reads it at once."""
        copied = None if self.copies is None else lookup_hits(reply, self.copies())
        drawn = None
        if self.model is not None and self.draws is not None:
            same = self.model.tokenizer.fingerprint() == target.tokenizer.fingerprint()
            drawn = model_hits(self.model, target, reply) if same else drawn_hits(reply, self.draws)
        if copied is None or drawn is None:
            found = copied or drawn
            assert found is not None  # noqa: S101 - one of the two is there
            return found
        return mixed_hits(copied, drawn)


def drafter_parts(name: str | LoadedModel, target: LoadedModel, options: Mapping[str, Any]) -> DrafterParts:
    """``name``: as ``--draft`` has it. ``options``: those of ``LLM``. Raises UsageError, and what loading raises."""
    if name in ("none", "auto"):
        raise UsageError(f"{name} is no candidate; name drafters, for example lookup or a draft model")
    if isinstance(name, str) and name in _COPIES:
        return DrafterParts(name, _COPIES[name](), None, _COPIES[name])
    known = {key: value for key, value in options.items() if key not in _NOT_OF_ENGINE}
    reference, plus, free = ("", "", "") if isinstance(name, LoadedModel) else name.rpartition("+")
    if plus and reference and free in _COPIES:
        drafter, model = _with_model(reference, target, EngineOptions(**known))
        return DrafterParts(str(name), MixedDrafter(_COPIES[free](), drafter), model, _COPIES[free], drafter)
    drafter, model = _with_model(name, target, EngineOptions(**known))
    return DrafterParts(name if isinstance(name, str) else name.name, drafter, model, None, drafter)


def _with_model(
    reference: str | LoadedModel, target: LoadedModel, options: EngineOptions
) -> tuple[Drafter, LoadedModel]:
    """The drafter, and its model; one with a pruned vocabulary speaks the target's ids already."""
    pruned = isinstance(reference, str) and is_pruned(reference)
    draft = reference if pruned or isinstance(reference, LoadedModel) else load_model(reference, options.for_draft())
    loaded = load_drafter(draft, target, options)
    assert loaded is not None  # noqa: S101 - what is named here is never none
    assert loaded.model is not None  # noqa: S101 - and has a model
    if isinstance(draft, LoadedModel):
        return loaded.drafter, draft
    return loaded.drafter, LoadedModel(draft, loaded.model, target.tokenizer)
