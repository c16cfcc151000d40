"""The engine. ``LLM`` loads models, keeps caches, runs the loop of ``speculate``, turns tokens into text; ``Engine``
serves many requests at once, and ``engine.thread.EngineThread`` does so in a thread of its own.
"""

from draftsmith.engine.assemble import Piece
from draftsmith.engine.batch import Engine, EngineStats
from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.engine.limits import EngineLimits
from draftsmith.engine.llm import LLM, Prompt
from draftsmith.engine.loading import DraftChoice, LoadedModel
from draftsmith.engine.options import DEFAULT_TARGET, EngineOptions, Progress
from draftsmith.engine.stream import TextStream

__all__ = [
    "DEFAULT_TARGET",
    "LLM",
    "DraftChoice",
    "Engine",
    "EngineLimits",
    "EngineOptions",
    "EngineStats",
    "Handle",
    "LoadedModel",
    "Piece",
    "Progress",
    "Prompt",
    "RequestOptions",
    "TextStream",
]
