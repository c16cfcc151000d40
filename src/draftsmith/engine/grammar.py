"""Grammars made ready for use with a vocabulary, by llguidance: which tokens may come next, with limits.

The library's limits are counted, not timed, so a grammar is either good on every machine or on none. They keep the
worst that was found at some tenths of a second to build, and at some tens of milliseconds a step.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from draftsmith.errors import UsageError
from draftsmith.text import Tokenizer
from draftsmith.types import Constraint, Grammar, GrammarKind, Matcher

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["JSON_STYLE", "MAX_GRAMMAR", "GrammarCompiler"]

MAX_GRAMMAR = 64 * 1024  # bytes of a source
_MAX_DEPTH = 64  # of a JSON schema
_FUEL = 100_000  # a tenth of the library's default, with which (a{1000}){1000} takes seconds
_NAMES: dict[GrammarKind, str] = {"json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
# As json.dumps writes it. Free white space would let a model write nothing else for ever.
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarCompiler:
    """For one vocabulary, whose table (some tenths of a second for 150,000 tokens) is made when first needed.

    May be shared between threads.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Constraint:
        """``grammar``, ready for use. Raises UsageError when it is no grammar, is too large, or can say nothing."""
        from llguidance import LLMatcher
        from llguidance._lib import LLParserLimits

        if len(grammar.source.encode("utf-8", "replace")) > MAX_GRAMMAR:
            raise UsageError(f"the {_NAMES[grammar.kind]} has more than {MAX_GRAMMAR} bytes; give a smaller one")
        limits = LLParserLimits(verbose_errors=False, initial_lexer_fuel=_FUEL)
        matcher = LLMatcher(self._vocabulary(), _rules(grammar), log_level=0, limits=limits)
        error = matcher.get_error()
        if not error:
            first = matcher.deep_copy()
            allowed = _as_mask(first.compute_bitmask())  # some find out only here that they are too complex
            allowed[[*self._tokenizer.eos_ids]] = False
            error = first.get_error() or ("" if allowed.any() else "no text but the empty one has this form")
        if error:
            raise _refusal(grammar.kind, error)
        return _Compiled(matcher, frozenset(self._tokenizer.eos_ids))

    def _vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._table is None:
                eos_ids = list(self._tokenizer.eos_ids)
                if not eos_ids:
                    raise UsageError(
                        "this model has no end-of-text token, so a reply cannot end where its grammar does"
                    )
                self._table = LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer)), eos_token=eos_ids)
            return self._table


class _Vocabulary:
    """A Tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.eos_token_id = tokenizer.eos_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(i) for i in ids]
        self.special_token_ids = [i for i in ids if tokenizer.is_special(i)]
        self._tokenizer = tokenizer

    def __call__(self, data: bytes | str) -> list[int]:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return self._tokenizer.encode_piece(text, after="text")


class _Compiled:
    def __init__(self, matcher: LLMatcher, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids

    def start(self) -> Matcher:
        return _Matcher(self._matcher.deep_copy(), self._eos_ids)


class _Matcher:
    """See ``types.Matcher``. ``_after``: tokens from the end of the text on; the library does not hear of them."""

    def __init__(self, matcher: LLMatcher, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids
        self._pushed = self._after = 0
        self._mask: npt.NDArray[np.bool_] | None = None

    def allowed(self, width: int) -> npt.NDArray[np.bool_] | None:
        if self._after:
            return None
        if self._mask is None:
            self._mask = _as_mask(self._matcher.compute_bitmask())
            self._check()
        if self._mask.size < width:
            self._mask = np.pad(self._mask, (0, width - self._mask.size))
        return self._mask[:width]

    def forced(self) -> Sequence[int]:
        return () if self._after else self._matcher.compute_ff_tokens()

    def count_valid(self, token_ids: Sequence[int]) -> int:
        return len(token_ids) if self._after else self._matcher.validate_tokens(list(token_ids))

    def push(self, token_id: int) -> None:
        if self._after or token_id in self._eos_ids:
            self._after += 1
            return
        self._mask = None
        self._pushed += 1
        if not self._matcher.consume_token(token_id):
            self._check()

    def pop(self) -> None:
        if self._after:
            self._after -= 1
            return
        self._mask = None
        self._pushed -= 1
        if not self._matcher.rollback(1):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _one_line(self._matcher.get_error())
            raise UsageError(f"the grammar cannot go on after {self._pushed} tokens ({reason}); give a simpler one")


def _as_mask(bits: bytes) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").view(np.bool_)


def _rules(grammar: Grammar) -> str:
    """The source in the library's own form. Raises UsageError."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    try:
        if grammar.kind == "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(grammar.source))
        schema = json.loads(grammar.source)
        if not isinstance(schema, dict | bool):
            raise ValueError("it is neither an object nor a boolean")
        _check_depth(schema)
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE)
    except Exception as error:  # a grammar from a stranger, and a converter that says what is wrong in many ways
        raise _refusal(grammar.kind, str(error)) from None


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, depth + 1)


def _refusal(kind: GrammarKind, reason: str) -> UsageError:
    return UsageError(f"this {_NAMES[kind]} cannot be used: {_one_line(reason) or 'no reason is known'}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
