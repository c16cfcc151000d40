"""Logits to distribution to token: all sampling options, penalties' history, counter-based noise, log-probabilities."""

from draftsmith.sampling.distribution import point, probability_of, residual, without
from draftsmith.sampling.history import TokenHistory
from draftsmith.sampling.logprobs import logprobs_of
from draftsmith.sampling.noise import Noise, NoiseSource
from draftsmith.sampling.process import needs_history, process
from draftsmith.sampling.state import TextState

__all__ = [
    "Noise",
    "NoiseSource",
    "TextState",
    "TokenHistory",
    "logprobs_of",
    "needs_history",
    "point",
    "probability_of",
    "process",
    "residual",
    "without",
]
