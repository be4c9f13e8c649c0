"""Imports go down only: a room imports rooms of lower rows, or of its own package, and nothing else of ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import opendetr

PACKAGE = Path(opendetr.__file__).parent

# Rooms from bottom to top; those of a row do not know each other.
ROWS = (
    "structures categories boxes cache distributed config recipe checkpoint stopping layouts plan averaging recompute",
    "nn events freezing run_state stepping",
    "models losses data evaluation postprocess visualize",
    "tasks weights report observers sources scorer",
    "presets results",
    "predictor trainer export",
    "comparison",
    "training push",
    "bench",
    "cli",
)
ROW_OF = {room: number for number, rooms in enumerate(ROWS) for room in rooms.split()}
# `Detections.plot()` draws itself when it is called.
EXCEPTIONS = {("structures", "visualize")}
# The package's face and `python -m opendetr` stand outside: the one resolves names, the other is one call.
OUTSIDE = {"__init__", "__main__"}
# Rooms at the bottom that others at the bottom stand on.
GROUND = {"structures": {"categories"}, "plan": {"recipe"}}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    """Rooms that a module imports anywhere in it, inside functions and under TYPE_CHECKING too."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they lead"
            names.append(node.module or "")
            if node.module == "opendetr":
                names += [f"opendetr.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names if name.startswith("opendetr.")]
    return {part[1] for part in parts} - {"__version__"}


def faults(room: str, tree: ast.AST) -> list[str]:
    found = []
    for other in sorted(imported_rooms(tree) - {room}):
        allowed = (room, other) in EXCEPTIONS or other in GROUND.get(room, ())
        if not allowed and ROW_OF[other] >= ROW_OF[room]:
            found.append(f"{room} (row {ROW_OF[room]}) imports {other} (row {ROW_OF[other]})")
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in OUTSIDE)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in ROW_OF, f"{room} has no row yet"
    assert faults(room, ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from opendetr.trainer import Trainer",
        "import opendetr.cli.main",
        "def later():\n    from opendetr import presets",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from opendetr.losses.matcher import match",
    ],
)
def test_an_arrow_that_points_up_or_across_is_found(code: str) -> None:
    assert faults("models", ast.parse(code))
