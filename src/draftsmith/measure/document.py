"""A result as a page: sections of text, tables and pictures, written as Markdown or as one self-contained HTML file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Document", "Section", "as_html", "as_markdown", "reference_name"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6670; --line: #d4dae0; --back: #ffffff; --band: #f4f6f8;
  --one: #1f6fb2; --two: #c2571a; --three: #2e8540; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb7; --line: #3a434c; --back: #14181c;
  --band: #1d2329; --one: #6fb3e8; --two: #f0a06a; --three: #7cc98d; --bad: #f2847c; } }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.5rem 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p { max-width: 48rem; } .lead { font-size: 1.15rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } figure { margin: 1rem 0; overflow-x: auto; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif;
  stroke: var(--back); stroke-width: 3px; paint-order: stroke; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """``table``: rows of cells, the first one the header. ``figure``: an SVG picture, for HTML only."""

    title: str
    paragraphs: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    figure: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A page. All its strings are plain text; only ``figure`` holds markup."""

    title: str
    lead: str
    sections: tuple[Section, ...]


def reference_name(reference: str) -> str:
    """A model's or drafter's reference without the folders that lie before a file: these say nothing to a reader."""
    parts = [part.rpartition("/")[2] if part.startswith(("/", "~", ".")) else part for part in reference.split("+")]
    return "+".join(parts)


def as_markdown(document: Document) -> str:
    """The page as Markdown, without the pictures."""
    lines = [f"# {document.title}", "", document.lead, ""]
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        if section.table:
            head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in section.table]
            lines += [_row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def as_html(document: Document) -> str:
    """The page as one file that needs nothing else, light or dark as the reader's system is."""
    title = html.escape(document.title)
    parts = [f"<h1>{title}</h1>", f'<p class="lead">{html.escape(document.lead)}</p>']
    for section in document.sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.figure:
            parts.append(f"<figure>{section.figure}</figure>")
        if section.table:
            head, *rows = section.table
            body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
            parts.append(f"<table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(cells: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
