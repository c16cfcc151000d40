"""The engine. ``LLM`` loads models, keeps caches, runs the loop of ``speculate``, turns tokens into text; ``Engine``
serves many requests at once, and ``EngineThread`` does so in a thread of its own.
"""

from draftsmith.engine.assemble import Piece
from draftsmith.engine.batch import Engine, EngineStats
from draftsmith.engine.handle import Handle, RequestOptions
from draftsmith.engine.limits import EngineLimits
from draftsmith.engine.llm import LLM, Prompt
from draftsmith.engine.loading import DraftChoice, LoadedModel
from draftsmith.engine.options import DEFAULT_TARGET, EngineOptions, Progress
from draftsmith.engine.stream import TextStream
from draftsmith.engine.thread import AsyncReply, EngineThread

__all__ = [
    "DEFAULT_TARGET",
    "LLM",
    "AsyncReply",
    "DraftChoice",
    "Engine",
    "EngineLimits",
    "EngineOptions",
    "EngineStats",
    "EngineThread",
    "Handle",
    "LoadedModel",
    "Piece",
    "Progress",
    "Prompt",
    "RequestOptions",
    "TextStream",
]
