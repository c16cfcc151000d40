"""The rules by which byte-level vocabularies cut a text into words before merging, by their name in GGUF files.

GGUF's ``tokenizer.ggml.pre`` names the rules of the model that the vocabulary was made for; each entry below is what
that model's own tokenizer.json says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from draftsmith.errors import TokenizerError

__all__ = ["PRE_TOKENIZERS", "PreTokenizer", "pre_tokenizer_named"]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """``splits``: patterns to isolate, one after the other; ``digits``: every digit stands alone; ``gpt2``: then cut by
    GPT-2's own pattern. ``nfc``: the text is normalised to NFC first. ``ignore_merges``: words that are in the
    vocabulary are taken whole. ``add_bos``: what to do when the file does not say."""

    splits: tuple[str, ...] = ()
    digits: bool = False
    gpt2: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def settings(self) -> dict[str, Any]:
        """Normalizer and pre-tokenizer in the form of tokenizer.json."""
        steps: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in self.splits
        ]
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": self.gpt2})
        return {
            "normalizer": {"type": "NFC"} if self.nfc else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        }


def _cl100k(digits: str) -> str:
    """The pattern that Llama 3 and Qwen share but for the length of runs of digits."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_GPT2 = PreTokenizer(gpt2=True)
_GPT2_DIGITS = PreTokenizer(digits=True, gpt2=True)
_LLAMA3 = PreTokenizer(splits=(_cl100k(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_QWEN = _cl100k(r"\p{N}")

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "default": _GPT2,
        "gpt-2": _GPT2,
        "smollm": _GPT2_DIGITS,
        "starcoder": _GPT2_DIGITS,
        "refact": _GPT2_DIGITS,
        "codeshell": _GPT2_DIGITS,
        "llama-bpe": _LLAMA3,
        "llama3": _LLAMA3,
        "llama-v3": _LLAMA3,
        "smaug-bpe": PreTokenizer(splits=(_cl100k(r"\p{N}{1,3}"),)),
        "qwen2": PreTokenizer(splits=(_QWEN,), nfc=True),
        "deepseek-r1-qwen": PreTokenizer(splits=(_QWEN,)),
        "tekken": PreTokenizer(splits=(_TEKKEN,), ignore_merges=True, add_bos=True),
    }
)


def pre_tokenizer_named(name: str) -> PreTokenizer:
    """Raises TokenizerError for a name that is not in the table."""
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(
            f"the GGUF file cuts words by the rules {name!r}, which are unknown; use the model's Hugging Face folder "
            f"or a file with one of {known}"
        )
    return found
