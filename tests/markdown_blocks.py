"""Blocks of a Markdown page, and how they run: as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
INSTALL = "python -m pip install "
CPU_INSTALL = f"{INSTALL}torch torchvision --index-url https://download.pytorch.org/whl/cpu"
TEST = "python -m pytest -n 2"
_BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.M | re.S)
_PROGRAMS = {"python": "", "opendetr": " -m opendetr", "torchrun": " -m torch.distributed.run"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: behind the opening fence.
        title: the file whose content the block is, or "".
        text: what stands between the fences.
    """

    language: str
    title: str
    text: str

    def commands(self) -> list[str]:
        """The commands of a shell block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


def read_blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = [Block(*block) for block in _BLOCK.findall(page)]
    assert 2 * len(found) == page.count("```"), "a fence that is not at the start of a line, or is not closed"
    return found


def check_installation(command: str) -> None:
    """An installation is not repeated: its target is looked up in pyproject.toml."""
    if command == CPU_INSTALL:
        return
    *options, target = shlex.split(command.removeprefix(INSTALL))
    assert options in ([], ["-e"])
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", target)
    assert extras, f"{command}: installs something else than this project"
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set((extras[1] or "dev").split(",")) <= known.keys()


def environment_with_programs(folder: Path) -> dict[str, str]:
    """With `python`, `opendetr` and `torchrun` as an installation would have them, in `folder`."""
    for name, call in _PROGRAMS.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{call} "$@"\n')
        path.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run(command: list[str], folder: Path, environment: dict[str, str], *, code: int = 0) -> None:
    """Run a command in `folder`, which has to end with this exit code."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
