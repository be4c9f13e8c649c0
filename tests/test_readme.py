"""Every shell and Python block of the README runs, in order and in one folder, as a reader would type them.

Installations are not repeated here: their targets are checked against pyproject.toml. The length of a training and the
number of scenes are made small; everything else runs to the letter.
"""

from __future__ import annotations

import os
import re
import sys

import pytest

from markdown_blocks import INSTALL, ROOT, TEST, check_installation, environment_with_programs, read_blocks, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
# What takes long, and what runs instead.
SMALL = {"--train 2000 --val 300": "--train 24 --val 8", "--time 30m": "--time 5s"}


def small(text: str) -> str:
    for long, short in SMALL.items():
        text = text.replace(long, short)
    return text


@pytest.mark.slow  # the demo draws 300 scenes
@pytest.mark.skipif(os.name != "posix", reason="the blocks are for a POSIX shell")
def test_every_block_runs(tmp_path, tmp_path_factory):
    environment = environment_with_programs(tmp_path_factory.mktemp("bin"))
    blocks = read_blocks(README)
    assert {block.language for block in blocks} == {"bash", "python"}
    for block in blocks:
        if block.language == "python":
            run([sys.executable, "-c", small(block.text)], tmp_path, environment)
            continue
        for command in block.commands():
            if command.startswith(INSTALL):
                check_installation(command)
            elif command != TEST:  # the one that runs this
                run(["sh", "-c", small(command)], tmp_path, environment)
    assert (tmp_path / "opendetr-demo" / "index.html").is_file()
    assert (tmp_path / "predictions" / "predictions.json").is_file()


def test_what_is_made_small_is_in_the_readme():
    for text in SMALL:
        assert text in README


def test_the_file_map_names_every_entry():
    for path in (ROOT / "src" / "opendetr").iterdir():
        if path.name.startswith("_") or path.name in ("assets", "py.typed"):
            continue
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in README, path.name


@pytest.mark.parametrize("file", ["README.md", "Makefile", ".ci/run"])
def test_the_test_command_is_the_same_everywhere(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    commands = {f"python {command}" for command in re.findall(r"-m pytest\b[^`\n]*", text)}
    assert TEST in commands
    assert commands <= {TEST, f"{TEST} -m slow"}
