"""The engine, ``LLM``: loads models, keeps caches, runs the loop of ``speculate`` and turns its tokens into text."""

from draftsmith.engine.assemble import Piece
from draftsmith.engine.llm import LLM, Prompt
from draftsmith.engine.loading import DraftChoice, LoadedModel
from draftsmith.engine.options import DEFAULT_TARGET, EngineOptions, Progress
from draftsmith.engine.stream import TextStream

__all__ = [
    "DEFAULT_TARGET",
    "LLM",
    "DraftChoice",
    "EngineOptions",
    "LoadedModel",
    "Piece",
    "Progress",
    "Prompt",
    "TextStream",
]
