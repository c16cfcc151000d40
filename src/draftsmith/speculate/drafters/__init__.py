"""Drafters: what proposes tokens for the target to check."""

from draftsmith.speculate.drafters.lookup import PromptLookupDrafter
from draftsmith.speculate.drafters.model import ModelDrafter, common_prefix
from draftsmith.speculate.drafters.protocol import Drafter, DraftSession, SteppedDraftSession, WantsMore

__all__ = [
    "DraftSession",
    "Drafter",
    "ModelDrafter",
    "PromptLookupDrafter",
    "SteppedDraftSession",
    "WantsMore",
    "common_prefix",
]
