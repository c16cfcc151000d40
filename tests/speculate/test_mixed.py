"""A mix goes the way that pays more, and keeps both of its drafters in step with the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from draftsmith.speculate import AutoLength, CostModel, FixedLength, MixedDrafter, ModelDrafter, PromptLookupDrafter
from draftsmith.types import Draft, Request, SamplingParams, Verdict

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
