"""The caches of the last reply, kept for the next one: what two prompts have in common is read only once."""

from __future__ import annotations

from dataclasses import dataclass

from draftsmith.model.protocol import KVCache, Model
from draftsmith.speculate import Drafter, DraftSession, common_prefix
from draftsmith.types import Request, VerificationRule

__all__ = ["SequenceState", "SequenceStore"]


@dataclass(slots=True)
class SequenceState:
    """Caches of one sequence. ``token_ids``: the prompt and reply whose beginning ``cache`` holds."""

    cache: KVCache
    session: DraftSession | None
    token_ids: tuple[int, ...] = ()


class SequenceStore:
    """Lends the state of the last sequence, shortened to what the next prompt shares with it, or a fresh one.

    A state that is lent is nobody else's; two streams at once therefore work, the second with caches of its own.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kept: SequenceState | None = None

    def take(self, request: Request, drafter: Drafter | None, rule: VerificationRule) -> SequenceState:
        """State for ``request``: the target's cache holds a proper prefix of the prompt, the draft session is ready."""
        state, self._kept = self._kept, None
        if state is None:
            state = SequenceState(self._model.new_cache(), session=None)
        shared = common_prefix(state.token_ids[: state.cache.length], request.prompt_ids[:-1])
        state.cache.truncate(shared)
        if drafter is None:
            state.session = None
        elif state.session is None:
            state.session = drafter.start(request, rule)
        else:
            state.session.restart(request)
        return state

    def give_back(self, state: SequenceState, token_ids: tuple[int, ...] | None) -> None:
        """Keep ``state`` for the next prompt; ``token_ids`` None: its caches are in doubt, so it is dropped."""
        if token_ids is not None:
            state.token_ids = token_ids
            self._kept = state

    def forget_drafter(self) -> None:
        """The drafter changes: its session is of no use to the next."""
        if self._kept is not None:
            self._kept.session = None
