"""Rounds in which a draft is checked before anybody has seen it: for models on a device that the host has to wait for.

Drafting and checking are then told to the device in one go, and the host waits once, for what was drafted and what the
target says to it. So greedily, where the target's likeliest ids are all that is asked of its logits.
"""

from __future__ import annotations

from draftsmith.model.protocol import Checked, DeviceModel, Model
from draftsmith.sampling import Noise, TextState, point
from draftsmith.speculate.drafters.protocol import DraftSession, UnseenDraftSession
from draftsmith.speculate.policy import LengthPolicy
from draftsmith.speculate.verify import verify
from draftsmith.types import Draft, SamplingParams, Verdict, VerificationRule

__all__ = ["judge", "meeting_place", "on_device", "see"]


def meeting_place(model: Model, params: SamplingParams, text: TextState) -> str | None:
    """Where ``model`` can check unseen drafts of this text; None where it has to give its logits to the host."""
    suffices = params.greedy and params.logprobs is None and text.rows_suffice
    return model.place if suffices and isinstance(model, DeviceModel) else None


def see(checked: Checked, session: DraftSession | None, policy: LengthPolicy | None) -> Draft:
    """The draft that was checked; the session whose draft it was and its policy see it, too."""
    draft = Draft(checked.draft_ids, None, checked.confidences)
    if isinstance(session, UnseenDraftSession) and policy is not None:
        session.see(draft, policy.wants_more)
    return draft


def judge(checked: Checked, draft: Draft, rule: VerificationRule, noise: Noise, position: int) -> Verdict:
    """``verify``, where the target is certain of its choices."""
    return verify(draft, map(point, checked.choices), rule, noise, position)


def on_device(model: Model) -> DeviceModel:
    """``model``, which has a meeting place."""
    if not isinstance(model, DeviceModel):
        raise TypeError(f"{type(model).__name__} cannot check drafts that nobody has seen")
    return model
