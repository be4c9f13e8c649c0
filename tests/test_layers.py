"""Imports go down only: a module imports from lower rows, or from its own package, and from nothing else of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import opendetr

PACKAGE = Path(opendetr.__file__).parent

# Rows from bottom to top; modules and packages of one row do not import each other.
ROWS = (
    "boxes categories config distributed files recipe version",
    "structures scoring",
    "nn data visualize",
    "models synthetic results",
    "postprocess losses",
    "tasks weights evaluation",
    "presets",
    "inference",
    "training export",
    "analysis bench",
    "cli",
)
ROW_OF = {name: number for number, names in enumerate(ROWS) for name in names.split()}
# `__init__` resolves the public names on first use, and `__main__` only calls the command line.
OUTSIDE = {"__init__", "__main__"}
MOST_ENTRIES = 32


def entry_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_entries(tree: ast.AST) -> set[str]:
    """What a module imports of ours anywhere in it, inside functions and under TYPE_CHECKING too."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they lead"
            assert node.module != "opendetr" or all(alias.name in ROW_OF for alias in node.names), "name the module"
            names += [f"opendetr.{alias.name}" for alias in node.names] if node.module == "opendetr" else []
            names.append(node.module or "")
    parts = [name.split(".") for name in names if name.startswith("opendetr.")]
    return {part[1] for part in parts}


def faults(entry: str, tree: ast.AST) -> list[str]:
    return [
        f"{entry} (row {ROW_OF[entry]}) imports {other} (row {ROW_OF[other]})"
        for other in sorted(imported_entries(tree) - {entry})
        if ROW_OF[other] >= ROW_OF[entry]
    ]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if entry_of(path) not in OUTSIDE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    entry = entry_of(path)
    assert entry in ROW_OF, f"{entry} has no row yet"
    assert faults(entry, ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from opendetr.training.trainer import Trainer",
        "import opendetr.cli.main",
        "def later():\n    from opendetr import presets",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from opendetr.losses.matcher import match",
    ],
)
def test_an_import_that_points_up_or_across_is_found(code: str) -> None:
    assert faults("models", ast.parse(code))


def test_the_top_level_stays_small() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_public_names_resolve_and_are_listed() -> None:
    for name in opendetr.__all__:
        assert getattr(opendetr, name) is not None
    assert dir(opendetr) == sorted(opendetr.__all__)
