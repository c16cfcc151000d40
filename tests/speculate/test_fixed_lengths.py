"""Draft lengths that are fixed or follow the theory, and the costs that all policies go by."""

from __future__ import annotations

import pytest

from draftsmith.speculate import CostModel, FixedLength, TheoryLength
from draftsmith.types import Draft, Verdict

CHEAP_CHECKS = (1.0, 1.03, 1.06, 1.1, 1.14, 1.18, 1.22, 1.26)


def test_fixed_lengths() -> None:
    assert [FixedLength(2).wants_more([0.0] * n, None) for n in range(4)] == [True, True, False, False]
    assert not FixedLength(0).wants_more([], None)


def test_the_theory_takes_the_best_length_for_one_acceptance() -> None:
    """By hand, with acceptance 0.7 and 0.3 a token: 1.7 / 1.33, 2.19 / 1.66, 2.53 / 2: two tokens pay most."""
    policy = TheoryLength(CostModel(0.3, CHEAP_CHECKS))
    assert [policy.wants_more([0.1] * n, None) for n in range(4)] == [True, True, False, False]
    for _ in range(100):
        policy.learn(Draft((0, 0)), Verdict((0, 0, 0), 2, 2))
    assert policy.wants_more([0.1] * 7, None)
    for _ in range(800):
        policy.learn(Draft((0, 0)), Verdict((0,), 0, 2))
    assert not policy.wants_more([], None)


def test_costs_go_on_with_their_last_slope() -> None:
    costs = CostModel(0.1, (1.0, 1.25, 1.75))
    assert [costs.verify_cost(m) for m in range(1, 6)] == [1.0, 1.25, 1.75, 2.25, 2.75]
    assert CostModel(0.1, (1.0,)).verify_cost(9) == 1.0


@pytest.mark.parametrize(("draft_step", "checks"), [(-0.1, (1.0,)), (0.1, ()), (0.1, (1.0, 0.0))])
def test_costs_must_make_sense(draft_step: float, checks: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="costs must be positive"):
        CostModel(draft_step, checks)
