"""The layers of docs/architecture.md: imports go down only, type-only and local ones included."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "types", "provenance", "optional"),
    ("text", "quant", "sampling"),
    ("checkpoint",),
    ("model",),
    ("speculate",),
    ("engine",),
    ("train", "measure", "export"),
    ("pipeline", "server", "cli"),
    ("__init__", "__main__"),
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}

# Packages of one layer do not know each other. The exceptions, each with its direction.
SAME_LAYER = {
    ("types", "errors"),  # values check themselves
    ("provenance", "errors"),
    ("cli", "server"),  # `draftsmith serve` starts it
    ("cli", "pipeline"),
}

HEAVY_MODULES = ("torch", "transformers", "huggingface_hub", "tokenizers", "jinja2", "rich", "safetensors", "typer")

Import = tuple[str, int]  # dotted module below draftsmith, line


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _modules(repository: Path) -> dict[str, Path]:
    package = repository / "src" / "draftsmith"
    return {_module_name(path, package): path for path in sorted(package.rglob("*.py"))}


def _imports(path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    """Every import of draftsmith's own modules anywhere in a file; relative imports are refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "draftsmith":
                    yield alias.name.partition(".")[2] or "__init__", node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import; write the whole name"
            if node.module is None or node.module.split(".")[0] != "draftsmith":
                continue
            below = node.module.partition(".")[2]
            for alias in node.names:
                member = f"{below}.{alias.name}" if below else alias.name
                yield (member if member in modules else below or "__init__"), node.lineno


def _top(module: str) -> str:
    return module.split(".")[0]


def test_every_package_has_a_layer(repository: Path) -> None:
    unknown = {_top(module) for module in _modules(repository)} - LEVEL.keys()
    assert not unknown, f"{sorted(unknown)} have no layer: put them into LAYERS here and into docs/architecture.md"


def test_imports_go_down(repository: Path) -> None:
    modules = _modules(repository)
    wrong = []
    for module, path in modules.items():
        for target, line in _imports(path, modules):
            here, there = _top(module), _top(target)
            if here == there or (here, there) in SAME_LAYER:
                continue
            if LEVEL[there] >= LEVEL[here]:
                wrong.append(f"{path}:{line} {module} (layer {LEVEL[here]}) imports {target} (layer {LEVEL[there]})")
    assert not wrong, "imports must go down the layers:\n" + "\n".join(wrong)


def test_no_module_imports_itself_through_others(repository: Path) -> None:
    """No cycle among the modules of a package either, local and type-only imports included."""
    modules = _modules(repository)
    graph = {module: {target for target, _ in _imports(path, modules)} - {module} for module, path in modules.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            pytest.fail("import cycle: " + " -> ".join((*trail[trail.index(module) :], module)))
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_torch_stays_in_its_backend(repository: Path) -> None:
    """The core install has no PyTorch: only the torch backend and training may import it."""
    wrong = []
    for module, path in _modules(repository).items():
        if module.startswith(("model.torch", "train")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                from_module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                names = [from_module] if from_module else [alias.name for alias in node.names]
                wrong += [f"{path}:{node.lineno}" for name in names if name.split(".")[0] in ("torch", "transformers")]
    assert not wrong, f"torch is imported outside its backend: {wrong}"


def test_import_is_light() -> None:
    """`import draftsmith` loads nothing heavy: those imports stand where they are needed."""
    code = f"import sys, json, draftsmith; print(json.dumps([m for m in {HEAVY_MODULES!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
