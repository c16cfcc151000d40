"""JSON files of a model folder, read with limits, and typed access to their values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from draftsmith.errors import CheckpointError

__all__ = ["JsonObject", "parse_json_object", "read_json_object"]

MAX_BYTES: Final = 64 << 20


def read_json_object(path: Path) -> JsonObject:
    """The object in a file. Raises CheckpointError when it is missing, too large, or not a JSON object."""
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= MAX_BYTES else b""
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path.name} in {path.parent}; the model folder is incomplete") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no such file is; fetch it again")
    return JsonObject(path, parse_json_object(raw, str(path)))


def parse_json_object(raw: bytes, what: str) -> dict[str, Any]:
    """The object in ``raw``. ``what`` names the source in the CheckpointError for anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{what} is not valid JSON; it is truncated or damaged, fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} holds a JSON {type(value).__name__}; it must be an object")
    return value


class JsonObject:
    """Typed reading of an object's values; a value of another type is a CheckpointError that names the key.

    A key that is absent or null gives ``default``; without a default it is an error.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def _get(self, key: str, kinds: tuple[type, ...], what: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.path} lacks the key {key!r}, which must be {what}")
        if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
            raise CheckpointError(f"{self.path} states {key} = {value!r:.60}; it must be {what}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        return int(self._get(key, (int,), "a whole number", default))

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, (int, float), "a number", default)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise CheckpointError(f"{self.path} states {key} = {value!r:.60}; it must be a finite number")
        return number

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return bool(self._get(key, (bool,), "true or false", default))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        return str(self._get(key, (str,), "a text", default))

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers; empty when absent."""
        values = self._get(key, (list,), "a list of numbers", [])
        return tuple(JsonObject(self.path, {key: value}).number(key) for value in values)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        values = self._get(key, (list,), "a list of texts", [])
        return tuple(JsonObject(self.path, {key: value}).text(key) for value in values)

    def object(self, key: str) -> JsonObject:
        """An object; empty when absent."""
        return JsonObject(self.path, self._get(key, (dict,), "an object", {}))

    def has(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self.values.get(key) is not None
