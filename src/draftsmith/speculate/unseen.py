"""Rounds in which a draft is checked before anybody has seen it: for models on a device that the host has to wait for.

Drafting and checking are then told to the device in one go, and the host waits once, for what was drafted and what the
target says to it: its likeliest ids, where these are all that is asked, else its logits.
"""

from __future__ import annotations

from draftsmith.model.protocol import Checked, DeviceModel, Model
from draftsmith.optional import fulfils
from draftsmith.sampling import TextState
from draftsmith.speculate.drafters.protocol import DraftSession, UnseenDraftSession
from draftsmith.speculate.policy import LengthPolicy
from draftsmith.types import Draft, SamplingParams

__all__ = ["meeting_place", "needs_logits", "on_device", "see"]


def meeting_place(model: Model) -> str | None:
    """Where ``model`` can check unseen drafts, if anywhere."""
    return model.place if isinstance(model, DeviceModel) else None


def needs_logits(params: SamplingParams, text: TextState) -> bool:
    """Whether the target's likeliest ids do not suffice to judge a draft."""
    return not (params.greedy and params.logprobs is None and text.rows_suffice)


def see(checked: Checked, session: DraftSession | None, policy: LengthPolicy | None) -> Draft:
    """The draft that was checked; the session whose draft it was and its policy see it, too."""
    draft = Draft(checked.draft_ids, None, checked.confidences)
    if fulfils(session, UnseenDraftSession) and policy is not None:
        session.see(draft, policy.wants_more)
    return draft


def on_device(model: Model) -> DeviceModel:
    """``model``, which has a meeting place."""
    if not fulfils(model, DeviceModel):
        raise TypeError(f"{type(model).__name__} cannot check drafts that nobody has seen")
    return model
