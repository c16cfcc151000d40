"""The checker of docs/schemas finds what is out of range, a zero too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.schemas import violations


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ({"minimum": 1}, 1, 0),
        ({"exclusiveMinimum": 0}, 0.1, 0),
        ({"maximum": -1}, -1, 0),
    ],
)
def test_ranges(limits: dict[str, Any], inside: float, outside: float) -> None:
    schema = {"type": "number", **limits}
    assert list(violations(inside, schema, "$")) == []
    assert list(violations(outside, schema, "$")) == [f"$ is {outside}, out of range"]
