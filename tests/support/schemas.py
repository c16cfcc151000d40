"""A small JSON Schema checker: the keywords that docs/schemas uses, and an error for any other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
KNOWN = {
    "$schema", "$id", "title", "description", "type", "properties", "required", "additionalProperties", "items",
    "anyOf", "const", "enum", "minimum", "exclusiveMinimum", "maximum", "minItems", "maxItems",
}  # fmt: skip


def check_schema(value: Any, name: str) -> None:
    """Fail with every place where ``value`` is not as docs/schemas/NAME.json says."""
    path = Path(__file__).parents[2] / "docs" / "schemas" / f"{name}.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    wrong = list(violations(json.loads(json.dumps(value)), schema, "$"))
    assert not wrong, "\n".join(wrong)


def violations(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    assert schema.keys() <= KNOWN, f"the checker does not know {schema.keys() - KNOWN}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{where} is {value!r:.60}, not {' or '.join(kinds)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{where} is {value!r}, not {schema['const']!r}"
    if "anyOf" in schema and all(any(violations(value, one, where)) for one in schema["anyOf"]):
        yield f"{where} is {value!r:.60}, which is none of the kinds that are allowed"
    if isinstance(value, dict):
        yield from _object(value, schema, where)
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where} has {len(value)} items"
        for index, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), f"{where}[{index}]")
    if _is(value, "number") and not _in_range(value, schema):
        yield f"{where} is {value}, out of range"


def _object(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> Iterator[str]:
    known = schema.get("properties", {})
    yield from (f"{where} lacks {key}" for key in schema.get("required", []) if key not in value)
    for key, item in value.items():
        rest = schema.get("additionalProperties", True)
        if key in known:
            yield from violations(item, known[key], f"{where}.{key}")
        elif rest is False:
            yield f"{where} has the unknown key {key}"
        elif isinstance(rest, dict):
            yield from violations(item, rest, f"{where}.{key}")


def _in_range(number: float, schema: Mapping[str, Any]) -> bool:
    above = number > schema["exclusiveMinimum"] if "exclusiveMinimum" in schema else True
    return above and schema.get("minimum", number) <= number <= schema.get("maximum", number)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
