"""The public surface: what `draftsmith` exports, and that every module says what it gives to others."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import draftsmith

PUBLIC = (
    "LLM",
    "Completion",
    "DraftsmithError",
    "Grammar",
    "Message",
    "SamplingParams",
    "pipeline",
)

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(draftsmith.__path__, "draftsmith.")
    if not module.name.rpartition(".")[2].startswith("_")
)


def test_the_package_exports_what_is_promised() -> None:
    """Adding a name is a decision, removing one breaks users: either changes this list and the changelog."""
    assert set(PUBLIC) <= set(draftsmith.__all__)
    assert set(draftsmith.__all__) - set(PUBLIC) <= {"__version__"}


def test_exports_exist_and_are_documented() -> None:
    for name in draftsmith.__all__:
        value = getattr(draftsmith, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"draftsmith.{name} has no docstring"


def test_dir_lists_the_exports() -> None:
    assert set(draftsmith.__all__) <= set(dir(draftsmith))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        getattr(draftsmith, "no_such_thing")  # noqa: B009 (a plain attribute would be a useless expression)


@pytest.mark.parametrize("name", MODULES)
def test_module_has_docstring_and_sorted_all(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if error.name in ("torch", "transformers"):
            pytest.skip(f"needs {error.name}")
        raise
    assert module.__doc__, f"{name} has no docstring: say what it is and where it stands in the flow"
    exports = getattr(module, "__all__", None)
    if exports is not None:
        missing = [export for export in exports if not hasattr(module, export)]
        assert not missing, f"{name}.__all__ names {missing}, which do not exist"
        assert len(set(exports)) == len(exports), f"{name}.__all__ names something twice"


def test_the_package_is_typed() -> None:
    assert (Path(draftsmith.__file__).parent / "py.typed").is_file()
