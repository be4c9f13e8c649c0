"""Every fault of `faults.FAULTS` is found where it is, in every format, and told as the table says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from faults import FAULTS, FORMATS, PAGE, DataSet, Fault, renewed
from opendetr.cli.main import app
from opendetr.data.config import DataConfig
from opendetr.data.faults import Effect, FaultKind
from opendetr.data.formats.recognise import open_data
from opendetr.data.masks import require_scorable
from opendetr.data.records import DataError
from opendetr.data.tools.check import DataReport, Demands, check_data
from opendetr.data.tools.fix import write_fixed
from opendetr.data.transforms import evaluation_transform

DEMANDS = Demands(image_size=256, max_size=427, num_queries=50)
CASES = [
    pytest.param(fault, name, id=f"{fault.kind}-{number}-{name}")
    for number, fault in enumerate(FAULTS)
    for name in fault.makers
]


def run(*options: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["data", "check", *map(str, options)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def check(folder: Path) -> DataReport:
    return check_data(folder, DEMANDS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_without_faults_has_no_findings(tmp_path, name):
    DataSet(name, tmp_path).write()
    report = check(tmp_path)
    assert dict(report.faults) == {}
    assert {split: (counts.images, counts.objects) for split, counts in report.counts.items()} == {
        "train": (4, 24),
        "val": (2, 12),
    }
    assert report.counts["train"].classes == {"cat": 12, "dog": 12}
    assert report.counts["train"].sizes == (0, 0, 0, 24, 0)


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_a_fault_is_found_where_it_is(tmp_path, fault: Fault, name):
    folder = tmp_path / "set"
    folder.mkdir()
    place = fault.makers[name](DataSet(name, folder))
    report = check(folder)
    found = [(Path(fault.file), fault.at) for fault in report.faults.get(fault.kind, ())]
    expected = folder if place.file == Path() else place.file
    assert (expected, place.at) in found, report.faults


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_training_does_what_the_check_says(tmp_path, fault: Fault, name):
    folder = tmp_path / "set"
    folder.mkdir()
    fault.makers[name](DataSet(name, folder))
    stopping = check(folder).with_effect(Effect.STOPS)
    assert bool(stopping) == (fault.kind.effect is Effect.STOPS)
    if stopping:
        with pytest.raises(DataError):
            open_data(folder)
    else:
        open_data(folder)


@pytest.mark.parametrize(("fault", "name"), [case for case in CASES if case.values[0].kind.fixable])
def test_a_mended_copy_has_none_of_the_faults_that_can_be_mended(tmp_path, fault: Fault, name):
    folder = tmp_path / "set"
    folder.mkdir()
    fault.makers[name](DataSet(name, folder))
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    write_fixed(check(folder), tmp_path / "copy")
    again = check(tmp_path / "copy")
    assert [kind for kind in again.faults if kind.fixable] == []
    assert not again.with_effect(Effect.STOPS)
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


MAP_CASES = [case for case in CASES if "map" in case.values[0].kind or "segment" in case.values[0].kind]


@pytest.mark.parametrize(("fault", "name"), MAP_CASES)
def test_the_maps_of_a_model_with_masks_are_mended(tmp_path, fault: Fault, name):
    folder = tmp_path / "set"
    folder.mkdir()
    fault.makers[name](DataSet(name, folder))
    demands = replace(DEMANDS, masks="auto")
    report = check_data(folder, demands)
    assert report.splits["train"].masks == "panoptic"
    assert report.counts["val"].classes == {"cat": 6, "dog": 6, "sky": 2}
    assert fault.kind in report.faults
    write_fixed(report, tmp_path / "copy")
    again = check_data(tmp_path / "copy", demands)
    assert again.splits["val"].masks == "panoptic"
    assert [kind for kind in again.faults if kind.fixable] == []
    assert not again.with_effect(Effect.STOPS)
    for split in again.splits.values():
        if FaultKind.UNLISTED_SEGMENT not in again.faults:
            require_scorable(split)


def test_only_a_model_with_masks_stops_at_panoptic_files(tmp_path):
    DataSet("COCO", tmp_path).write()
    (tmp_path / "annotations" / "panoptic_train.json").write_text("{}")
    assert dict(check(tmp_path).faults) == {}
    report = check_data(tmp_path, replace(DEMANDS, masks="auto"))
    assert list(report.with_effect(Effect.STOPS)) == [FaultKind.WRONG_STRUCTURE]


def test_objects_are_as_small_as_the_model_sees_them(tmp_path):
    data = DataSet("COCO", tmp_path)
    data.images[0].things[0] = data.images[0].things[0]._replace(box=(10, 10, 2, 2))
    data.write()
    details = set()
    for multiple in (1, 96):
        config = DataConfig(side_multiple=multiple).resized(256)
        report = check_data(tmp_path, replace(DEMANDS, side_multiple=multiple))
        image = report.splits["train"].images[0]
        height, width = evaluation_transform(config).output_shape(image.height, image.width)
        (fault,) = report.faults[FaultKind.SMALL_OBJECT]
        assert fault.detail == f"2x2 pixels become {2 * width / image.width:.1f}x{2 * height / image.height:.1f}"
        details.add(fault.detail)
    assert len(details) == 2


def test_every_kind_is_in_the_list():
    assert {fault.kind for fault in FAULTS} == set(FaultKind)
    assert len(set(FaultKind)) >= 25


def test_the_table_in_the_docs_is_that_of_this_list():
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "make it anew with `python tests/faults.py`"


# ------------------------------------------------------------------------------------------------------ the command


def test_the_exit_code_says_what_training_does(tmp_path):
    clean = DataSet("COCO", tmp_path / "clean")
    clean.folder.mkdir()
    clean.write()
    code, text, errors = run(clean.folder)
    assert (code, errors) == (0, "")
    assert "training uses every image and object" in text
    (clean.image(1)).write_bytes(b"")
    code, text, errors = run(clean.folder)
    assert (code, errors) == (3, "")
    assert "Training skips\n- 1 image file of zero bytes\n    images/1.png" in text
    clean.image(2).unlink()
    code, text, errors = run(clean.folder)
    assert code == 1
    assert errors == f"error: {clean.folder}: training cannot start: 1 image that cannot be found\n"
    code, text, errors = run(clean.folder, "--fix", tmp_path / "copy")
    assert (code, errors) == (
        0,
        "left out: 1 image that cannot be found, 1 image file of zero bytes\n"
        f"4 images in 2 splits: {tmp_path / 'copy'}\n",
    )
    assert run(tmp_path / "copy")[0] == 0


@pytest.mark.parametrize("kind", FaultKind.allowable())
def test_data_that_are_probably_misread_stop_training(tmp_path, kind):
    fault = next(fault for fault in FAULTS if fault.kind is kind)
    maker = next(iter(fault.makers))
    place = fault.makers[maker](DataSet(maker, tmp_path))
    code, text, errors = run(tmp_path, "--model", "detr-tiny")
    assert (code, errors) == (1, f"error: {tmp_path}: training cannot start: {kind.describe(1)}\n")
    block = next(block for block in text.split("\n\n") if block.startswith("Training stops, unless --allow"))
    assert kind.describe(1) in block and place.at in block and f"--allow {kind}" in block
    assert "training uses every image" not in text


def test_boxes_without_area_alone_stop_training(tmp_path):
    data = DataSet("COCO", tmp_path)
    for drawn in data.images:
        drawn.things = [thing._replace(box=(5, 5, 0, 0)) for thing in drawn.things]
    data.write()
    code, text, errors = run(tmp_path)
    assert code == 1 and errors.endswith("training cannot start: 1 split without any object\n"), errors
    assert "36 boxes without area" in text


def test_what_only_training_with_masks_skips_is_said(tmp_path):
    fault = next(fault for fault in FAULTS if fault.kind is FaultKind.INVALID_OUTLINE)
    place = fault.makers["COCO"](DataSet("COCO", tmp_path))
    code, text, _ = run(tmp_path)
    assert code == 3
    assert "Training skips\n- 1 outline that cannot be drawn, skipped by training with masks\n" in text
    assert f"    images/{place.file.name}, annotation 3: a polygon of 2 points; expected 3 or more" in text


def test_json_names_every_place(tmp_path):
    data = DataSet("VOC", tmp_path)
    data.images[0].things = [thing._replace(box=(4, 5, 0, 3)) for thing in data.images[0].things]
    data.write()
    code, text, _ = run(tmp_path, "--json", "--image-size", 512, "--model", "detr-r50")
    record = json.loads(text)
    assert code == 3
    (without_area,) = [entry for entry in record["faults"] if entry["kind"] == "no_area"]
    assert without_area["count"] == 6
    assert without_area["effect"] == "skips"
    assert without_area["fixable"] is True
    assert [place["at"] for place in without_area["places"]] == [f"object {number}" for number in range(1, 7)]
    assert record["splits"]["train"]["images"] == 4
    assert sum(record["splits"]["train"]["sizes"].values()) == 18


def test_without_images_only_the_annotations_are_read(tmp_path):
    data = DataSet("COCO", tmp_path)
    data.write()
    data.image(1).write_bytes(b"no image")
    assert run(tmp_path, "--no-images")[0] == 0
    assert run(tmp_path)[0] == 3
    code, _, errors = run(tmp_path, "--no-images", "--fix", tmp_path / "copy")
    assert code == 2
    assert "--fix reads the images" in errors


def test_a_copy_is_never_written_over_something(tmp_path):
    DataSet("COCO", tmp_path / "set").folder.mkdir()
    DataSet("COCO", tmp_path / "set").write()
    for place in (tmp_path / "set", tmp_path / "file"):
        (tmp_path / "file").write_text("mine")
        code, _, errors = run(tmp_path / "set", "--fix", place)
        assert code == 1
        assert errors == f"error: {place}: exists and is not an empty folder; choose a new folder\n"
    assert (tmp_path / "file").read_text() == "mine"


def test_names_from_files_cannot_write_to_the_terminal(tmp_path):
    data = DataSet("COCO", tmp_path, classes=["cat", "dog", "\x1b[31m\ud800"])
    data.write()
    code, text, _ = run(tmp_path)
    assert code == 0
    assert r"class '\x1b[31m\ud800'" in text


def test_many_boxes_in_one_image_are_compared_in_little_memory(tmp_path):
    data = DataSet("COCO", tmp_path)
    boxes = [(n % 60, n // 60, 4 + n % 7, 3 + n % 5) for n in range(3000)]
    data.images[0].things = [data.images[0].things[0]._replace(box=box) for box in [*boxes, boxes[7], boxes[2000]]]
    data.write()
    repeated = check(tmp_path).faults[FaultKind.REPEATED_BOX]
    assert [(fault.at, fault.detail) for fault in repeated] == [
        ("annotation 3001", "same box as annotation 8"),
        ("annotation 3002", "same box as annotation 2001"),
    ]
