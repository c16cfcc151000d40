"""When a text of a batch is asked for a draft again after it had none."""

from __future__ import annotations

import math

__all__ = ["Pause", "longest_pause"]

_LONGEST = 4  # rounds, that are always allowed
_LEAST_CHANCE = 1 / 64


def longest_pause(texts: int, chance: float) -> int:
    """Rounds between two questions to one of so many texts, where a question brings a draft with such a chance.

    All wait while one is asked, and what a draft saves is the less the more texts there are. With questions P rounds
    apart, asking costs texts / P, and what is found P / 2 rounds late costs chance * P / texts: least for P that grows
    like texts and one over the root of the chance.
    """
    return max(_LONGEST, round(texts / math.sqrt(max(chance, _LEAST_CHANCE))))


class Pause:
    """After a round without a draft a text is left alone for one round, after the next such for two, then for four.

    Asking costs a tenth of a millisecond for each text, which adds up where many write and drafts seldom pay: of
    sixteen texts a token that is right saves a quarter of what it saves of one, and all wait while one is asked. So
    where many write, pauses go on growing, and where asking others has brought little of late, they begin longer. A
    draft ends them: places where drafts pay come in stretches.
    """

    def __init__(self, length: int = 0) -> None:
        """``length``: rounds before the first question."""
        self._length = self._left = self._regretted = length

    def over(self, longest: int) -> bool:
        """Whether the text is to be asked in this round; ``longest``: what a pause may be by now, if others have gone.
        Call it once a round.
        """
        self._left = min(self._left, longest) - 1
        return self._left < 0

    def settle(self, *, drafted: bool, longest: int) -> None:
        """What came of asking, and how long a pause may get."""
        longer = min(longest, max(1, 2 * self._length))
        self._length = 0 if drafted else longer
        self._left, self._regretted = self._length, longer

    def regret(self) -> None:
        """The draft was wrong from its first token on: it is as if there had been none."""
        self._length = self._left = self._regretted
