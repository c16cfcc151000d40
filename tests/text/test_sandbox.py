"""Templates from strangers: what they may do, and that they can do no more."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from draftsmith.errors import TemplateError
from draftsmith.text.sandbox import MAX_SECONDS, compile_template

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}

ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages[0].__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['json'] }}",
    "{{ raise_exception.__code__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ range.__class__.__base__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ (messages|map('attr', '__class__')|list)[0] }}",
    "{{ [''] | map('attr', 'format') | first }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages[0].update(role='x') }}",
    "{% set messages[0].role = 'x' %}",
    "{{ ''.join.__self__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ lipsum.__globals__ }}",
    "{{ (raise_exception|attr('__globals__')) }}",
    "{{ loop.__class__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__class__ }}",
]

ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for a in range(9999999999) %}{% endfor %}",
    "{{ 'a' * 99999999999 }}",
    "{{ [1] * 99999999999 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ '%*d' % (99999999999, 1) }}",
    "{{ 'a'.ljust(99999999999) }}",
    "{{ 'a'|center(99999999999) }}",
    "{{ '{:99999999999}'.format(1) }}",
    "{{ '{:1999999999}'.format(1) }}",
    "{{ ([''] | map('attr', 'format') | first)('{:1999999999}') }}",
    "{{ 'a'.rjust(1999999999) }}",
    "{{ '%1999999999d' % 1 }}",
    "{{ 'a' * 1999999999 }}",
    "{{ 'a'|format(1) }}",
    "{{ [1]|batch(99999999999, 0)|list }}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s|replace('a', n.s) %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s|join(n.s) %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s.join(n.s) %}{% endfor %}",
    "{% set n = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set x %}{{ n.s }}{{ n.s }}{% endset %}"
    "{% set n.s = x %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endfor %}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_reach_out_of_the_sandbox(source: str) -> None:
    variables = {"messages": [{"role": "user", "content": "hi"}]}
    try:
        text = compile_template(source)(variables)
    except TemplateError:
        text = ""
    assert not any(sign in text for sign in ("class", "module", "function", "object", "root:", "<"))
    assert variables == MESSAGES


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_cannot_run_or_grow_without_end(source: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TemplateError) as failure:
        compile_template(source)(MESSAGES)
    assert time.monotonic() - begun < 4 * MAX_SECONDS
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}", "1True1"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{% continue %}{% endfor %}ok", "ok"),
        ("{% for i in [3, 1, 2] if i > 1 %}{{ loop.revindex }}{{ i }} {% else %}none{% endfor %}", "23 12 "),
        ("{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v }};{% endfor %}", "role=user;content=hi;"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ {'é': [1]} | tojson(indent=2) }}", '{\n  "é": [\n    1\n  ]\n}'),
        ("{% generation %}{{ messages[0].content | upper }}{% endgeneration %}", "HI"),
        ("{% set ns = namespace(n=1) %}{% generation %}{% set ns.n = 2 %}{% endgeneration %}{{ ns.n }}", "2"),
        ("{{ ['a', 'b'] | join(', ') }}{{ messages | map(attribute='role') | join }}", "a, buser"),
        ("{{ 'a-b'.split('-')[-1].strip() + 'x' * 3 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ '%s' % 5 }}", "bxxx385"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("    {% if true %}\n  a\n    {% endif %}\nb", "  a\nb"),
        ("{{ missing }}{{ messages[0].tool_calls }}{{ none }}", "None"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('ab') }}", "abab"),
    ],
)
def test_what_honest_templates_do_works(source: str, text: str) -> None:
    assert compile_template(source)(MESSAGES) == text


def test_failures_are_one_sentence() -> None:
    for source in ("{{ 1 / 0 }}", "{{ messages[5].content.x }}", "{{ undefined() }}", "{{ raise_exception('a\nb') }}"):
        with pytest.raises(TemplateError, match=r"^the chat template [^\n]+$"):
            compile_template(source)(MESSAGES)
    with pytest.raises(TemplateError, match=r"cannot be parsed: [^\n]+$"):
        compile_template("{% for %}")
    with pytest.raises(TemplateError, match="at most"):
        compile_template("x" * (1 << 21))


def test_one_rendering_does_not_spend_the_budget_of_the_next() -> None:
    render = compile_template("{% for i in range(90000) %}{% endfor %}done")
    assert {render(MESSAGES) for _ in range(30)} == {"done"}


def test_jinja_is_used_in_one_module_only(repository: Path) -> None:
    users = set()
    for path in (repository / "src" / "draftsmith").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "jinja2" for name in names):
                users.add(path.name)
    assert users == {"sandbox.py"}
