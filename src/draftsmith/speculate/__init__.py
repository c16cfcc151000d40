"""Drafting, verification, length policy and the reference loop. Knows models only as ``model.protocol.Model``."""

from draftsmith.speculate.adaptive import AutoLength
from draftsmith.speculate.drafters import (
    Drafter,
    DraftSession,
    DraftSteps,
    MixedDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    PrunedModel,
    SteppedDraftSession,
    SuffixDrafter,
    TranslatedDrafter,
    WantsMore,
    common_prefix,
)
from draftsmith.speculate.loop import Round, RoundTimes, generate, token_limit
from draftsmith.speculate.policy import CostModel, Costs, FixedLength, LengthPolicy, TheoryLength, begin_text
from draftsmith.speculate.replay import ReplayResult, replay
from draftsmith.speculate.stats import SpeculationCounter
from draftsmith.speculate.trace import RoundRecord, Trace, TracedDrafter, read_trace, trace_json
from draftsmith.speculate.verify import verify
from draftsmith.speculate.vocabulary import VocabularyMap, check_same_vocabulary, compare_vocabularies

__all__ = [
    "AutoLength",
    "CostModel",
    "Costs",
    "DraftSession",
    "DraftSteps",
    "Drafter",
    "FixedLength",
    "LengthPolicy",
    "MixedDrafter",
    "ModelDrafter",
    "PromptLookupDrafter",
    "PrunedModel",
    "ReplayResult",
    "Round",
    "RoundRecord",
    "RoundTimes",
    "SpeculationCounter",
    "SteppedDraftSession",
    "SuffixDrafter",
    "TheoryLength",
    "Trace",
    "TracedDrafter",
    "TranslatedDrafter",
    "VocabularyMap",
    "WantsMore",
    "begin_text",
    "check_same_vocabulary",
    "common_prefix",
    "compare_vocabularies",
    "generate",
    "read_trace",
    "replay",
    "token_limit",
    "trace_json",
    "verify",
]
