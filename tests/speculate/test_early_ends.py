"""A search for the gain of more draft tokens may end as soon as it has found enough: no decision changes by it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pytest

from draftsmith.speculate import AutoLength, CostModel
from draftsmith.types import Draft, Verdict


class Thorough(AutoLength):
    """Looks at every length."""

    def _gain(
        self, reach: float, chances: Iterator[float], drafted: int, draft_step: float, speed: float, enough: float
    ) -> float:
        del enough
        return super()._gain(reach, chances, drafted, draft_step, speed, math.inf)


@pytest.mark.parametrize("seed", range(20))
def test_ending_early_decides_the_same(seed: int) -> None:
    """Over a text with copies, with a model's drafts, and with copies after those."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    rows = [1.0 + draw.uniform(0, 0.4) * m + (m > 7) * draw.uniform(0, 0.8) for m in range(17)]
    costs = CostModel(draw.uniform(0, 0.4), (1.0, *sorted(rows)), draft_read=0.001, draft_start=draw.uniform(0, 0.3))
    quick, thorough = AutoLength(costs), Thorough(costs)
    asked = wanted = 0
    for policy in (quick, thorough):
        policy.begin(0, 400)
    for _ in range(150):
        confidences: list[float] = []
        match, free, drawn = draw.randrange(12), draw.random() < 0.5, 0
        while True:
            upcoming = (match + len(confidences)) / (match + len(confidences) + 1) if free or drawn else None
            instead = draw.random() < 0.5
            answers = {p.wants_more(confidences, upcoming, instead=instead, drawn=drawn) for p in (quick, thorough)}
            assert len(answers) == 1
            asked += 1
            if not answers.pop():
                break
            wanted += 1
            confidences.append(upcoming if upcoming is not None else draw.random())
            if not free and not drawn and draw.random() < 0.2:
                drawn = len(confidences)
        accepted = draw.randint(0, len(confidences))
        copied = len(confidences) - drawn if drawn else 0
        draft = Draft((1,) * len(confidences), confidences=tuple(confidences), free=free, num_copied=copied)
        for policy in (quick, thorough):
            policy.learn(draft, Verdict((1,) * (accepted + 1), accepted, len(confidences)))
    assert 0 < wanted < asked
