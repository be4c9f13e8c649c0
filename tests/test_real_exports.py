"""Datasets as annotation tools and scripts write them: what is understood, what stops training, and what never does."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from faults import COCO, HEIGHT, VOC, WIDTH, YOLO, DataSet, Thing
from folders import make_image, one_line
from opendetr.categories import Categories, paired_labels
from opendetr.data import DataError, FaultKind, open_data
from opendetr.data.formats.spellings import rotated_box
from opendetr.data.sizes import ImageSizes
from opendetr.data.tools import Demands, check_data
from opendetr.evaluation import class_differences
from opendetr.presets import get_preset
from opendetr.synthetic import write_scenes
from opendetr.training.data_check import check_annotations

DEMANDS = Demands(image_size=256, max_size=427, num_queries=50)
REAL_DATA = Path(os.environ.get("OPENDETR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
# Kinds that describe doubts about what annotations mean; a correct dataset has none of them.
DOUBTS = {
    *FaultKind.allowable(),
    FaultKind.SIZE_MISMATCH,
    FaultKind.SWAPPED_SIZE,
    FaultKind.NEW_ID,
    FaultKind.NO_BOX,
    FaultKind.ROTATED_BOX,
    FaultKind.CONFIDENCE,
}


def check(folder: Path, name: str = "deformable-detr-tiny", **changes: Any) -> list[str]:
    """The lines of a run about its annotations. Raises DataError if they stop it."""
    preset = get_preset(name)
    preset = replace(preset, data=replace(preset.data, **changes))
    return check_annotations(preset, folder, preset.data.open_splits(folder))


def coco(folder: Path, change: Any, images: tuple[tuple[int, int], ...] = ((HEIGHT, WIDTH),) * 6) -> Path:
    """A COCO folder with one split. `change` gets its content, in which each image has three boxes."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    folder.mkdir()
    for index, (height, width) in enumerate(images):
        Image.fromarray(make_image(height, width, index)).save(folder / f"shot {index}.png")
        content["images"].append({"id": index, "file_name": f"shot {index}.png", "height": height, "width": width})
        for number in range(3):
            box = [8 + 28 * number, 50 - 20 * number + index, 24, 18 + number]
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": index, "category_id": 1, "bbox": box, "iscrowd": 0}
            )
    change(content)
    (folder / "export.json").write_text(json.dumps(content))
    return folder


def boxes(folder: Path) -> list[tuple[float, ...]]:
    """All boxes of a dataset with one split, in the order of their images."""
    data = check_data(folder, DEMANDS, read_images=False).splits
    return [obj.box for part in data.values() for image in part.images for obj in image.objects]


# ------------------------------------------------------------------------------------------------- spellings of COCO


def each(key: str, change: Any) -> Any:
    """A change of every annotation: its field `key` becomes `change(value)`."""

    def apply(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            row[key] = change(row.get(key))

    return apply


def _names_as_ids(content: dict[str, Any]) -> None:
    for row in content["images"]:
        row["id"] = f"img{row['id']}"
    for row in content["annotations"]:
        row["image_id"], row["id"] = f"img{row['image_id']}", {"$oid": f"5f{row['id']:x}"}


def _outline(box: list[float]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _outlined(form: Any) -> Any:
    def apply(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            row["segmentation"] = form(_outline(row.pop("bbox")))

    return apply


SPELLINGS = {
    "texts": each("bbox", lambda box: [str(side) for side in box]),
    "one text": each("bbox", str),
    "named": each("bbox", lambda box: dict(zip(("X", "y", "Width", "height"), box, strict=True))),
    "named corners": each(
        "bbox", lambda box: {"xmin": box[0], "ymin": box[1], "xmax": box[0] + box[2], "ymax": str(box[1] + box[3])}
    ),
    "four corners": each("bbox", _outline),
    "text ids": lambda content: [each(key, str)(content) for key in ("id", "image_id", "category_id")],
    "names as ids": _names_as_ids,
    "UUIDs": each("id", lambda number: f"{number:08}-0000-4000-8000-000000000000"),
    "no ids": each("id", lambda _: None),
    "polygon": _outlined(lambda points: [points]),
    "flat polygon": _outlined(lambda points: points),
    "points": _outlined(lambda points: [[points[start : start + 2] for start in (0, 2, 4, 6)]]),
    "points of texts": _outlined(lambda points: [[str(value) for value in points]]),
    "Detectron2": lambda content: [
        each("bbox", lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]])(content),
        each("bbox_mode", lambda _: 0)(content),
    ],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_coco_have_the_same_boxes(tmp_path, spelling):
    plain = coco(tmp_path / "plain", lambda content: None)
    other = coco(tmp_path / "other", SPELLINGS[spelling])
    assert boxes(other) == boxes(plain)
    faults = check_data(other, DEMANDS).faults.keys()
    assert faults <= {FaultKind.NEW_ID, FaultKind.NO_BOX}
    assert (FaultKind.NEW_ID in faults) == (spelling in ("names as ids", "UUIDs"))
    assert (FaultKind.NO_BOX in faults) == ("po" in spelling)
    if "po" in spelling:
        assert open_data(other, masks="instances")["train"].num_objects == 15
    check(other)


@pytest.mark.parametrize("value", [[1, 2, 3, 4, 0.5], {"cx": 5, "cy": 5}, ["x", 1, 2, 3], [1, 2, 3], "1,2,three,4"])
def test_other_boxes_are_refused_by_name(tmp_path, value):
    folder = coco(tmp_path / "set", lambda content: content["annotations"][4].update(bbox=value))
    with pytest.raises(DataError, match=r"annotations\[4\] \(id 4\): 'bbox'") as error:
        open_data(folder)
    assert ("angle" in one_line(error.value)) == (isinstance(value, list) and len(value) == 5)


def test_a_relative_box_mode_is_refused(tmp_path):
    folder = coco(tmp_path / "set", each("bbox_mode", lambda _: 2))
    with pytest.raises(DataError, match="'bbox_mode' is 2"):
        open_data(folder)


# ------------------------------------------------------------------------------------------------------ rotated boxes


def test_a_rotated_box_is_the_box_around_it(tmp_path):
    def turn(content: dict[str, Any]) -> None:
        for row, degrees in zip(content["annotations"], (45, 0.0, "90", 180.0), strict=False):
            row.update(bbox=[18, 42, 60, 12], attributes={"occluded": False, "Rotation": degrees})

    folder = coco(tmp_path / "set", turn)
    side = 72 / math.sqrt(2)
    expected = [(48 - side / 2, 48 - side / 2, side, side), (18, 42, 60, 12), (42, 18, 12, 60), (18, 42, 60, 12)]
    assert boxes(folder)[:4] == [pytest.approx(box, abs=1e-5) for box in expected]
    assert len(check_data(folder, DEMANDS).faults[FaultKind.ROTATED_BOX]) == 2
    check(folder)


def test_voc_has_rotated_boxes_too(tmp_path):
    data = DataSet(VOC, tmp_path)
    data.write()
    path = data.annotations(0)
    turned = (
        "<object><name>cat</name><robndbox><cx>48</cx><cy>48</cy><w>60</w><h>12</h><angle>0.785398</angle></robndbox>"
    )
    path.write_text(path.read_text().replace("</annotation>", f"{turned}</object></annotation>"))
    image = open_data(tmp_path)["train"].images[0]
    assert image.objects[-1].box == pytest.approx(rotated_box((18, 42, 60, 12), 45), abs=1e-3)


def test_an_outline_that_fits_its_box_is_not_rotated_again(tmp_path):
    def turn(content: dict[str, Any]) -> None:
        for row in content["annotations"]:
            row.update(segmentation=[_outline(row["bbox"])], attributes={"rotation": 30})

    assert boxes(coco(tmp_path / "set", turn)) == boxes(coco(tmp_path / "plain", lambda content: None))


# ------------------------------------------------------------------------------------------------------ YOLO's rows


def _yolo(folder: Path, extend: Any, description: str = "") -> DataSet:
    data = DataSet(YOLO, folder)
    folder.mkdir()
    data.write()
    for path in sorted((folder / "labels").rglob("*.txt")):
        rows = [extend(*map(float, line.split())) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{row}\n" for row in rows))
    with (folder / "data.yaml").open("a") as file:
        file.write(description)
    return data


def _pose(size: int) -> Any:
    """A row of a box and five keypoints of `size` numbers."""

    def extend(label: float, cx: float, cy: float, w: float, h: float) -> str:
        corners = [(cx + a * w / 4, cy + b * h / 4) for a in (-1, 1) for b in (-1, 1)]
        points = [(x, y, number % 3)[:size] for number, (x, y) in enumerate([*corners, (cx, cy)])]
        return " ".join(map(str, (int(label), cx, cy, w, h, *(value for point in points for value in point))))

    return extend


@pytest.mark.parametrize("size", [2, 3])
def test_keypoints_follow_a_box(tmp_path, size):
    plain = _yolo(tmp_path / "plain", lambda label, *box: " ".join(map(str, (int(label), *box))))
    stated = _yolo(tmp_path / "stated", _pose(size), f"kpt_shape: [5, {size}]\n")
    guessed = _yolo(tmp_path / "guessed", _pose(size))
    assert boxes(stated.folder) == boxes(guessed.folder) == boxes(plain.folder)
    check(stated.folder)
    with pytest.raises(DataError, match=r"perhaps a box and 5 keypoints.*--allow extra_numbers"):
        check(guessed.folder)
    assert any("allowed" in line for line in check(guessed.folder, allow=("extra_numbers",)))


def test_a_tracker_writes_two_numbers_more(tmp_path):
    numbers = iter(range(1000))
    data = _yolo(tmp_path / "set", lambda label, *box: " ".join(map(str, (int(label), *box, 0.9, next(numbers)))))
    with pytest.raises(DataError, match=r"a confidence and the number of a track"):
        check(data.folder)


@pytest.mark.parametrize("corners", [3, 4, 5, 7])
def test_polygons_of_one_length_are_polygons(tmp_path, corners):
    def extend(label: float, cx: float, cy: float, w: float, h: float) -> str:
        turns = [2 * math.pi * (corner + 0.3) / corners for corner in range(corners)]
        points = [(cx + w / 2 * math.cos(turn), cy + h / 2 * math.sin(turn)) for turn in turns]
        return " ".join(map(str, (int(label), *(value for point in points for value in point))))

    folder = _yolo(tmp_path / "set", extend).folder
    check(folder)
    report = check_data(folder, DEMANDS)
    assert (FaultKind.ROTATED_BOX in report.faults) == (corners == 4)
    assert all(obj.segmentation for image in report.splits["train"].images for obj in image.objects)


# ------------------------------------------------------------------------------------------------- sizes of the images


def test_swapped_sides_are_those_of_the_file(tmp_path):
    def swap(content: dict[str, Any]) -> None:
        for row in content["images"][1:3]:
            row["width"], row["height"] = row["height"], row["width"]
        content["annotations"][5]["bbox"] = [100, 10, 20, 30]  # of the second image
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 2]

    folder = coco(tmp_path / "set", swap)
    assert {(image.height, image.width) for image in open_data(folder)["train"].images} == {(HEIGHT, WIDTH)}
    assert len(check_data(folder, DEMANDS).faults[FaultKind.SWAPPED_SIZE]) == 2
    check(folder)


def test_boxes_of_another_frame_stop_training(tmp_path):
    def turn(content: dict[str, Any]) -> None:
        content["images"][1].update(width=HEIGHT, height=WIDTH)
        content["annotations"][4]["bbox"] = [10, 100, 20, 20]  # fits into the annotated size only

    with pytest.raises(DataError, match="the image is 128x96, its annotation says 96x128"):
        open_data(coco(tmp_path / "set", turn))


def test_exif_explains_swapped_sides(tmp_path):
    folder = coco(tmp_path / "set", lambda content: content["images"][0].update(file_name="turned.jpg"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(WIDTH, HEIGHT, 1)).save(folder / "turned.jpg", exif=exif)
    (folder / "shot 0.png").unlink()
    assert not check_data(folder, DEMANDS).faults.keys() & DOUBTS


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_header_gives_the_size_that_pillow_gives(tmp_path, suffix, orientation):
    path = tmp_path / f"image{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if suffix in (".bmp", ".gif") else {"exif": exif}
    if suffix == ".jpg":
        options["icc_profile"] = b"p" * 200_000  # several long segments before the size
    Image.fromarray(make_image(40, 60)).save(path, **options)
    is_turned = orientation == 6 and bool(options)
    sizes = ImageSizes(tmp_path)
    sizes.prefetch([path, tmp_path / "missing.png", tmp_path])
    assert sizes.stored(path) == (40, 60)
    assert sizes.oriented(path) == ((60, 40) if is_turned else (40, 60))


def test_sizes_are_cached_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("opendetr.data.sizes._FEWEST_CACHED", 2)
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path in paths:
        Image.fromarray(make_image(20, 30)).save(path)
    first = ImageSizes(tmp_path)
    first.prefetch(paths)
    first.save()
    Image.fromarray(make_image(50, 30)).save(paths[1])
    opened: list[Any] = []
    original = os.open
    monkeypatch.setattr("os.open", lambda path, *rest: opened.append(path) or original(path, *rest))
    second = ImageSizes(tmp_path)
    second.prefetch(paths)
    assert opened == [paths[1]]
    assert [second.stored(path) for path in paths] == [(20, 30), (50, 30), (20, 30), (20, 30)]
    (cache,) = (tmp_path / "cache" / "image-sizes").iterdir()
    for content in (b"", b"[]", b'{"version": 1, "files": {"a": 3}}'):
        cache.write_bytes(content)
        third = ImageSizes(tmp_path)
        third.prefetch(paths)
        assert third.oriented(paths[0]) == (20, 30)


# --------------------------------------------------------------------------------------------- what stops, and what not


def _percent(content: dict[str, Any]) -> None:
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [100 * x / 640, 100 * y / 480, 100 * w / 640, 100 * h / 480]
    content["annotations"][0]["bbox"] = [50, 50, 45, 45]


def test_percentages_stop_training(tmp_path):
    folder = coco(tmp_path / "set", _percent, images=((480, 640),) * 6)
    with pytest.raises(DataError, match=r"boxes lie within 0..100, .*--allow normalised_boxes"):
        check(folder)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x, y, w, h: (x, y, x + w, y + h), "xmin, ymin, xmax, ymax"),
        (lambda x, y, w, h: (x + w / 2, y + h / 2, w, h), "centre x, centre y, width, height"),
        (lambda x, y, w, h: (y, x, h, w), "y, x, height, width"),
    ],
)
def test_boxes_of_another_format_are_named(tmp_path, change, name):
    data = DataSet(COCO, tmp_path)
    for number, drawn in enumerate(data.images):
        places = [(2, 2, 30, 20), (90, 70 - number, 37, 24), (96, 4, 30, 40 + number)]
        drawn.things = [Thing("cat", change(*place)) for place in places]
    data.write()
    with pytest.raises(DataError, match=f"as {name}, they do.*--allow box_format"):
        check(tmp_path)


def test_brushed_masks_are_not_trained_as_crowds_without_a_word(tmp_path):
    folder = coco(tmp_path / "set", each("iscrowd", lambda _: 1))
    with pytest.raises(DataError, match=r"all 15 objects are crowd regions.*--allow crowd_only"):
        check(folder)
    preset = get_preset("deformable-detr-tiny")
    data = replace(preset.data, allow=("crowd_only",)).open_splits(folder)
    assert not any(obj.crowd for part in data.values() for image in part.images for obj in image.objects)
    check(folder, allow=("crowd_only",))


def test_one_class_of_crowds_stops_training(tmp_path):
    def brush(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": "dog"})
        for row in content["annotations"][::2]:
            row.update(category_id=2, iscrowd=1)

    with pytest.raises(DataError, match=r"class 'dog'.*crowd"):
        check(coco(tmp_path / "set", brush))


def test_too_few_queries_stop_training_with_the_number_to_use(tmp_path):
    data = DataSet(COCO, tmp_path)
    for drawn in data.images:
        drawn.things = [Thing("cat", (12 * (n % 10), 12 * (n // 10), 11, 11)) for n in range(80)]
    data.write()
    with pytest.raises(DataError, match=r"up to 80; give --num-queries 100"):
        check(tmp_path)


def test_an_unknown_fault_cannot_be_allowed():
    with pytest.raises(ValueError, match=r"data.allow: 'box_frmat' is not one of .*; did you mean box_format\?"):
        replace(get_preset("detr-tiny").data, allow=("box_frmat",))


def _drawn(folder: Path) -> Path:
    write_scenes(folder, counts={"train": 12, "val": 4})
    return folder


def test_drawn_scenes_raise_no_doubt(tmp_path):
    folder = _drawn(tmp_path / "scenes")
    assert not check_data(folder, DEMANDS).faults.keys() & DOUBTS
    assert not any(line.startswith("warning") for line in check(folder))


@pytest.mark.parametrize("name", ["bccd", "coco128/object_detection", "coco128/instance_segmentation"])
def test_real_datasets_raise_no_doubt(name):
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"needs {name}, which is not shipped")
    report = check_data(folder, Demands(image_size=320, max_size=533, num_queries=100), read_images=False)
    if not report.splits:
        pytest.skip(f"{folder}: only a part of the dataset is here")
    assert not report.faults.keys() & DOUBTS


# ------------------------------------------------------------------------------------------------- names of the classes


def test_names_that_differ_in_spelling_only_are_paired():
    assert paired_labels(["cat", "traffic light", "dog"], ["DOG", "Traffic_Light", "cat"]) == [2, 1, 0]
    assert paired_labels(["cat", "Cat"], ["CAT"]) == [-1, -1]
    assert paired_labels(["cat"], ["Cat", "cat"]) == [1]


def test_an_evaluation_names_the_classes_that_differ(tmp_path):
    data = open_data(coco(tmp_path / "set", lambda content: content["categories"][0].update(name="Cat")))["train"]
    assert class_differences(Categories.from_names(["Cat", "dog"]), data) == []
    (line,) = class_differences(Categories.from_names(["cat", "dog"]), data)
    assert "'Cat' is 'cat'" in line
    (line,) = class_differences(Categories.from_names(["cats", "dog"]), data)
    assert line.startswith("warning: 1 class of the dataset") and "'Cat' (the detector has 'cats')" in line


def test_a_moved_folder_reads_the_same(tmp_path):
    folder = coco(tmp_path / "set", lambda content: None)
    before = boxes(folder)
    shutil.move(folder, tmp_path / "moved")
    assert boxes(tmp_path / "moved") == before
