"""draftsmith: speculative decoding as one craft. Make a draft model, use it, and prove that only the speed changed.

    from draftsmith import LLM, SamplingParams, pipeline

The public names are those of ``__all__``; they load what they need when they are first used, so that importing this
package costs nothing. ``docs/architecture.md`` draws the way of a request through the sub-packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# ``pipeline`` is also the name of its module, which Python binds here when it loads it. Importing the function from it
# at once, and nothing heavy with it, makes sure that ``draftsmith.pipeline`` is the function for everybody.
from draftsmith.pipeline import pipeline

if TYPE_CHECKING:
    from draftsmith.engine import LLM
    from draftsmith.errors import DraftsmithError
    from draftsmith.types import Completion, Grammar, Message, SamplingParams

__all__ = [
    "LLM",
    "Completion",
    "DraftsmithError",
    "Grammar",
    "Message",
    "SamplingParams",
    "__version__",
    "pipeline",
]

_HOME = {
    "LLM": "draftsmith.engine",
    "Completion": "draftsmith.types",
    "DraftsmithError": "draftsmith.errors",
    "Grammar": "draftsmith.types",
    "Message": "draftsmith.types",
    "SamplingParams": "draftsmith.types",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("draftsmith")
        except PackageNotFoundError:  # run from a source tree that was never installed
            value = "0+unknown"
    elif name in _HOME:
        from importlib import import_module

        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'draftsmith' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
