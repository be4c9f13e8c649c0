"""Sixty wrong inputs: the one line that each of them ends with, its exit code, and no traceback."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from folders import coco_content, write_coco_folder, write_image
from opendetr.cli.main import app

SMALL = [
    *("--batch-size", "2", "--image-size", "64", "--workers", "0", "--device", "cpu", "--weights", "none"),
    *("--set", "model.transformer={width: 32, num_heads: 4, ffn_width: 32, encoder_layers: 1, decoder_layers: 1}"),
    *("--set", "model.num_queries=5", "--set", "recipe.num_evaluations=1", "--max-steps", "1"),
]
# Arguments, separated by blanks; the exit code; the last line on standard error, without "Error: " before it.
CASES = """
""".strip().split("\n\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a dataset, a run that has ended, and files that are no weights."""
    folder = tmp_path_factory.mktemp("place")
    write_coco_folder(folder / "my-data", {"train": coco_content(), "val": coco_content(2, first_id=9)})
    crowd = coco_content()
    for row in crowd["annotations"]:
        row["iscrowd"] = 1
    write_coco_folder(folder / "crowd", {"train": crowd, "val": coco_content(2, first_id=9)})
    write_image(folder / "image.jpg")
    torch.save({"a.weight": torch.zeros(3)}, folder / "odd.pth")
    (folder / "page.pth").write_text("<!doctype html>")
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "empty").mkdir()
    result = invoke(folder, ["train", "my-data", "--out", "runs/mine", *SMALL])
    assert result.exit_code == 0, result.output
    for name in ("runs/other", "runs/copy"):
        (folder / name).mkdir()
        for file in ("config.yaml", "best"):
            (folder / name / file).symlink_to(folder / "runs" / "mine" / file)
    return folder


def invoke(folder: Path, arguments: list[str]) -> Any:
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, arguments)
