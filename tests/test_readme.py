"""Every shell and Python block of the README runs, in order and in one folder, as a reader would type them.

Installations are not repeated here: their targets are checked against pyproject.toml. The length of a training and the
number of scenes are made small; everything else runs to the letter.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.M | re.S)
# What takes long, and what runs instead.
SMALL = {"--train 2000 --val 300": "--train 24 --val 8", "--time 30m": "--time 5s", 'time="30m"': 'time="5s"'}
INSTALL, TEST = "python -m pip install ", "python -m pytest"


def commands(block: str) -> list[str]:
    return [part.strip() for line in block.splitlines() for part in line.split("&&")]


def small(text: str) -> str:
    for long, short in SMALL.items():
        text = text.replace(long, short)
    return text


def check_installation(command: str) -> None:
    *options, target = shlex.split(command.removeprefix(INSTALL))
    assert options in ([], ["-e"])
    extras = re.fullmatch(r"\.(?:\[(\w+)\])?", target)
    assert extras, f"{command}: installs something else than this project"
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras[1] is None or extras[1] in known


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """With `python` and `opendetr` as an installation would have them."""
    folder = tmp_path_factory.mktemp("bin")
    for name, call in {"python": "", "opendetr": " -m opendetr"}.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{call} "$@"\n')
        path.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(os.name != "posix", reason="the blocks are for a POSIX shell")
def test_every_block_runs(tmp_path, environment):
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    for language, block in BLOCKS:
        if language == "python":
            run([sys.executable, "-c", small(block)], tmp_path, environment)
            continue
        for command in commands(block):
            if command.startswith(INSTALL):
                check_installation(command)
            elif command != TEST:  # the one that runs this
                run(["sh", "-c", small(command)], tmp_path, environment)
    assert (tmp_path / "opendetr-demo" / "index.html").is_file()
    assert (tmp_path / "found" / "predictions.json").is_file()


def test_what_is_made_small_is_in_the_readme():
    for text in SMALL:
        assert text in README


def test_the_map_names_every_room():
    for path in (ROOT / "src" / "opendetr").iterdir():
        if path.name.startswith("_") or path.name in ("assets", "py.typed"):
            continue
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in README, path.name
