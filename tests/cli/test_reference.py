"""docs/cli.md is what the program says of itself."""

from __future__ import annotations

from pathlib import Path

from draftsmith.cli.reference import reference


def test_the_page_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "docs/cli.md is not what the program says; run: make docs"


def test_every_command_and_every_exit_code_is_there() -> None:
    page = reference()
    for command in ("generate", "chat", "models", "models list", "models pull", "models show", "models remove"):
        assert f"\n## draftsmith {command}\n" in page
    assert "130: interrupted" in page
