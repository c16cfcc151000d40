"""What a model writes becomes elements from a short list, whatever it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.server.markdown import to_tree

LISTED = "p em strong s code pre ul ol li blockquote table thead tbody tr th td hr br a span h1 h2 h3 h4 h5 h6"
TAGS = frozenset(re.findall(r"\w+", LISTED))


def html(nodes: list[Any]) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
            continue
        assert node["tag"] in TAGS
        assert node.keys() <= {"tag", "children", "href", "kind"}
        assert re.match(r"(https?://|mailto:)", node.get("href", "http://"), re.IGNORECASE)
        assert re.fullmatch("[ckmsf]", node.get("kind", "c"))
        extra = "".join(f" {key}={node[key]}" for key in ("href", "kind") if key in node)
        parts.append(f"<{node['tag']}{extra}>{html(node['children'])}</{node['tag']}>")
    return "".join(parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a *b* **c** `d`", "<p>a <em>b</em> <strong>c</strong> <code>d</code></p>"),
        ("# a\n\n- b\n- c", "<h1>a</h1><ul><li><p>b</p></li><li><p>c</p></li></ul>"),
        ("```python\ndef f(): pass # x\n```", "<pre><code><span kind=k>def</span>"),
        ("```nothing\n<b>\n```", "<pre><code><b>\n</code></pre>"),
        ("| a |\n|---|\n| b |", "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>b</td></tr></tbody></table>"),
        ("<script>alert(1)</script>", "<p><script>alert(1)</script></p>"),  # a text, see html()
        ("[a](https://b.test)", "<p><a href=https://b.test>a</a></p>"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("[a](/etc/passwd)", "<p>a</p>"),
        ("![a](https://b.test/c.png)", "<p>a</p>"),
        ("<https://b.test>", "<p><a href=https://b.test>https://b.test</a></p>"),
        ("```python\nunfin", "<pre><code>unfin</code></pre>"),
    ],
)
def test_markdown_to_elements(text: str, expected: str) -> None:
    assert html(to_tree(text)).startswith(expected)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab<>[]()!*_`#-|:\n\\\"'& http://javascript", max_size=200))
def test_nothing_else_ever_comes_out(text: str) -> None:
    html(to_tree(text))


def test_deep_nesting_is_no_problem() -> None:
    html(to_tree("> " * 2000 + "a"))
    html(to_tree("*" * 5000 + "a" + "*" * 5000))
    html(to_tree("[" * 5000))
