"""Markdown for the chat page: text to a tree of a few harmless elements, which the page builds one by one.

No markup ever leaves the server: a node is a text, or an element from a short list with children. HTML in the Markdown
is text, images are their description, and links keep to http, https and mailto.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, String
from pygments.util import ClassNotFound

__all__ = ["MAX_TEXT", "to_tree"]

MAX_TEXT = 100_000  # characters
_MAX_DEPTH = 100
_MAX_CODE = 10_000  # characters of one block that are given colours
_TEXT = ("p", "em", "strong", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br")
_ELEMENTS = frozenset((*_TEXT, "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"))
_COLOURS = ((Comment, "c"), (Keyword, "k"), (String, "s"), (Number, "m"), (Name.Function, "f"), (Name.Class, "f"))

Node = str | dict[str, Any]


def to_tree(text: str) -> list[Node]:
    """Nodes: a text, or ``{"tag", "children"}`` with perhaps ``href`` (a) or ``kind`` (colour of a span).

    What is nested too deep for anybody to read is one paragraph of text.
    """
    try:
        return [node for child in SyntaxTreeNode(_parser().parse(text)).children for node in _nodes(child, 0)]
    except RecursionError:
        return [_element("p", [text])]


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def _nodes(node: SyntaxTreeNode, depth: int) -> list[Node]:
    if depth > _MAX_DEPTH:
        raise RecursionError
    if node.type in ("fence", "code_block"):
        return [_element("pre", [_element("code", _coloured(node.content, node.info.strip().partition(" ")[0]))])]
    if node.type in ("text", "html_inline", "html_block"):
        return [node.content]
    if node.type == "softbreak":
        return ["\n"]
    if node.type == "code_inline":
        return [_element("code", [node.content])]
    children = [one for child in node.children for one in _nodes(child, depth + 1)]
    if node.type == "image":
        return [str(node.content), *([] if node.content else children)]
    if node.type == "link":
        href = str(node.attrs.get("href", ""))
        safe = href.lower().startswith(("http://", "https://", "mailto:"))
        return [{**_element("a", children), "href": href}] if safe else children
    return [_element(node.tag, children)] if node.tag in _ELEMENTS else children


def _element(tag: str, children: list[Node]) -> dict[str, Any]:
    return {"tag": tag, "children": children}


def _coloured(code: str, language: str) -> list[Node]:
    lexer = _lexer(language) if len(code) <= _MAX_CODE else None
    if lexer is None:
        return [code]
    nodes: list[Node] = []
    for token, text in lexer.get_tokens(code):
        kind = next((name for family, name in _COLOURS if token in family), None)
        nodes.append(text if kind is None else {**_element("span", [text]), "kind": kind})
    return nodes


def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None
