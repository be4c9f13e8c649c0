"""Imports go down only: a module imports from lower rows, or from its own package, and from nothing else of ours."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import opendetr
from opendetr.weights.family import families

PACKAGE = Path(opendetr.__file__).parent

# Rows from bottom to top; modules and packages of one row do not import each other.
ROWS = (
    "boxes categories config distributed files recipe version",
    "structures scoring network",
    "nn data visualize",
    "models synthetic results",
    "postprocess losses",
    "tasks weights evaluation",
    "presets",
    "export",
    "inference",
    "training",
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


def listed(package: str) -> set[str]:
    """The names in `__all__` of a package, such as "data/formats"."""
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    values = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return {name for value in values for name in ast.literal_eval(value)}


def imports_past_init(entry: str, tree: ast.AST) -> list[str]:
    """Imports from another package that do not go through its `__init__`, or name what it does not list."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [
                f"import {alias.name}: import names from the package"
                for alias in node.names
                if alias.name.startswith("opendetr.") and alias.name.split(".")[1] != entry
            ]
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("opendetr."):
            continue
        place = (node.module or "").removeprefix("opendetr.").replace(".", "/")
        if place.split("/")[0] == entry or ((PACKAGE / f"{place}.py").is_file() and "/" not in place):
            continue
        if (PACKAGE / place).is_dir():
            names = listed(place)
            found += [f"{node.module} does not list {alias.name}" for alias in node.names if alias.name not in names]
        else:
            found.append(f"{node.module}: import from the package")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_other_packages_are_imported_by_their_public_names(path: Path) -> None:
    assert imports_past_init(entry_of(path), ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", ["members.py", "member_presets.py"])
def test_the_miniature_members_use_public_names(name: str) -> None:
    path = Path(__file__).parent / name
    assert imports_past_init("tests", ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from opendetr.data.loader import train_loader",
        "from opendetr.data import LoaderProcess",
        "def later():\n    from opendetr.data.tools.check import check_data",
        "from opendetr.data.tools import an_unlisted_name",
        "import opendetr.data.loader",
        "import opendetr.data.loader as loader",
    ],
)
def test_an_import_past_the_public_names_is_found(code: str) -> None:
    assert imports_past_init("training", ast.parse(code))


PACKAGES = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*/__init__.py")}


@pytest.mark.parametrize("package", sorted(PACKAGES - {"cli"}))  # nothing imports from the command line
def test_listed_names_exist(package: str) -> None:
    module = import_module(f"opendetr.{package.replace('/', '.')}")
    names = listed(package)
    assert names, "lists nothing"
    assert [name for name in names if not hasattr(module, name)] == []


def test_the_top_level_stays_small() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_public_names_resolve_and_are_listed() -> None:
    for name in opendetr.__all__:
        assert getattr(opendetr, name) is not None
    assert dir(opendetr) == sorted(opendetr.__all__)


# ------------------------------------------------------------------------------------------------- no special cases

# Where a member may be told from others: its own files.
OF_MEMBERS = ("models", "presets")
OF_FAMILIES = ("conditional", "deformable", "detr", "masks", "mdetr", "motr", "transtrack", "up_detr")  # of weights/
MAY_NAME_MODELS = ("bench", "cli")  # in help texts and benchmarks
# An augmentation has this name.
OTHER_USES = {path: {"detr"} for path in ("data/augmentation.py", "data/captions.py", "data/patches.py")}
SUFFIXES = {"-panoptic", "-dc5", "-tiny", "-masks", "-two-stage", "-refine"}  # of names in the catalogue


def model_classes() -> set[str]:
    """The names of all classes in `models/`, but for the base class."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (PACKAGE / "models").glob("*.py")]
    classes = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return classes - {"Detector"}


@cache
def output_fields() -> set[str]:
    """The fields that the outputs of single members have in addition."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (PACKAGE / "models").glob("*.py")]
    outputs = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Output") for base in node.bases)
    ]
    return {ast.unparse(part.target) for node in outputs for part in node.body if isinstance(part, ast.AnnAssign)}


def member_names() -> set[str]:
    """The names of all models and families, and the words of the families' names, such as "deformable"."""
    of_families = {family.name for family in families()}
    words = {word for name in of_families for word in name.split("-")} - {"masks"}  # data and losses have masks, too
    return {*opendetr.list_models(), *of_families, *words}


def special_cases(tree: ast.AST, classes: set[str], names: set[str]) -> list[str]:
    """Where code tells members apart: by the class of a model or its config, by a name, or by a field of an output."""
    found, further = [], output_fields()
    for node in ast.walk(tree):
        asked = parts_that_ask(node)
        if isinstance(node, ast.Call) and called_name(node) in ("hasattr", "getattr"):
            field = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            found += [f"line {node.lineno}: the field {field}"] if field in further else []
        parts = [each for part in asked for each in ast.walk(part)]
        used = {each.id for each in parts if isinstance(each, ast.Name)}
        used |= {each.attr for each in parts if isinstance(each, ast.Attribute)}
        constants = {each.value for each in parts if isinstance(each, ast.Constant)}
        found += [f"line {asked[0].lineno}: the class {name}" for name in sorted((used | constants) & classes)]
        found += [f"line {asked[0].lineno}: the name {name}" for name in sorted(constants & (names | SUFFIXES))]
    return found


def called_name(node: ast.Call) -> str:
    """The last name of what is called: "isinstance", or "startswith" of a string's method."""
    function = node.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def parts_that_ask(node: ast.AST) -> list[ast.expr]:
    """The expressions by which a node can tell things apart: a question, a comparison, a case, a table."""
    if isinstance(node, ast.Compare):
        return [node]
    if isinstance(node, ast.Dict):
        return [key for key in node.keys if isinstance(key, ast.Name | ast.Attribute | ast.Constant)]
    if isinstance(node, ast.MatchClass):
        return [node.cls]
    if isinstance(node, ast.MatchValue):
        return [node.value]
    if isinstance(node, ast.Call):
        called = called_name(node)
        return [node] if called in ("isinstance", "issubclass") or called.endswith(("with", "suffix", "prefix")) else []
    return []


def shared_modules() -> list[Path]:
    def is_of_a_member(path: Path) -> bool:
        entry = entry_of(path)
        return entry in OF_MEMBERS or (entry == "weights" and path.stem in OF_FAMILIES)

    return [path for path in MODULES if not is_of_a_member(path)]


def test_shared_code_does_not_ask_which_member_it_handles() -> None:
    names, classes = member_names(), model_classes()
    found = {
        name: cases
        for path in shared_modules()
        if (name := path.relative_to(PACKAGE).as_posix())
        and (
            cases := special_cases(
                ast.parse(path.read_text(encoding="utf-8")),
                classes,
                set() if entry_of(path) in MAY_NAME_MODELS else names - OTHER_USES.get(name, set()),
            )
        )
    }
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(model, MaskedDetector)",
        "assert isinstance(preset.model, (int, TwoStageDETRConfig))",
        "if model.family == 'deformable-detr': pass",
        "x = name in ('detr-r50', 'b')",
        "name.removesuffix('-panoptic')",
        "isinstance(model, masks.MaskedDetector)",
        "type(config) is TwoStageDETRConfig",
        "tasks = {TwoStageDETRConfig: TwoStageTask}",
        "match config:\n    case TwoStageDETRConfig():\n        pass",
        "'-panoptic' in name",
        "'deformable' in model.family",
        "family.split('-')[0] == 'deformable'",
        "{'detr-r50': 1}[name]",
        "type(m).__name__ == 'DETR'",
        "hasattr(output, 'proposals')",
        "getattr(output, 'proposals', None)",
    ],
)
def test_a_special_case_is_found(code: str) -> None:
    assert special_cases(ast.parse(code), model_classes(), member_names())
