"""A mix goes the way that pays more, and keeps both of its drafters in step with the text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.sampling import TextState, point
from draftsmith.speculate import (
    AutoLength,
    CostModel,
    DraftSteps,
    FixedLength,
    MixedDrafter,
    ModelDrafter,
    PromptLookupDrafter,
    SuffixDrafter,
    WantsMore,
)
from draftsmith.speculate.constrained import without_forbidden
from draftsmith.speculate.drafters.mixed import MixedModelSession
from draftsmith.speculate.drafters.protocol import Until
from draftsmith.types import Draft, Request, SamplingParams, Verdict
from tests.support.lengths import Eager

Factory = Callable[..., Any]

GREEDY = SamplingParams(greedy=True, repetition_penalty=1.2)
REPEATS = [7, 8, 9, 4, 5, 6, 7, 8, 9]
NOVEL = [1, 2, 3, 4]
CHECKS = (1.0, 1.05, 1.1, 1.15, 1.2)


def start(model: Any, prompt: Sequence[int]) -> Any:
    drafter = MixedDrafter(PromptLookupDrafter(4, 2), ModelDrafter(model, target_vocab_size=30, name="small"))
    assert drafter.name == "small+lookup"
    return drafter.start(Request(prompt_ids=tuple(prompt), sampling=GREEDY), "coupled")


def test_copies_where_the_text_repeats_itself_and_asks_the_model_elsewhere(table_model: Factory) -> None:
    model = table_model()
    copied = start(model, REPEATS).draft(REPEATS, 3, FixedLength(3).wants_more)
    assert (copied.token_ids, copied.free, model.reads) == ((4, 5, 6), True, [])
    drawn = start(model, NOVEL).draft(NOVEL, 3, FixedLength(3).wants_more)
    assert (len(drawn.token_ids), drawn.free, model.reads) == (3, False, [4, 1, 1])


@pytest.mark.parametrize("accepted", range(4))
def test_after_a_copy_the_model_drafts_as_if_it_had_seen_all(accepted: int, table_model: Factory) -> None:
    """Model, copy, model: caches and histories follow whatever was accepted."""
    model = table_model()
    session = start(model, NOVEL)
    first = session.draft(NOVEL, 2, FixedLength(2).wants_more)
    session.commit(Verdict((first.token_ids[0], 20), 1, 2))
    text = [*NOVEL, first.token_ids[0], 20, *REPEATS]
    session.commit(Verdict((20,), 0, 0))
    copied = session.draft(text, 3, FixedLength(3).wants_more)
    assert copied.free
    session.commit(Verdict((*copied.token_ids[:accepted], 28), accepted, 3))
    text += [*copied.token_ids[:accepted], 28]
    again = session.draft(text, 2, FixedLength(2).wants_more)
    fresh = start(model, NOVEL)
    assert not again.free
    assert again == fresh.draft(text, 2, FixedLength(2).wants_more)


def test_a_mix_can_be_stepped(table_model: Factory) -> None:
    model = table_model()
    session = start(model, REPEATS)
    with pytest.raises(StopIteration) as copied:
        next(session.steps(REPEATS, 3, FixedLength(3).wants_more))
    assert copied.value.value.free
    session.commit(Verdict((4,), 0, 3))
    run = next(session.steps([*REPEATS, 1], 3, FixedLength(3).wants_more))
    assert list(run.token_ids) == [*REPEATS, 1]
    assert session.model is model


class Draws:
    """A draft model's session that always draws ``token_ids``, as far as they are wanted."""

    model = None

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids

    def read(self, token_ids: Sequence[int]) -> None: ...

    def restart(self, request: Request) -> None: ...

    def commit(self, verdict: Verdict) -> None: ...

    def draft(self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore) -> Draft:
        with pytest.raises(StopIteration) as drawn:
            next(self.steps(token_ids, max_tokens, wants_more))
        found: Draft = drawn.value.value
        return found

    def steps(
        self, token_ids: Sequence[int], max_tokens: int, wants_more: WantsMore, until: Until | None = None
    ) -> DraftSteps:
        del token_ids
        drawn: list[int] = []
        confidences: list[float] = []
        while len(drawn) < min(max_tokens, len(self.token_ids)) and wants_more(confidences, None):
            drawn.append(self.token_ids[len(drawn)])
            confidences.append(0.9)
            if until is not None and until(drawn, confidences):
                break
        yield from ()
        return Draft(tuple(drawn), tuple(map(point, drawn)), tuple(confidences))


def mixed_draft(
    text: Sequence[int], draws: Sequence[int], room: int, wants_more: WantsMore, *, free: Any, watched: bool
) -> Draft:
    free_session = free.start(Request(prompt_ids=tuple(text), sampling=GREEDY), "rejection")
    session = MixedModelSession(free_session, Draws(draws), watched=watched)  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as done:
        next(session.steps(text, room, wants_more))
    found: Draft = done.value.value
    return found


COPYING = pytest.mark.parametrize("free", [PromptLookupDrafter(4, 2), SuffixDrafter(2)], ids=["lookup", "suffix"])


@COPYING
@pytest.mark.parametrize("watched", [False, True])
def test_a_copy_goes_on_after_tokens_that_lead_back(free: Any, watched: bool) -> None:
    """7 and 8 were followed by 9, 4, 5, 6 and by nothing that ends like the text; the copy runs into itself at last."""
    text = [7, 8, 9, 4, 5, 6, 1]
    draft = mixed_draft(text, (7, 8), 9, Eager(9).wants_more, free=free, watched=watched)
    assert draft.token_ids == (7, 8, 9, 4, 5, 6, 1, 7, 8)
    assert (draft.num_drawn, draft.num_copied, draft.free) == (2, 7, False)
    assert draft.confidences == pytest.approx((0.9, 0.9, *(n / (n + 1) for n in range(2, 9))))
    assert draft.distributions is not None
    assert [int(q.token_ids[0]) for q in draft.distributions] == list(draft.token_ids)
    assert mixed_draft(text, (7, 8), 2, Eager(9).wants_more, free=free, watched=watched).num_copied == 0
    assert mixed_draft(text, (7, 3), 9, Eager(9).wants_more, free=free, watched=watched).token_ids == (7, 3)


@COPYING
def test_watched_drawing_ends_where_a_copy_is_better(free: Any) -> None:
    text, draws = [7, 8, 9, 4, 5, 6, 1], (7, 8, 9, 4, 5, 6)
    drawn = mixed_draft(text, draws, 6, Eager(6).wants_more, free=free, watched=False)
    found = mixed_draft(text, draws, 6, Eager(6).wants_more, free=free, watched=True)
    assert (drawn.num_drawn, found.num_drawn) == (6, 2)
    assert drawn.token_ids == found.token_ids
    dear, cheap = (AutoLength(CostModel(c, CHECKS)) for c in (0.4, 0.0))
    dear.learn(Draft((0,) * 4, None, (0.9,) * 4), Verdict((0,) * 5, 4, 4))
    cheap.learn(Draft((0,) * 4, None, (0.9,) * 4), Verdict((0,) * 5, 4, 4))
    assert dear.wants_more([0.9, 0.9], 2 / 3, instead=True, drawn=2)
    assert not cheap.wants_more([0.9, 0.9], 2 / 3, instead=True, drawn=2)


def test_a_copy_after_drawn_tokens_is_learnt_from_as_a_copy() -> None:
    """Drawn tokens right, the copies after them wrong: only the copies lose their name."""
    policy = AutoLength(CostModel(0.3, CHECKS))
    assert policy.wants_more([0.9, 0.9], 2 / 3, drawn=2)
    for _ in range(60):
        draft = Draft((0,) * 4, None, (0.9, 0.9, 2 / 3, 3 / 4), num_copied=2)
        policy.learn(draft, Verdict((0,) * 3, 2, 4))
    assert not policy.wants_more([0.9, 0.9], 2 / 3, drawn=2)
    assert policy.wants_more([], None)
    assert policy.wants_more([0.9], None)


def test_a_grammar_cuts_the_copied_end_first(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TextState(Request(prompt_ids=(1,), sampling=SamplingParams(greedy=True)))
    monkeypatch.setattr(TextState, "count_valid", lambda *_: 3)
    cut = without_forbidden(Draft((1, 2, 3, 4, 5), None, (0.5,) * 5, num_copied=3), text)
    assert (cut.token_ids, cut.num_copied, cut.num_drawn) == ((1, 2, 3), 1, 2)


def learnt(free_hits: int, drawn_hits: int, draft_step: float) -> AutoLength:
    """What AutoLength makes of 60 rounds of each kind with so many of 4 tokens accepted, every time."""
    policy = AutoLength(CostModel(draft_step, CHECKS))
    for _ in range(60):
        for hits, free in ((free_hits, True), (drawn_hits, False)):
            draft = Draft((0,) * 4, None, (0.75, 0.8, 5 / 6, 6 / 7) if free else (0.75,) * 4, free=free)
            policy.learn(draft, Verdict((0,) * (hits + 1), hits, 4))
    return policy


@pytest.mark.parametrize(
    ("free_hits", "drawn_hits", "draft_step", "copies"),
    [
        (4, 4, 0.3, True),  # as good, and costs nothing
        (1, 4, 0.1, False),  # poor: it would take the place of a much better draft
        (1, 4, 0.9, True),  # but poor and free may beat good and dear
        (3, 1, 0.3, True),
        (0, 0, 0.3, False),  # neither pays
    ],
)
def test_the_way_that_gains_more_is_chosen(free_hits: int, drawn_hits: int, draft_step: float, copies: bool) -> None:
    policy = learnt(free_hits, drawn_hits, draft_step)
    assert policy.wants_more([], 0.75, instead=True) is copies
    if free_hits:
        assert policy.wants_more([], 0.75)  # where there is nothing better, a free token is taken


def test_the_two_kinds_are_judged_apart() -> None:
    """A model's misses say nothing about copies, though the confidences are the same numbers."""
    policy = learnt(free_hits=4, drawn_hits=0, draft_step=0.3)
    assert policy.wants_more([], 0.75)
    assert not policy.wants_more([], None)
    other = learnt(free_hits=0, drawn_hits=4, draft_step=0.3)
    assert not other.wants_more([], 0.75, instead=True)
    assert other.wants_more([], None)


def test_copies_are_counted_as_free() -> None:
    """The same verdicts cost a model's draft more, so they leave a lower rate to compare with."""
    costs = CostModel(1.0, (1.0, 1.5, 2.0, 2.5, 3.0))
    free, drawn = AutoLength(costs), AutoLength(costs)
    for _ in range(100):
        for policy, is_free in ((free, True), (drawn, False)):
            policy.learn(Draft((0,) * 4, None, (0.75,) * 4, free=is_free), Verdict((0,) * 5, 4, 4))
    assert free.wants_more([], 0.99)
    assert not drawn.wants_more([], None)
