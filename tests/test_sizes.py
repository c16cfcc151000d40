"""Small rooms: the ten largest modules and functions are printed with every run, and limits hold for the largest."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDERS = ("src", "native", "benchmarks", "examples")
CODE_SUFFIXES = (".py", ".cpp", ".hpp", ".h")
MAX_MODULE_LINES = 400
MAX_DRAFT_BYTES = 20_000_000
MAX_FUNCTION_LINES = 60  # one screen; docstrings do not count


class Size(NamedTuple):
    """Lines of a module or function, and where it stands."""

    lines: int
    where: str


def _files(repository: Path) -> list[Path]:
    found = [path for folder in FOLDERS for path in (repository / folder).rglob("*") if path.suffix in CODE_SUFFIXES]
    return sorted(found)


def _module_sizes(repository: Path) -> list[Size]:
    sizes = [
        Size(len(path.read_text(encoding="utf-8").splitlines()), str(path.relative_to(repository)))
        for path in _files(repository)
    ]
    return sorted(sizes, reverse=True)


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def _function_sizes(repository: Path) -> list[Size]:
    sizes = []
    for path in _files(repository):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
                sizes.append(Size(lines, f"{path.relative_to(repository)}:{node.lineno} {node.name}"))
    return sorted(sizes, reverse=True)


def _show(capsys: pytest.CaptureFixture[str], title: str, sizes: list[Size]) -> None:
    with capsys.disabled():
        print(f"\n{title} ({len(sizes)} in all)")
        for size in sizes[:10]:
            print(f"{size.lines:6d}  {size.where}")


def test_modules_are_small(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = _module_sizes(repository)
    _show(capsys, "the ten largest modules", sizes)
    over = [size for size in sizes if size.lines > MAX_MODULE_LINES]
    assert not over, f"over {MAX_MODULE_LINES} lines: {over}; such a module has two jobs, find the second"


def test_functions_are_small(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = _function_sizes(repository)
    _show(capsys, "the ten largest functions", sizes)
    over = [size for size in sizes if size.lines > MAX_FUNCTION_LINES]
    assert not over, f"over {MAX_FUNCTION_LINES} lines: {over}; such a function does not fit one screen"


def test_nothing_large_or_built_is_tracked(repository: Path) -> None:
    """Weights and build products stay out of the repository, but for the drafts that are shipped; the rest is small."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    tracked = [repository / name for name in done.stdout.decode().split("\0") if name]
    sizes = {path: path.stat().st_size for path in tracked if path.is_file()}
    drafts = repository / "src" / "draftsmith" / "drafts"
    large = [path for path, size in sizes.items() if size > (MAX_DRAFT_BYTES if drafts in path.parents else 1_000_000)]
    built = [path for path in tracked if path.suffix in (".so", ".o", ".a", ".pyc", ".whl")]
    assert not large + built
