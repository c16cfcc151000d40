"""Rounds that last what calibrated costs say of them, for benchmarks that no clock is to disturb."""

from __future__ import annotations

import argparse
import dataclasses

from draftsmith.engine.calibrate import StepCosts
from draftsmith.speculate import CostModel, RoundTimes

__all__ = ["ByCosts", "add_cost_options", "costs_said", "numbers"]


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    """``--verify``, ``--draft-step``, ``--draft-start`` and ``--draft-read``: the costs of another machine."""
    parser.add_argument("--verify", help="v(1),v(2),...; as calibrated where it is not given")
    parser.add_argument("--draft-step", type=float, default=0.1, help="c, with --verify")
    parser.add_argument("--draft-start", type=float, default=0.0, help="a draft besides its tokens, with --verify")
    parser.add_argument("--draft-read", type=float, default=0.01, help="a token read by the draft, with --verify")


def costs_said(options: argparse.Namespace) -> CostModel | None:
    """What those options say; None without ``--verify``."""
    if not options.verify:
        return None
    return CostModel(options.draft_step, numbers(options.verify), options.draft_read, options.draft_start)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers that are separated by commas."""
    return tuple(float(one) for one in text.split(","))


class ByCosts:
    """What the rounds of one reply cost, in place of what they took.

    ``error``: how many times what was told of them drafts and checks really cost. ``unread``: tokens of the prompt
    that a draft model has not read when the reply begins.
    """

    def __init__(self, steps: StepCosts, error: float, unread: int) -> None:
        self._steps, self._error = steps, error
        self._unread = unread
        self._drawn = False
        self.steps = 0.0  # plain steps that all rounds cost, those of the context that each had

    def times(self, counts: RoundTimes) -> RoundTimes:
        """The round as it should have been."""
        self._drawn = counts.num_drawn > 0
        now = self._steps.at(counts.context)
        check = 1 + self._error * (now.costs.verify_cost(counts.num_draft_tokens + 1) - 1)
        reading = self._unread * now.costs.draft_read if self._drawn else 0.0
        draft = self._error * (now.costs.draft_cost(counts.num_drawn) + reading)
        self.steps += draft + check
        return dataclasses.replace(counts, draft_s=draft * now.plain_s, check_s=check * now.plain_s, apart=True)

    def wrote(self, tokens: int) -> None:
        """So many came of the last round; a model that drafted in it has them, or reads them at the cost of a start."""
        self._unread = 0 if self._drawn else self._unread + tokens
