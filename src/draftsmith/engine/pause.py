"""When a text of a batch is asked for a draft again after it had none."""

from __future__ import annotations

__all__ = ["Pause"]

_LONGEST = 4  # rounds, of two texts; of more, twice as many rounds as there are texts


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

    def over(self) -> bool:
        """Whether the text is to be asked in this round. Call it once a round."""
        self._left -= 1
        return self._left < 0

    def settle(self, *, drafted: bool, texts: int) -> None:
        """What came of asking, where so many texts run."""
        longer = min(max(_LONGEST, 2 * texts), max(1, 2 * self._length))
        self._length = 0 if drafted else longer
        self._left, self._regretted = self._length, longer

    def regret(self) -> None:
        """The draft was wrong from its first token on: it is as if there had been none."""
        self._length = self._left = self._regretted
