"""Folders are layers, and imports point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAYERS = {
    "waferline_kernels": 0,
    "waferline.fabric": 1,
    "waferline.demo": 1,
    "waferline.model": 2,
    "waferline.runtime": 3,
    "waferline.serving": 4,
    "waferline": 5,  # llm.py and the commands
    "waferline.bench": 6,
    "waferline.inspect_command": 7,
    "waferline.cli": 8,
}
SOURCES = [
    (root, path)
    for root in (REPOSITORY / "engine", REPOSITORY / "kernels")
    for path in sorted(root.rglob("*.py"))
    if path.parts[-2:] != ("waferline", "__init__.py")  # the lazy exports of every layer
]


def layer_of(module: str) -> int | None:
    names = [name for name in LAYERS if module == name or module.startswith(name + ".")]
    return LAYERS[max(names, key=len)] if names else None


def imported_modules(path: Path, package: list[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


@pytest.mark.parametrize(("root", "path"), SOURCES, ids=lambda p: p.name)
def test_imports_point_down(root: Path, path: Path) -> None:
    parts = list(path.relative_to(root).with_suffix("").parts)
    package = parts[:-1]
    mine = layer_of(".".join(parts))
    assert mine is not None
    for module in imported_modules(path, package):
        theirs = layer_of(module)
        assert theirs is None or theirs <= mine, f"{'.'.join(parts)} imports {module}, a layer above it"


def test_the_client_loads_neither_kernels_nor_numba() -> None:
    code = "import sys; from waferline import Client, AsyncClient, SamplingParams; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "waferline.serving.client" in loaded
    assert not {"waferline_kernels", "numba", "llvmlite", "numpy", "tokenizers"} & set(loaded)
