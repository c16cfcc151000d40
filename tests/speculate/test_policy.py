"""Chosen draft lengths, judged on the tokens that a unit of cost writes."""

from __future__ import annotations

import json
import random
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftsmith.speculate import AutoLength, CostModel, FixedLength, LengthPolicy
from draftsmith.types import Draft, Verdict

TRACES = Path(__file__).parent / "data" / "acceptance_traces.json"
CHEAP_CHECKS = (1.0, 1.03, 1.06, 1.1, 1.14, 1.18, 1.22, 1.26)
STEEP_CHECKS = (1.0, 1.25, 1.5, 1.8, 2.1)


class Trace(NamedTuple):
    """Whether the draft's token would be accepted at each place of a text, and its confidence there."""

    accepted: list[bool]
    confidence: list[float]


def speedup(policy: LengthPolicy, trace: Trace, costs: CostModel, *, seed: int = 0) -> float:
    """Tokens per unit of cost on ``trace``; drafting goes on blindly after a token that will be rejected."""
    dice, place, spent = random.Random(seed), 0, 0.0  # noqa: S311 (a simulation)
    size = len(trace.accepted)
    while place < size:
        confidences: list[float] = []
        while len(confidences) < size - place - 1 and policy.wants_more(confidences, None):
            right = all(trace.accepted[place : place + len(confidences)])
            confidences.append(trace.confidence[place + len(confidences)] if right else dice.choice(trace.confidence))
        k = len(confidences)
        hits = next((i for i in range(k) if not trace.accepted[place + i]), k)
        spent += k * costs.draft_step + costs.verify_cost(k + 1)
        policy.learn(Draft((0,) * k, None, tuple(confidences)), Verdict((0,) * (hits + 1), hits, k))
        place += hits + 1
    return size / spent


def synthetic(acceptance: float, seed: int, size: int = 128) -> Trace:
    """Easy and hard stretches; confidence is the true chance of acceptance, blurred."""
    dice, chance = random.Random(seed), 0.0  # noqa: S311 (a simulation)
    trace = Trace([], [])
    for i in range(size):
        if i == 0 or dice.random() > 0.3:
            chance = dice.betavariate(max(1.2 * acceptance, 0.01), max(1.2 * (1 - acceptance), 0.01))
        trace.accepted.append(dice.random() < chance)
        trace.confidence.append(min(0.999, max(0.01, chance + dice.gauss(0, 0.12))))
    return trace


def real_traces() -> list[tuple[str, Trace]]:
    traces = json.loads(TRACES.read_text())["traces"]
    return [
        (t["category"], Trace([a == "1" for a in t["accepted"]], [c / 1000 for c in t["confidence"]])) for t in traces
    ]


def drafted(policy: LengthPolicy, confidence: float) -> int:
    """How many tokens a draft has whose model is always so sure."""
    return next(k for k in count() if not policy.wants_more([confidence] * k, None))


def best_fixed(trace: Trace, costs: CostModel) -> float:
    return max(speedup(FixedLength(k), trace, costs) for k in (0, 1, 2, 3, 4, 6, 8, 12))


@pytest.mark.parametrize("draft_step", [0.35, 0.38, 0.4])
def test_real_traces_are_faster_than_plain_and_near_the_best_length(draft_step: float) -> None:
    """Qwen2.5-Coder 1.5B with its 0.5B: code, explanations and stories, each from a cold start."""
    costs = CostModel(draft_step, CHEAP_CHECKS)
    for category, trace in real_traces():
        gain = speedup(AutoLength(costs), trace, costs)
        assert gain > 1.05, category
        assert gain > 0.96 * best_fixed(trace, costs), category


def test_an_unlucky_start_is_forgiven() -> None:
    """The stories, begun at other places: seldom given up, though draft tokens hardly pay here, and never dear."""
    costs = CostModel(0.4, (1.0, 1.06, 1.1, 1.15, 1.2))
    for category, trace in real_traces():
        if category == "story":
            size = len(trace.accepted)
            orders = [[(start + i) % size for i in range(size)] for start in range(0, 128, 16)]
            turned = [Trace([trace.accepted[i] for i in o], [trace.confidence[i] for i in o]) for o in orders]
            gains = [speedup(AutoLength(costs), one, costs) for one in turned]
            assert min(gains) > 0.98
            assert sum(gains) > 0.96 * sum(best_fixed(one, costs) for one in turned)


@pytest.mark.parametrize("checks", [CHEAP_CHECKS, STEEP_CHECKS], ids=["cheap checks", "steep checks"])
@pytest.mark.parametrize("draft_step", [0.01, 0.15, 0.38, 0.6])
@pytest.mark.parametrize("acceptance", [0.02, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98])
def test_never_much_slower_than_plain_and_near_the_best_length(
    acceptance: float, draft_step: float, checks: tuple[float, ...]
) -> None:
    costs = CostModel(draft_step, checks)
    traces = [synthetic(acceptance, seed) for seed in range(8)]
    gains = [speedup(AutoLength(costs), trace, costs) for trace in traces]
    fixed = [[speedup(FixedLength(k), trace, costs) for trace in traces] for k in (0, 1, 2, 3, 4, 6, 8, 12)]
    assert min(gains) > 0.97  # in 128 tokens from a cold start
    assert sum(gains) > 0.96 * max(sum(row) for row in fixed)


def test_a_hopeless_drafter_costs_next_to_nothing_in_the_long_run() -> None:
    costs = CostModel(0.4, CHEAP_CHECKS)
    assert speedup(AutoLength(costs), Trace([False] * 3000, [0.3] * 3000), costs) > 0.995


def test_a_drafter_that_becomes_good_is_noticed() -> None:
    costs = CostModel(0.3, CHEAP_CHECKS)
    policy = AutoLength(costs)
    speedup(policy, Trace([False] * 200, [0.3] * 200), costs)
    assert speedup(policy, Trace([True] * 600, [0.95] * 600), costs) > 1.5


def test_what_was_learnt_serves_the_next_text() -> None:
    costs = CostModel(0.4, CHEAP_CHECKS)
    trace = synthetic(0.02, 1)
    policy = AutoLength(costs)
    assert speedup(policy, trace, costs) < speedup(policy, trace, costs) <= 1.0


def test_low_confidence_ends_a_draft_and_high_confidence_prolongs_it() -> None:
    policy = AutoLength(CostModel(0.35, CHEAP_CHECKS))
    assert policy.wants_more([], None)
    policy.learn(Draft((0,), None, (0.6,)), Verdict((0, 0), 1, 1))
    policy.learn(Draft((0, 0), None, (0.6, 0.6)), Verdict((0, 0, 0), 2, 2))
    assert not policy.wants_more([0.1], None)
    assert policy.wants_more([0.99], None)
    assert policy.wants_more([0.99, 0.99], None)
    assert not policy.wants_more([0.99, 0.3], None)


def test_a_draft_may_lose_no_more_than_was_gained() -> None:
    """However sure the draft model is of itself: short drafts first, longer ones once these have paid."""
    policy = AutoLength(CostModel(0.35, CHEAP_CHECKS))
    lengths = []
    for _ in range(6):
        lengths.append(k := drafted(policy, 0.99))
        policy.learn(Draft((0,) * k, None, (0.99,) * k), Verdict((0,) * (k + 1), k, k))
    assert lengths[0] <= 2
    assert lengths == sorted(lengths)
    assert lengths[-1] >= 8


@pytest.mark.parametrize("confidence", [0.05, 0.5, 0.97])
@pytest.mark.parametrize("draft_step", [0.1, 0.3, 0.5, 1.0])
def test_a_useless_draft_costs_a_twentieth_of_64_tokens_at_most(draft_step: float, confidence: float) -> None:
    """Never right, and perhaps very sure of itself; nothing was known of it before."""
    trace = Trace([False] * 64, [confidence] * 64)
    costs = CostModel(draft_step, (1.0, 1.05, 1.09, 1.11, 1.15, 1.18, 1.24, 1.3, 1.65, 1.82))
    assert speedup(AutoLength(costs), trace, costs) > 0.97
    if draft_step == 1.0:
        assert speedup(AutoLength(costs), trace, costs) == 1.0


def test_a_free_drafter_is_asked_by_what_it_knows() -> None:
    policy = AutoLength(CostModel(0.0, (1.0, 1.7, 2.4)))
    assert policy.wants_more([], 0.99)
    assert not policy.wants_more([], 0.1)


def test_a_step_in_the_cost_of_checks_is_looked_across() -> None:
    """Checking 2 is dear, checking 3 to 8 costs nothing more: what one token cannot repay, several can."""
    costs = CostModel(0.0, (1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0))
    assert AutoLength(costs).wants_more([], 0.7)
    assert not AutoLength(costs, max_length=1).wants_more([], 0.7)


def test_drafts_have_a_largest_length() -> None:
    policy = AutoLength(CostModel(0.0), max_length=3)
    assert policy.wants_more([1.0] * 2, None)
    assert not policy.wants_more([1.0] * 3, None)


def test_asking_changes_nothing() -> None:
    policy = AutoLength(CostModel(0.41, CHEAP_CHECKS))
    assert len({policy.wants_more([0.5], None) for _ in range(1000)}) == 1


def test_it_does_not_matter_when_it_is_asked() -> None:
    """Rounds without a draft teach the same, taken in one by one or many at once."""
    often, seldom = AutoLength(CostModel(0.2, draft_read=0.1)), AutoLength(CostModel(0.2, draft_read=0.1))
    for quiet in (1, 7, 60):
        for policy in (often, seldom):
            policy.learn(Draft((1, 2), None, (0.6, 0.9)), Verdict((1, 5), 1, 2))
            for _ in range(quiet):
                policy.learn(Draft(()), Verdict((5,), 0, 0))
                if policy is often:
                    policy.wants_more((), None)
        seldom.wants_more((), None)
        for policy in (often, seldom):
            policy._drawn.of(0.6)  # fades what is known by confidence
        assert numbers(seldom) == pytest.approx(numbers(often), rel=1e-9)


def numbers(value: object) -> list[float]:
    """All numbers in what a policy has learnt, in order."""
    if isinstance(value, int | float):
        return [float(value)]
    if isinstance(value, dict | list | tuple):
        return [n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)]
    slots = [getattr(value, name) for name in getattr(value, "__slots__", ())]
    return [n for part in [*slots, *getattr(value, "__dict__", {}).values()] for n in numbers(part)]


def test_a_successor_and_its_parent_go_separate_ways() -> None:
    """Nothing that either learns changes a number of the other, of drawn tokens, of copies, and without drafts."""
    parent = AutoLength(CostModel(0.2))
    child = parent.successor()
    assert numbers(child) == numbers(parent)
    lessons = [
        (Draft((1, 2, 3), confidences=(0.1, 0.6, 0.99)), Verdict((1, 2, 3, 4), num_accepted=3, num_draft_tokens=3)),
        (Draft((1, 2), confidences=(0.5, 0.75), free=True), Verdict((1, 7), num_accepted=1, num_draft_tokens=2)),
        (Draft(()), Verdict((5,), 0, 0)),
    ]
    for one, other, times in ((parent, child, 3), (child, parent, 2)):
        before = numbers(other)
        for draft, verdict in lessons * times:
            one.learn(draft, verdict)
        assert numbers(other) == before != numbers(one)


def test_what_is_known_by_confidence_fades_while_nothing_is_drafted() -> None:
    """As if it had faded round by round, whenever it is asked; so what comes later weighs more."""
    often, seldom = AutoLength(CostModel(0.2)), AutoLength(CostModel(0.2))
    wrong = (Draft((1,), confidences=(0.85,)), Verdict((2,), num_accepted=0, num_draft_tokens=1))
    right = (Draft((1,), confidences=(0.85,)), Verdict((1, 2), num_accepted=1, num_draft_tokens=1))
    for policy, quiet in ((often, 0), (seldom, 300)):
        for _ in range(12):
            policy.learn(*wrong)
        for _ in range(quiet):
            policy.learn(Draft(()), Verdict((5,), 0, 0))
        for _ in range(4):
            policy.learn(*right)
    prior, keep, memory = 0.85, 0.995**300, 0.99
    hits, trials = prior * 4, 4.0
    for hit, fade in [(0, 1.0)] * 12 + [(1, keep)] + [(1, 1.0)] * 3:
        hits, trials = hits * fade * memory + hit, trials * fade * memory + 1
    assert seldom._drawn.of(0.85).value == pytest.approx(hits / trials, rel=1e-9)
    assert seldom._drawn.of(0.85).value > 1.5 * often._drawn.of(0.85).value


@given(
    acceptance=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
    costs=st.builds(
        CostModel,
        st.floats(0.0, 1.2),
        st.sampled_from([CHEAP_CHECKS, STEEP_CHECKS]),
        st.floats(0.0, 0.1),
        st.floats(0.0, 0.3),
    ),
    unread=st.integers(0, 300),
)
def test_the_drafts_of_a_text_never_lose_more_than_its_account_says(
    acceptance: float, seed: int, costs: CostModel, unread: int
) -> None:
    """Whatever was learnt of a text before: at any moment of the next one, at most 3 % of 64 tokens and of more."""
    dice = random.Random(seed)  # noqa: S311 (a simulation)
    policy = AutoLength(costs)
    speedup(policy, synthetic(1 - acceptance, seed), costs)
    policy.begin(unread)
    written, spent = 0, 0.0
    while written < 200:
        confidences: list[float] = []
        kind = dice.choice([None, 0.5, 0.9])  # drawn by a model, or copied
        while policy.wants_more(confidences, kind) and len(confidences) < 16:
            confidences.append(dice.random() if kind is None else kind)
        drawn = 0 if kind is not None else len(confidences)
        while drawn and len(confidences) < 16 and policy.wants_more(confidences, 0.9, drawn=drawn):
            confidences.append(0.9)
        k = len(confidences)
        hits = next((i for i in range(k) if dice.random() > acceptance), k)
        draft = Draft(
            (0,) * k, None, tuple(confidences), free=bool(k and not drawn), num_copied=k - drawn if drawn else 0
        )
        policy.learn(draft, Verdict((0,) * (hits + 1), hits, k))
        spent += costs.draft_cost(drawn) + costs.verify_cost(k + 1) + (unread * costs.draft_read if drawn else 0.0)
        unread = 0 if drawn else unread + hits + 1
        written += hits + 1
        assert spent - written <= 1.5 + 0.0075 * written + 0.02 * max(0, written - 64) + 1e-9


@pytest.mark.parametrize(("hard", "rest"), [(12, 60), (70, 200)])
def test_a_text_that_begins_with_a_hard_place_is_drafted_for_after_it(hard: int, rest: int) -> None:
    """Nothing is right at first, everything later. A model that reads a token for a hundredth of a step comes back."""
    costs = CostModel(0.07, CHEAP_CHECKS, draft_read=0.013, draft_start=0.1)
    policy = AutoLength(costs)
    written = saved = 0
    while written < hard + rest:
        k = drafted(policy, 0.6)
        hits = k if written >= hard else 0
        policy.learn(Draft((0,) * k, None, (0.6,) * k), Verdict((0,) * (hits + 1), hits, k))
        written += hits + 1
        saved += hits
    assert saved > rest / 3


def test_a_dear_draft_has_more_than_one_trial() -> None:
    """A draft of one token loses 0.38 plain steps here: two wrong ones are more than the 0.7 that cheaper ones have."""
    policy = AutoLength(CostModel(0.35, CHEAP_CHECKS))
    for _ in range(3):
        assert policy.wants_more([], None)
        policy.learn(Draft((0,), None, (0.6,)), Verdict((0,), 0, 1))


def test_longer_drafts_are_tried_again_where_shorter_ones_are_always_right() -> None:
    """After second tokens that were wrong only first ones are drafted; that the second would be right by now shows only
    when it is drafted.
    """
    policy = AutoLength(CostModel(0.4, (1.0, 1.05, 1.2, 1.35, 1.5, 1.65, 1.8, 1.95, 2.2)))
    for _ in range(2):
        policy.learn(Draft((0, 0), None, (0.98, 0.98)), Verdict((0, 0), 1, 2))
    lengths = []
    for _ in range(60):
        lengths.append(k := drafted(policy, 0.98))
        policy.learn(Draft((0,) * k, None, (0.98,) * k), Verdict((0,) * (k + 1), k, k))
    assert lengths[0] == 1
    assert lengths[-1] >= 4
