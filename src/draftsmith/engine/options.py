"""How models are to be run: checked once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from draftsmith.errors import UsageError
from draftsmith.model.storage import CacheDtype, Dtype, Quantize
from draftsmith.types import VerificationRule

__all__ = ["DEFAULT_TARGET", "MAX_DRAFT_TOKENS", "Backend", "EngineOptions", "Progress", "no_progress"]

DEFAULT_TARGET = "smollm2-135m-instruct"
MAX_DRAFT_TOKENS = 64

Backend = Literal["auto", "native", "torch"]

_CHOICES: dict[str, tuple[object, ...]] = {
    "backend": ("auto", "native", "torch"),
    "draft_backend": (None, "auto", "native", "torch"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantize": (None, "4bit", "8bit"),
    "kv_dtype": ("auto", "float32", "float16", "int8"),
    "rule": ("coupled", "rejection"),
}


Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: told how far a long piece of work is, in bytes; ``total`` is 0 while unknown."""


def no_progress(what: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The arguments of ``LLM`` that are not models; they mean the same for target and draft.

    ``draft_backend`` and ``draft_device``: where the draft model runs, if not as the target does. ``exact``: of the
    torch backend; native always is.

    Raises UsageError on construction for values out of range.
    """

    backend: Backend = "auto"
    device: str = "auto"
    draft_backend: Backend | None = None
    draft_device: str | None = None
    exact: bool = False
    dtype: Dtype = "auto"
    quantize: Quantize | None = None
    kv_dtype: CacheDtype = "auto"
    num_draft_tokens: int | Literal["auto"] = "auto"
    rule: VerificationRule = "coupled"
    threads: int | None = None
    max_context: int | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                listed = " or ".join(str(choice).lower() for choice in choices)
                raise UsageError(f"{name} is {value!r}; it must be {listed}")
        k = self.num_draft_tokens
        if k != "auto" and (isinstance(k, str) or not 1 <= k <= MAX_DRAFT_TOKENS):
            raise UsageError(f"num_draft_tokens is {k!r}; it must be auto or from 1 to {MAX_DRAFT_TOKENS}")
        for name, count in (("threads", self.threads), ("max_context", self.max_context)):
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}; it must be at least 1")

    def for_draft(self) -> EngineOptions:
        """The options that the draft model is loaded with."""
        backend, device = self.draft_backend or self.backend, self.draft_device or self.device
        if self.draft_backend == "native" and self.draft_device is None:
            device = "auto"  # the target's may be one that native does not have
        changes: dict[str, Any] = {"backend": backend, "device": device, "draft_backend": None, "draft_device": None}
        if backend == "native" != self.backend and self.dtype in ("bfloat16", "float16"):
            changes["dtype"] = "auto"  # said of the target, on its device; a native draft is mostly a quantised file
        return replace(self, exact=False, **changes)
