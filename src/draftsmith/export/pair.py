"""Whether an engine can run a target and a draft together, and what to change when it cannot.

What the engines demand, read from their sources: vLLM 0.33.0 (config/speculative.py, v1/spec_decode/draft_model.py),
SGLang 0.5.23 (srt/speculative/standalone_worker_v2.py), llama.cpp 0c1e57098 (common/speculative.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from draftsmith.errors import TokenizerError, UsageError
from draftsmith.export.source import Source
from draftsmith.export.weights import WeightSet
from draftsmith.speculate import compare_vocabularies

__all__ = ["Engine", "FittedPair", "fit"]

Engine = Literal["vllm", "sglang", "llama.cpp"]
_NAMES: Final = {"vllm": "vLLM", "sglang": "SGLang", "llama.cpp": "llama.cpp"}
_LLAMA_CPP_SLACK: Final = 128  # rows by which its vocabularies may differ


@dataclass(frozen=True, slots=True, eq=False)
class FittedPair:
    """What will run. ``draft`` are the draft's weights, resized if need be; ``same_tokens``: the ids mean the same."""

    engine: Engine
    draft: WeightSet
    same_tokens: bool
    notes: tuple[str, ...]


def fit(engine: Engine, target: Source, draft: Source, *, pad_vocab: bool) -> FittedPair:
    """The pair as the engine takes it. Tokenizers are compared by content, sizes by the rows of the weights.

    ``pad_vocab``: give the draft the target's number of rows if it has another one.
    Raises UsageError or TokenizerError, with what to do, when the engine would refuse the pair.
    """
    rows = target.weights.config.vocab_size
    notes = list(dict.fromkeys((*target.notes, *draft.notes)))
    if target.tokenizer.fingerprint() != draft.tokenizer.fingerprint():
        notes.append(_for_other_tokens(engine, target, draft))
        return FittedPair(engine, draft.weights, same_tokens=False, notes=tuple(notes))
    own = draft.weights.config.vocab_size
    slack = _LLAMA_CPP_SLACK if engine == "llama.cpp" else 0
    weights = draft.weights
    if pad_vocab and own != rows:
        weights = weights.with_vocabulary(rows, draft.tokenizer.vocab_size)
        notes.append(f"the draft's vocabulary went from {own} rows to the target's {rows}; the tokens are the same")
    elif abs(own - rows) > slack:
        raise UsageError(
            f"{_NAMES[engine]} wants vocabularies of one size, and the target has {rows} rows and the draft {own} for "
            "the same tokens; add --pad-vocab, which gives the draft as many as the target"
        )
    context, shorter = target.weights.config.max_context, draft.weights.config.max_context
    if shorter < context:
        notes.append(f"the draft reads {shorter} tokens and the target {context}; longer texts go on without drafts")
    return FittedPair(engine, weights, same_tokens=True, notes=tuple(notes))


def _for_other_tokens(engine: Engine, target: Source, draft: Source) -> str:
    """A note on the pair's two vocabularies, for the one engine that translates. Raises TokenizerError for others."""
    if engine != "vllm":
        raise TokenizerError(
            f"{_NAMES[engine]} runs no draft whose tokens are not the target's, and {draft.reference} has other tokens "
            f"than {target.reference}; make a draft with draftsmith train, or export the pair for vllm"
        )
    if not (target.tokenizer.eos_ids or target.tokenizer.unk_id is not None):
        raise TokenizerError(f"{target.reference} has neither an EOS nor an unknown token; vLLM needs one to translate")
    overlap = compare_vocabularies(target.tokenizer, draft.tokenizer).overlap
    return (
        "the two vocabularies differ: vLLM will draft with the tokens that both have (use_heterogeneous_vocab), which "
        f"make up about {100 * overlap:.0f} % of a text"
    )
