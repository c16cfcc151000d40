"""Drafters: what proposes tokens for the target to check."""

from draftsmith.speculate.drafters.lookup import PromptLookupDrafter
from draftsmith.speculate.drafters.mixed import MixedDrafter
from draftsmith.speculate.drafters.model import ModelDrafter, common_prefix
from draftsmith.speculate.drafters.protocol import Drafter, DraftSession, DraftSteps, SteppedDraftSession, WantsMore
from draftsmith.speculate.drafters.pruned import PrunedModel
from draftsmith.speculate.drafters.suffix import SuffixDrafter
from draftsmith.speculate.drafters.translated import TranslatedDrafter

__all__ = [
    "DraftSession",
    "DraftSteps",
    "Drafter",
    "MixedDrafter",
    "ModelDrafter",
    "PromptLookupDrafter",
    "PrunedModel",
    "SteppedDraftSession",
    "SuffixDrafter",
    "TranslatedDrafter",
    "WantsMore",
    "common_prefix",
]
