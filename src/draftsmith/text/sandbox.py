"""Running chat templates, which come from strangers, safely.

``compile_template`` is the only way in draftsmith to run a Jinja template. Templates see plain values and a few
functions, cannot change what they are given, and are stopped when they loop, grow or take too long. The limits are
against templates that are broken or mean; no honest template comes near them.
"""

from __future__ import annotations

import json
import operator
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.visitor

from draftsmith.errors import TemplateError

__all__ = ["MAX_SECONDS", "MAX_TEXT", "compile_template"]

MAX_SOURCE = 1 << 20  # characters of a template
MAX_TEXT = 1 << 24  # characters written in all, and in any one string
MAX_STEPS = 2_000_000  # turns of loops, and calls
MAX_SECONDS = 2.0

_BUDGET = "_draftsmith_budget"
_GROWING_FILTERS = ("batch", "center", "filesizeformat", "format", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
_GROWING_METHODS = frozenset(("center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"))


class _Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._steps = MAX_STEPS
        self._text = MAX_TEXT

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0 or (self._steps % 64 == 0 and time.monotonic() > self._deadline):
            raise TemplateError(f"the chat template ran for more than {MAX_SECONDS:g} seconds or {MAX_STEPS} steps")

    def write(self, size: int) -> None:
        self._text -= size
        check_length(MAX_TEXT - self._text)


def check_length(length: int) -> None:
    """Raises TemplateError for a text that no prompt can be."""
    if length > MAX_TEXT:
        raise TemplateError(f"the chat template makes a text of more than {MAX_TEXT} characters")


def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that renders ``source`` with the variables it is given.

    Besides these, a template has ``raise_exception(message)``, ``strftime_now(format)``, the filter ``tojson`` and the
    tag ``generation``, as in transformers. Both this function and the one returned raise TemplateError only.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are read")
    try:
        template = _environment().from_string(source)
    except (jinja2.TemplateError, ValueError, RecursionError, MemoryError, SyntaxError) as error:
        raise TemplateError(f"the chat template cannot be parsed: {_one_line(error)}") from error

    def render(variables: Mapping[str, Any]) -> str:
        try:
            return template.render({**variables, _BUDGET: _Budget()})
        except TemplateError:
            raise
        except Exception as error:  # whatever a template can provoke
            raise TemplateError(f"the chat template failed: {_one_line(error)}") from error

    return render


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    """The one environment; templates cannot change it, and every rendering has a budget of its own."""
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationTag],
        finalize=_finalize,
    )
    for name in _GROWING_FILTERS:
        environment.filters.pop(name, None)
    environment.filters |= {"tojson": _to_json, "_tick": _tick, "_concat": _concat, "replace": _replace, "join": _join}
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    for name in ("cycler", "joiner", "lipsum"):
        environment.globals.pop(name, None)
    return environment


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox that also counts steps and refuses to build enormous values."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Instrument().visit(tree)  # type: ignore[no-any-return]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _GROWING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No stand-in for str.format: it can make a text of any length, so is_safe_attribute refuses it."""

    def call_binop(self, context: jinja2.runtime.Context, op: str, left: Any, right: Any) -> Any:
        _budget(context).step()
        if op == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            check_length(len(left) + len(right))
        elif op == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    check_length(len(sequence) * times)
        huge_power = op == "**" and (abs(left) > 2**32 or right > 64)
        if huge_power or (op == "%" and isinstance(left, str) and re.search(r"\d{4}|\*", left)):
            raise TemplateError("the chat template calculates with numbers or widths that are too large")
        functions = {"+": operator.add, "*": operator.mul, "**": operator.pow, "%": operator.mod}
        return functions[op](left, right)

    def call(self, context: jinja2.runtime.Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        _budget(context).step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            check_length(len(owner) + owner.count(args[0]) * len(args[1]))
        elif isinstance(owner, str) and name == "join" and args and hasattr(args[0], "__len__"):
            check_length(len(owner) * len(args[0]) + sum(len(part) for part in args[0] if isinstance(part, str)))
        return super().call(context, function, *args, **kwargs)


class _Instrument(jinja2.visitor.NodeTransformer):
    """Counts every turn of a loop, and replaces ``~`` by a filter that watches the length."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802 (named by the library)
        self.generic_visit(node)
        tick = jinja2.nodes.Filter(jinja2.nodes.Const(0), "_tick", [], [], None, None, lineno=node.lineno)
        node.body.insert(0, jinja2.nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes, lineno=node.lineno)
        return jinja2.nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words in some templates; it prints its body."""

    tags = {"generation"}  # noqa: RUF012 (the library's way to name tags)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _budget(context: jinja2.runtime.Context) -> _Budget:
    found = context.get_all().get(_BUDGET)
    if not isinstance(found, _Budget):  # the template has put something else in its place
        raise TemplateError("the chat template overwrites a name that it must not use")
    return found


@jinja2.pass_context
def _finalize(context: jinja2.runtime.Context, value: Any) -> Any:
    """Sees every value that is printed; None prints as it does in Python, as templates expect."""
    budget = _budget(context)
    budget.step()
    budget.write(len(value) if isinstance(value, str) else 1)
    return value


@jinja2.pass_context
def _tick(context: jinja2.runtime.Context, value: Any) -> Any:
    _budget(context).step()
    return value


@jinja2.pass_context
def _concat(context: jinja2.runtime.Context, parts: list[Any]) -> str:
    _budget(context).step()
    texts = [str(part) for part in parts]
    check_length(sum(map(len, texts)))
    return "".join(texts)


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(value)
    check_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _join(value: Any, separator: str = "", attribute: str | None = None) -> str:
    texts = [str(item if attribute is None else item[attribute]) for item in value]
    check_length(len(separator) * len(texts) + sum(map(len, texts)))
    return separator.join(texts)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    indent = None if indent is None else min(int(indent), 16)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> str:
    raise TemplateError(f"the chat template refuses these messages: {_one_line(message)}")


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(str(form)[:200])


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:300]
