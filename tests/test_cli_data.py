"""`opendetr data convert`, `show` and `split`: what they print and write, and their exit codes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from folders import write_voc_folder
from opendetr.cli.main import app
from opendetr.data.formats.recognise import read_splits


def opendetr(*options: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(option) for option in options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def failure(*options: Any) -> str:
    (line,) = opendetr(*options, code=1).stderr.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    return line


@pytest.fixture
def voc(tmp_path):
    return write_voc_folder(tmp_path / "voc", num_images=10)


def test_convert(voc, tmp_path):
    out = tmp_path / "yolo"
    result = opendetr("data", "convert", voc, out, "--to", "yolo")
    assert result.stdout.splitlines() == [
        "split  class  images  objects",
        "all    ant    5       5",
        "all    zebra  5       5",
        "10 difficult flags kept in opendetr.json, which other programs do not read",
        str(out),
    ]
    assert result.stderr == "all: 10 images, 10 objects, 2 classes\n"
    back = json.loads(opendetr("data", "convert", out, tmp_path / "back", "--to", "voc", "--link", "--json").stdout)
    assert back["format"] == "voc"
    assert back["classes"][0] == {"split": "all", "class": "ant", "images": 5, "objects": 5}
    assert [i.objects for i in read_splits(tmp_path / "back")["all"].images] == [
        i.objects for i in read_splits(voc)["all"].images
    ]
    assert "not an empty folder; choose a new folder" in failure("data", "convert", voc, out, "--to", "coco")
    assert "no such folder" in failure("data", "convert", tmp_path / "nowhere", tmp_path / "x", "--to", "coco")
    opendetr("data", "convert", voc, tmp_path / "x", "--to", "csv", code=2)
    assert not (tmp_path / "x").exists()


def test_images_that_are_lost_are_told_by_the_exit_code(voc, tmp_path):
    (voc / "JPEGImages" / "image_3.jpg").write_bytes(b"")
    result = opendetr("data", "convert", voc, tmp_path / "coco", "--to", "coco", code=3)
    assert "1 image file of zero bytes, skipped" in result.stderr
    assert len(read_splits(tmp_path / "coco")["all"]) == 9


def test_split(voc, tmp_path):
    result = opendetr("data", "split", voc, tmp_path / "parts", "--fractions", "train=0.6,val=0.4", "--seed", 3)
    assert result.stdout.splitlines()[1:5] == [
        "train  ant    3       3",
        "train  zebra  3       3",
        "val    ant    2       2",
        "val    zebra  2       2",
    ]
    first = {name: [i.path.name for i in data.images] for name, data in read_splits(tmp_path / "parts").items()}
    opendetr("data", "split", voc, tmp_path / "again", "--fractions", "train=0.6,val=0.4", "--seed", 3, "--link")
    opendetr("data", "split", voc, tmp_path / "other", "--fractions", "train=0.6,val=0.4", "--seed", 4)
    parts = [read_splits(tmp_path / name) for name in ("again", "other")]
    again, other = ({name: [i.path.name for i in data.images] for name, data in part.items()} for part in parts)
    assert again == first != other
    result = opendetr("data", "split", voc, tmp_path / "x", "--fractions", "a=0.6,b=0.6", code=2)
    assert "the fractions add up to 1.2" in result.stderr
    for wrong in ("train", "train=x", "train=0.5,train=0.5", ""):
        opendetr("data", "split", voc, tmp_path / "x", "--fractions", wrong, code=2)
    assert not (tmp_path / "x").exists()


def test_show(voc, tmp_path):
    out = tmp_path / "sheets" / "a.png"
    assert opendetr("data", "show", voc, "--out", out, "--images", 4).stdout == f"4 images: {out}\n"
    first = out.read_bytes()
    assert Image.open(out).width == pytest.approx(2 * 480, abs=60)
    opendetr("data", "show", voc, "--out", out, "--images", 4)
    assert out.read_bytes() == first
    record = json.loads(opendetr("data", "show", voc, "--out", out, "--images", 4, "--seed", 1, "--json").stdout)
    assert record == {"out": str(out), "split": "all", "images": 4, "failed": []}
    assert out.read_bytes() != first
    assert [path.name for path in out.parent.iterdir()] == ["a.png"]
    assert (
        "no split 'night'; it has all" in opendetr("data", "show", voc, "--split", "night", "--out", out, code=2).stderr
    )
    opendetr("data", "show", voc, "--out", "sheet.txt", code=2)


def test_show_draws_masks_where_there_are_some(tmp_path):
    scenes = tmp_path / "scenes"
    opendetr("data", "make", scenes, "--train", 2, "--val", 1, "--size", 64)
    show = ("data", "show", scenes, "--images", 2, "--out")
    opendetr(*show, tmp_path / "outlines.png")
    for path in (scenes / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        for row in content["annotations"]:
            del row["segmentation"]
        path.write_text(json.dumps(content))
    opendetr(*show, tmp_path / "boxes.png")
    for path in (scenes / "annotations").glob("instances_*.json"):
        path.unlink()
    opendetr(*show, tmp_path / "maps.png")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("outlines", "boxes", "maps")}) == 3


def test_show_passes_over_what_cannot_be_read(voc, tmp_path):
    for index in range(9):
        (voc / "JPEGImages" / f"image_{index}.jpg").write_bytes(b"no image")
    result = opendetr("data", "show", voc, "--out", tmp_path / "a.png", code=3)
    assert result.stdout == f"1 image: {tmp_path / 'a.png'}\n"
    assert result.stderr.count("skipped: ") == 9
    (voc / "JPEGImages" / "image_9.jpg").write_bytes(b"no image")
    assert "no image that can be shown" in failure("data", "show", voc, "--out", tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
