"""What the choice of the next token depends on besides its logits: the text so far, in the form that options need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from draftsmith.sampling.history import TokenHistory
from draftsmith.sampling.process import needs_history, process
from draftsmith.types import Distribution, Request

__all__ = ["TextState"]

_FORBIDDEN = np.float32(-np.inf)


class TextState:
    """One text: counts for the penalties, the grammar's state, the ids for the caller's processors.

    Tokens of the reply are pushed as they are written, or tried, and popped in the reverse order.
    """

    def __init__(self, request: Request, *, drafting: bool = False) -> None:
        """``drafting``: for a draft model, which leaves out the caller's processors: these expect the target's rows."""
        self._params = request.sampling
        self._history = TokenHistory(request.prompt_ids) if needs_history(request.sampling) else None
        self._matcher = request.constraint.start() if request.constraint is not None else None
        self._processors = () if drafting else request.sampling.logits_processors
        self._ids = list(request.prompt_ids) if self._processors else None
        self._restricts = self._matcher is not None or self._ids is not None
        self._length = 0

    @property
    def reply_length(self) -> int:
        """Tokens pushed and not popped."""
        return self._length

    @property
    def rows_suffice(self) -> bool:
        """Whether ``distribution`` depends on the row and on temperature, top_k, top_p and min_p alone."""
        return not self._restricts and self._history is None and not self._params.logit_bias

    def distribution(self, logits: npt.NDArray[np.float32]) -> Distribution:
        """The distribution of the next token, from its raw ``logits`` [V]. Raises what ``process`` raises."""
        return process(logits, self._params, self._history, self._restrict if self._restricts else None)

    def push(self, token_id: int) -> None:
        """Append one token to the reply."""
        self._length += 1
        if self._history is not None:
            self._history.push(token_id)
        if self._matcher is not None:
            self._matcher.push(token_id)
        if self._ids is not None:
            self._ids.append(token_id)

    def pop(self) -> None:
        """Take the last token of the reply away again."""
        self._length -= 1
        if self._history is not None:
            self._history.pop()
        if self._matcher is not None:
            self._matcher.pop()
        if self._ids is not None:
            self._ids.pop()

    def allows_any(self, width: int) -> bool:
        """Whether the grammar allows any of the ids below ``width``."""
        mask = self._matcher.allowed(width) if self._matcher is not None else None
        return mask is None or bool(mask.any())

    def forced(self) -> Sequence[int]:
        """Tokens that must follow by the grammar."""
        return self._matcher.forced() if self._matcher is not None else ()

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """How many of ``token_ids`` may follow by the grammar."""
        return self._matcher.count_valid(token_ids) if self._matcher is not None else len(token_ids)

    def _restrict(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The caller's processors, then the grammar, which nothing can undo."""
        if self._ids is not None:
            scores = scores.copy()  # theirs to change; it may be the model's row
            for processor in self._processors:
                scores = np.asarray(processor(tuple(self._ids), scores), np.float32)
        mask = self._matcher.allowed(scores.size) if self._matcher is not None else None
        return scores if mask is None else np.where(mask, scores, _FORBIDDEN)
