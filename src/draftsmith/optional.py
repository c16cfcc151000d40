"""What an object can do besides what it must: optional protocols, looked up once for every class.

``isinstance`` with a protocol looks every member up each time, which takes some 10 us: too much for what is asked of
every text in every round.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

__all__ = ["fulfils"]

T = TypeVar("T")
_known: dict[tuple[type, type], bool] = {}


def fulfils(value: object, protocol: type[T]) -> TypeGuard[T]:
    """``isinstance(value, protocol)`` for a runtime-checkable ``protocol`` whose members a class has or lacks as a
    whole: the first object of a class answers for the others."""
    key: tuple[type[Any], type[Any]] = (type(value), protocol)
    known = _known.get(key)
    if known is None:
        known = _known[key] = isinstance(value, protocol)
    return known
