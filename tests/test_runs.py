"""The commands that the pages and the scripts in `runs/` show are ones that the scripts take."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from markdown_blocks import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "runs").glob("*.py")))
# A command has arguments; a script that is only named has none.
COMMAND = re.compile(r"runs/(?P<script>\w+\.py)(?P<arguments>(?: [\w./-]+)+)")


def shown_commands() -> list[tuple[str, str]]:
    """Script and arguments of every command."""
    found = [match for page in PAGES for match in COMMAND.finditer(page.read_text(encoding="utf-8"))]
    return sorted({(match["script"], match["arguments"].strip()) for match in found if "--" in match["arguments"]})


class ParsedError(Exception):
    """The arguments were fine."""


@pytest.mark.parametrize(("script", "arguments"), shown_commands())
def test_a_command_that_is_shown_is_taken(monkeypatch, script, arguments):
    depth = 0

    def alone(parse):
        def parse_alone(*given, **named):
            nonlocal depth
            depth += 1
            result = parse(*given, **named)
            depth -= 1
            if depth == 0:  # the call of the script, which also calls the other function and parses subcommands
                raise ParsedError
            return result

        return parse_alone

    for name in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, alone(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(sys, "argv", [script, *shlex.split(arguments)])
    with pytest.raises(ParsedError):
        runpy.run_path(str(ROOT / "runs" / script), run_name="__main__")


def test_the_pages_show_commands():
    assert len(shown_commands()) > 8


def test_masks_are_found_in_the_folder_of_all_annotations(tmp_path):
    of_kind = runpy.run_path(str(ROOT / "runs" / "overfit_masks.py"))["data_of_kind"]
    assert of_kind(tmp_path, "panoptic") == tmp_path
    (tmp_path / "panoptic_segmentation").mkdir()
    assert of_kind(tmp_path, "panoptic") == tmp_path / "panoptic_segmentation"
    assert of_kind(Path("elsewhere"), "instances") == Path("elsewhere")


def test_label_efficiency_compares_the_seeds_that_both_kinds_of_weights_have(tmp_path, capsys):
    show = runpy.run_path(str(ROOT / "runs" / "up_detr_label_efficiency.py"))["show"]
    found = {("random", 0): 0.2, ("random", 1): 0.4, ("pre-trained", 0): 0.3}
    for (start, seed), ap in found.items():
        row = {"data": "bccd", "percent": 10, "images": 29, "start": start, "seed": seed, "AP": ap}
        (tmp_path / f"{start}-{seed}.json").write_text(json.dumps(row))
    show(tmp_path, tmp_path / "curve.png")
    assert "| 10 % | 29 | 0.300 (0.200, 0.400) | 0.300 (0.300) | +0.100 |" in capsys.readouterr().out
    assert (tmp_path / "curve.png").is_file()
