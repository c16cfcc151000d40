"""What the pages and the build files say is true of the repository: links, make targets, scripts, dependencies."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NOT_IN_CORE = {"torch", "transformers", "gguf", "sentencepiece", "scipy", "accelerate"}


def _pages(repository: Path) -> list[Path]:
    found: list[Path] = []
    for name in PAGES:
        path = repository / name
        found += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return found


def _anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere(repository: Path) -> None:
    broken = []
    for page in _pages(repository):
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            if not path.exists() or (anchor and anchor not in _anchors(path)):
                broken.append(f"{page.relative_to(repository)}: {link}")
    assert not broken


def test_no_page_keeps_the_marks_of_a_merge(repository: Path) -> None:
    marks = re.compile(r"^(<{7} |>{7} |={7}$)", flags=re.MULTILINE)
    assert [page.name for page in _pages(repository) if marks.search(page.read_text(encoding="utf-8"))] == []


def test_every_docs_page_is_in_the_index(repository: Path) -> None:
    index = (repository / "docs" / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in (repository / "docs").glob("*.md") if f"({page.name})" not in index]
    assert missing == ["README.md"]


def test_make_targets_that_pages_name_exist(repository: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (repository / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {"demo", "test", "lint", "bench", "docs", "build", "clean"} <= targets
    for page in _pages(repository):
        for line in re.findall(r"^make ([a-z ]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            named = set(line.partition("  ")[0].split())
            assert named <= targets, f"{page.name} names make {named - targets}"


def test_scripts_that_pages_name_exist(repository: Path) -> None:
    for page in _pages(repository):
        for script in re.findall(r"(?:benchmarks|examples)/\w+\.py", page.read_text(encoding="utf-8")):
            assert (repository / script).is_file(), f"{page.name} names {script}"


def test_every_dependency_is_argued_for_and_pinned(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    declared = list(project["project"]["dependencies"]) + list(project["build-system"]["requires"])
    for extra in project["project"].get("optional-dependencies", {}).values():
        declared += extra
    page = (repository / "docs" / "dependencies.md").read_text(encoding="utf-8")
    pinned = (repository / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    for requirement in declared:
        name = re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0]
        assert re.search(rf"\b{re.escape(name)}\b", page), f"docs/dependencies.md does not explain {name}"
        assert f"\n{name.lower()}==" in "\n" + pinned, f"constraints.txt does not pin {name}"


def test_core_install_stays_small() -> None:
    """No large package comes in through a dependency; benchmarks/install_size.py measures the bytes."""
    todo, seen = ["draftsmith"], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            if name == "draftsmith":
                pytest.skip("draftsmith is not installed")
            continue  # for another platform or Python
        bare = [text for text in needed if "extra ==" not in text]
        todo += [re.split(r"[<>=!~;\[ (]", text, maxsplit=1)[0].lower().replace("_", "-") for text in bare]
    assert not seen & NOT_IN_CORE
    assert len(seen) <= 40, f"a core install takes {len(seen)} packages: {sorted(seen)}"
