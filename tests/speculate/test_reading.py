"""What reading a prompt, or what a draft model missed of a text, has to bring."""

from __future__ import annotations

import pytest

from draftsmith.speculate import AutoLength, CostModel, begin_text
from draftsmith.types import Draft, Verdict

CHEAP_CHECKS = (1.0, 1.03, 1.06, 1.1, 1.14, 1.18, 1.22, 1.26)


def test_reading_what_the_draft_missed_has_a_price() -> None:
    """500 tokens that nobody read are read only once the text can bear it; a few are read at once."""
    costs = CostModel(0.3, CHEAP_CHECKS, draft_read=0.005)
    policy = AutoLength(costs)
    policy.begin(unread=500)
    assert not policy.wants_more([], None)
    policy.begin(unread=5)
    assert policy.wants_more([], None)
    policy.begin(unread=300)
    waited = 0
    while not policy.wants_more([], None):
        policy.learn(Draft(()), Verdict((0,), 0, 0))
        waited += 1
        assert waited < 10_000
    assert waited > 64
    policy.learn(Draft((0,), None, (0.5,)), Verdict((0, 0), 1, 1))
    assert policy.wants_more([], None)


@pytest.mark.parametrize(
    ("unread", "left", "repays"),
    [(0, 1, True), (100, 200, True), (100, 10, False), (3000, 10**6, False), (3000, 200, False)],
)
def test_reading_a_prompt_has_to_be_repaid(unread: int, left: int, repays: bool) -> None:
    """Drafts are expected to save some 0.4 plain steps a token here; a token costs 0.1 to read. More text than replies
    usually have is not counted on."""
    policy = AutoLength(CostModel(0.1, (1.0, 1.0, 1.0, 1.1), draft_read=0.1))
    assert policy.repays(unread, left) is repays
    assert begin_text(policy, unread, left, others_wait=True) is repays
    assert begin_text(policy, unread, left) is True  # nobody waits for it
    hopeless = AutoLength(CostModel(3.0, (1.0, 2.0, 3.0, 4.0), draft_read=1e-9))
    assert not hopeless.repays(1, 10**6)
    assert not AutoLength(CostModel(3.0, (1.0, 2.0, 3.0, 4.0))).repays(
        1, 10**6
    )  # nothing is gained by reading for nothing


def test_one_bad_text_does_not_end_drafting_where_reading_has_to_be_repaid() -> None:
    """One of the next few texts is read again if that costs little, and one after more texts if it costs more."""
    for reading, least, most in ((0.02, 2, 6), (0.06, 10, 40)):
        policy = AutoLength(CostModel(0.3, CHEAP_CHECKS, draft_read=reading))
        assert begin_text(policy, 50, left=63, others_wait=True)
        for _ in range(8):
            policy.learn(Draft((0,), None, (0.6,)), Verdict((0,), 0, 1))
        read = [begin_text(policy, 50, left=63, others_wait=True) for _ in range(60)]
        assert least <= read.index(True) <= most, reading


def test_text_that_was_copied_has_to_be_read_too() -> None:
    policy = AutoLength(CostModel(0.3, CHEAP_CHECKS, draft_read=1.5))
    assert policy.wants_more([], None)
    policy.learn(Draft((0,) * 4, None, (0.8,) * 4, free=True), Verdict((0,) * 5, 4, 4))
    assert not policy.wants_more([], None)
    assert policy.wants_more([], 0.9)


def test_a_text_that_was_read_is_given_a_chance() -> None:
    """After a text in which a sixth of the drafts were right, too few, another one is tried once; one that nobody read,
    and this one later, are not.
    """
    policy = AutoLength(CostModel(0.5, CHEAP_CHECKS))
    for i in range(120):
        policy.learn(Draft((0,), None, (0.6,)), Verdict((0,) * (1 + (i % 6 == 0)), int(i % 6 == 0), 1))
    policy.begin(unread=0)
    assert policy.wants_more([], None)
    policy.begin(unread=1)
    assert not policy.wants_more([], None)
    policy.begin(unread=0)
    policy.learn(Draft(()), Verdict((0,), 0, 0))
    assert not policy.wants_more([], None)


def test_a_prompt_is_read_for_what_copies_leave_to_the_model() -> None:
    """Where copies write nine tokens of ten, and are expected to, a tenth has to repay the reading."""
    policy = AutoLength(CostModel(0.1, (1.0, 1.0, 1.0, 1.1), draft_read=0.1))
    assert policy.repays(100, 200)
    for _ in range(20):
        policy.learn(Draft((0,) * 8, None, (0.9,) * 8, free=True), Verdict((0,) * 9, 8, 8))
        policy.learn(Draft((0,), None, (0.6,)), Verdict((0, 0), 1, 1))
    after = policy.successor()
    assert not after.repays(100, 200)
    assert after.repays(20, 200)
    wrong = policy.successor()
    for _ in range(100):  # copies that are wrong write nothing
        wrong.learn(Draft((0,) * 8, None, (0.9,) * 8, free=True), Verdict((0,), 0, 8))
        wrong.learn(Draft((0,), None, (0.6,)), Verdict((0, 0), 1, 1))
    assert wrong.repays(310, 200)
    for _ in range(300):
        policy.learn(Draft(()), Verdict((0,), 0, 0))
    assert policy.repays(100, 200)
    assert not after.repays(100, 200)


def test_reading_that_the_rest_of_the_text_does_not_repay_is_left_alone() -> None:
    """After 34 tokens without drafts these cost one plain step to read; four more tokens do not repay it."""
    for left, asked in ((None, True), (1000, True), (38, False)):
        policy = AutoLength(CostModel(0.3, CHEAP_CHECKS, draft_read=0.03))
        policy.begin(unread=0, left=left)
        for _ in range(34):
            policy.learn(Draft(()), Verdict((0,), 0, 0))
        assert policy.wants_more([], None) is asked


def test_what_copies_have_saved_does_not_pay_for_reading_that_the_model_does_not_repay() -> None:
    """The account bears 900 tokens at 0.03; the third of what is left that counts does not repay them."""
    policy = AutoLength(CostModel(0.3, CHEAP_CHECKS, draft_read=0.03))
    policy.begin(unread=900)
    for _ in range(6):
        policy.learn(Draft((0,) * 8, None, (0.9,) * 8, free=True), Verdict((0,) * 9, 8, 8))
    assert not policy.wants_more([], None)


def test_copies_are_tried_where_the_model_cannot_take_their_place() -> None:
    """A copy that may well be right is tried for what is learnt by it, unless a model would draft instead."""
    costs = CostModel(0.3, (1.0, 1.6, 2.2), draft_read=0.03)
    policy = AutoLength(costs)
    policy.begin(unread=0)
    assert not policy.wants_more([], 0.65, instead=True)
    assert policy.wants_more([], 0.65)
    policy.begin(unread=2000)
    assert policy.wants_more([], 0.65, instead=True)
