"""Optional protocols are looked up once for every class."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from draftsmith.optional import fulfils


@runtime_checkable
class Sings(Protocol):
    """Has a tune and a method."""

    @property
    def tune(self) -> str:
        """The tune."""
        ...

    def sing(self) -> str:
        """Sing it."""
        ...


class Bird:
    def __init__(self) -> None:
        self.looked = 0

    @property
    def tune(self) -> str:
        self.looked += 1
        return "trill"

    def sing(self) -> str:
        return self.tune


class Fish:
    tune = "none"


def test_an_answer_is_that_of_isinstance_and_is_kept_for_the_class() -> None:
    birds, fish = (Bird(), Bird()), Fish()
    assert [fulfils(one, Sings) for one in (*birds, fish, None)] == [isinstance(bird, Sings) for bird in birds] + [
        False,
        False,
    ]
    looked = [bird.looked for bird in birds]
    assert all(fulfils(bird, Sings) for bird in birds)
    assert [bird.looked for bird in birds] == looked
    assert not fulfils(Fish(), Sings)


def test_protocols_and_classes_are_told_apart() -> None:
    @runtime_checkable
    class Tuned(Protocol):
        tune: str

    assert fulfils(Fish(), Tuned)
    assert not fulfils(Fish(), Sings)
