"""YOLO's format: layouts, rows, classes, and what is said about the faulty ones."""

import codecs
import os
import shutil
from pathlib import Path

import pytest

from folders import one_line, write_image
from opendetr.data.formats.recognise import Format, open_data, open_split, recognise
from opendetr.data.formats.splits import split_folders
from opendetr.data.formats.yolo import find_description
from opendetr.data.formats.yolo_rows import polygon_area
from opendetr.data.records import DataError, FaultKind
from opendetr.files import READABLE_SUFFIXES

DESCRIPTION = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
ROWS = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.125 0.25\n"


def write_yolo_folder(folder: Path, description: str | bytes | None = DESCRIPTION, rows: str | bytes = ROWS) -> Path:
    """`images/{train,val}/{0,1}.png` of 64x48, each with these rows."""
    for split in ("train", "val"):
        for index in range(2):
            write_image(folder / "images" / split / f"{index}.png", seed=index)
            path = folder / "labels" / split / f"{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rows.encode() if isinstance(rows, str) else rows)
    if description is not None:
        content = description.encode() if isinstance(description, str) else description
        (folder / "data.yaml").write_bytes(content)
    return folder


def fault_counts(data):
    return {entry.kind: entry.count for entry in data.fault_counts}


def test_rows_become_boxes_in_pixels(tmp_path):
    data = open_data(write_yolo_folder(tmp_path))
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "val": 2}
    assert (data["train"].categories.names, data["train"].categories.ids) == (("cat", "dog"), (0, 1))
    image = data["train"].images[0]
    assert (image.height, image.width) == (48, 64)
    assert [(thing.category_id, thing.box, thing.area) for thing in image.objects] == [
        (0, (24, 12, 16, 24), 384),
        (1, (12, 6, 8, 12), 96),
    ]
    assert data["train"].summary() == "2 images, 4 objects, 2 classes"
    assert recognise(tmp_path).format is Format.YOLO


def test_images_are_numbered_alike_in_every_split(tmp_path):
    write_yolo_folder(tmp_path, "train: images/train\nval: images/val\nboth: [images/val, images/train]\nnames: [a, b]")
    parts = open_data(tmp_path)
    ids = {image.path: image.id for image in parts["both"].images}
    assert sorted(ids.values()) == [1, 2, 3, 4]
    for name in ("train", "val"):
        assert {image.path: image.id for image in parts[name].images}.items() <= ids.items()
    objects = [thing.id for image in parts["both"].images for thing in image.objects]
    assert objects == list(range(1, 9))


def test_a_polygon_gives_its_hull_and_area(tmp_path):
    write_yolo_folder(tmp_path, rows="1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.5\n")
    (thing,) = open_split(tmp_path, "val").images[0].objects
    assert thing.box == (16, 12, 16, 24)
    assert thing.segmentation == [[16, 12, 32, 12, 32, 36, 16, 24]]
    assert thing.area == polygon_area(thing.segmentation[0]) == 16 * 12 + 16 * 12 / 2


LAYOUTS = {
    "own names": ("train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n", "."),
    "path": ("path: .\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n", "."),
    "another machine": (
        "path: /content/x\ntrain: /content/x/images/train\nval: C:\\x\\images\\val\nnames: [cat, dog]",
        ".",
    ),
    "one level up": ("train: ../images/train\nval: ../images/val\nnames: [cat, dog]\n", "."),
    "lists": ("train: train.txt\nval: [val.txt]\nnames: [cat, dog]\n", "."),
    "no splits named": ("names: [cat, dog]\n", "."),
    "no test": ("train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n", "."),
    "count": ("nc: '2'\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n", "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_descriptions_are_understood(tmp_path, layout):
    write_yolo_folder(tmp_path, LAYOUTS[layout][0])
    (tmp_path / "train.txt").write_text("./images/train/0.png\r\n\r\nimages/train/1.png\r\n")
    (tmp_path / "val.txt").write_text(f"{tmp_path}/images/val/0.png\n/elsewhere/images/val/1.png\n")
    data = open_data(tmp_path)
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "val": 2}
    assert data["train"].categories.names == ("cat", "dog")
    assert all(len(image.objects) == 2 for part in data.values() for image in part.images)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_windows_texts_are_read(tmp_path, encoding):
    description = DESCRIPTION.replace("cat", "Käse").replace("\n", "\r\n").encode(encoding)
    rows = "0\t0.5\t0.5\t0.25\t0.5\r\n\r\n1.0 0.25 0.25 0.125 0.25".encode(encoding)
    data = open_data(write_yolo_folder(tmp_path, description, rows))
    assert data["train"].categories.names == ("Käse", "dog")
    assert data["train"].num_objects == 4


def test_the_description_itself_can_be_named(tmp_path):
    write_yolo_folder(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "other.yaml")
    (tmp_path / "third.yaml").write_text(DESCRIPTION.replace("dog", "cow"))
    assert open_data(tmp_path / "other.yaml")["train"].categories.names == ("cat", "dog")
    with pytest.raises(DataError, match=r"other.yaml, third.yaml each describe a dataset; name the one to use"):
        open_data(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [x, y]\n")
    assert find_description(tmp_path).name == "data.yaml"


def test_a_yaml_of_something_else_is_passed_over(tmp_path):
    write_yolo_folder(tmp_path)
    (tmp_path / "run.yaml").write_text("preset: detr-tiny\nmodel: {num_queries: 5}\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert find_description(tmp_path).name == "data.yaml"


def test_without_description_the_layout_is_enough(tmp_path):
    data = open_data(write_yolo_folder(tmp_path, None))
    assert data["train"].categories.names == ("class_0", "class_1")
    assert fault_counts(data["train"]) == {FaultKind.NAMELESS_CLASS: 2}
    (tmp_path / "classes.txt").write_text("cat\r\ndog\r\n")
    data = open_data(tmp_path)
    assert data["train"].categories.names == ("cat", "dog")
    assert fault_counts(data["train"]) == {}


def test_images_of_every_suffix_are_found(tmp_path):
    for index, suffix in enumerate(READABLE_SUFFIXES):
        write_image(tmp_path / "images" / f"{index:02}{suffix}")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{index:02}.txt").write_text(ROWS)
    data = open_split(tmp_path, "all")
    assert [image.path.suffix for image in data.images] == list(READABLE_SUFFIXES)
    assert data.num_objects == 2 * len(READABLE_SUFFIXES)


def test_a_bare_folder_without_splits_is_divided(tmp_path):
    for index in range(5):
        write_image(tmp_path / "images" / f"{index}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{index}.txt").write_text(ROWS)
    assert recognise(tmp_path).splits == ("all",)
    assert {name: len(part) for name, part in open_data(tmp_path, val_fraction=0.2).items()} == {"train": 4, "val": 1}


def test_splits_with_their_own_images_and_labels(tmp_path):
    write_yolo_folder(tmp_path / "x", None)
    for split, name in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (tmp_path / "y" / name).mkdir(parents=True, exist_ok=True)
            shutil.move(tmp_path / "x" / kind / split, tmp_path / "y" / name / kind)
    assert {name: part.num_objects for name, part in open_data(tmp_path / "y").items()} == {"train": 4, "val": 4}


@pytest.mark.parametrize("inner", [True, False])
def test_folders_with_a_year_are_splits(tmp_path, inner):
    """As in COCO, without data.yaml: images/train2017 and labels/train2017, or train2017/images and so on."""
    for name in ("train2017", "val2017", "test_2017"):
        places = [tmp_path / kind / name if inner else tmp_path / name / kind for kind in ("images", "labels")]
        write_image(places[0] / "1.png")
        places[1].mkdir(parents=True)
        (places[1] / "1.txt").write_text(ROWS)
    assert set(recognise(tmp_path).splits) == {"train", "val", "test"}
    assert open_data(tmp_path)["val"].num_objects == 2


def test_which_folders_are_splits():
    names = ["train2014", "train2017", "val", "val2017", "train station", "bus stop", "TEST-2007"]
    expected = {"train2014": "train2014", "train2017": "train2017", "val": "val", "val2017": "val2017",
                "train station": "train station", "bus stop": "bus stop", "TEST-2007": "test"}  # fmt: skip
    assert split_folders(names) == expected


def test_labels_may_lie_beside_the_images(tmp_path):
    for index in range(3):
        write_image(tmp_path / "pictures" / f"{index}.png")
        (tmp_path / "pictures" / f"{index}.txt").write_text(ROWS)
    (tmp_path / "data.yaml").write_text("all: pictures\nnames: [cat, dog]\n")
    assert open_split(tmp_path, "all").num_objects == 6


@pytest.mark.parametrize("as_text", [True, False], ids=["stored as text", "real"])
def test_a_linked_images_folder(tmp_path, as_text):
    write_yolo_folder(tmp_path / "set")
    shutil.move(tmp_path / "set" / "images", tmp_path / "images")
    link = tmp_path / "set" / "images"
    if as_text:
        link.write_text("../images")
    else:
        link.symlink_to(Path("..") / "images")
    assert {name: part.num_objects for name, part in open_data(tmp_path / "set").items()} == {"train": 4, "val": 4}


@pytest.mark.parametrize("text", ["images", ".", "../set/images", "x" * 5000, "\0"])
def test_a_link_that_leads_nowhere_is_said(tmp_path, text):
    write_yolo_folder(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "images")
    (tmp_path / "set" / "images").write_text(text)
    with pytest.raises(DataError, match=r"data.yaml, 'train': there is no 'images/train' in"):
        open_data(tmp_path / "set")


# -------------------------------------------------------------------------------------------------------- faulty rows

BAD_ROWS = {
    "letters": ("cat 0.5 0.5 0.2 0.2", FaultKind.INVALID_ROW, "'cat' is not a number"),
    "commas": ("0,0.5,0.5,0.2,0.2", FaultKind.INVALID_ROW, "'0,0.5,0.5,0.2,0.2' is not a number"),
    "few": ("0 0.5 0.5", FaultKind.INVALID_ROW, "2 numbers after the class"),
    "with a score": ("0 0.5 0.5 0.2 0.2 0.9", FaultKind.INVALID_ROW, "5 numbers after the class"),
    "fraction": ("0.5 0.5 0.5 0.2 0.2", FaultKind.INVALID_ROW, "'0.5' is not a class number"),
    "below zero": ("-1 0.5 0.5 0.2 0.2", FaultKind.INVALID_ROW, "'-1' is not a class number"),
    "class nan": ("nan 0.5 0.5 0.2 0.2", FaultKind.INVALID_ROW, "'nan' is not a class number"),
    "enormous class": ("1e300 0.5 0.5 0.2 0.2", FaultKind.INVALID_ROW, "'1e300' is not a class number"),
    "null byte": ("0 0.5 0.5 0.2 0.2\0", FaultKind.INVALID_ROW, "is not a number"),
    "long": ("9" * 5000, FaultKind.INVALID_ROW, "is not a class number"),
    "pixels": ("0 20 20 10 10", FaultKind.PIXEL_ROW, "20 is not a fraction of the image size"),
    "unlisted class": ("7 0.5 0.5 0.2 0.2", FaultKind.UNLISTED_CLASS, "class 7, but 2 are listed"),
    "nan": ("0 nan 0.5 0.2 0.2", FaultKind.INVALID_BOX, ""),
    "infinite": ("0 0.5 0.5 inf 0.2", FaultKind.INVALID_BOX, ""),
    "negative side": ("0 0.5 0.5 -0.2 0.2", FaultKind.INVALID_BOX, ""),
    "nan in a polygon": ("0 0.1 0.1 0.5 nan 0.5 0.6", FaultKind.INVALID_BOX, ""),
    "no side": ("0 0.5 0.5 0 0.2", FaultKind.NO_AREA, ""),
    "flat polygon": ("0 0.1 0.1 0.5 0.1 0.9 0.1", FaultKind.NO_AREA, ""),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_faulty_row_is_skipped_and_named(tmp_path, fault):
    row, kind, detail = BAD_ROWS[fault]
    write_yolo_folder(tmp_path)
    (tmp_path / "labels" / "train" / "1.txt").write_text(f"{ROWS}\n{row}\n")
    data = open_split(tmp_path, "train")
    assert data.num_objects == 4
    (entry,) = data.fault_counts
    assert (entry.kind, entry.count) == (kind, 1)
    assert entry.first == f"{tmp_path / 'labels' / 'train' / '1.txt'}, line 4"
    assert detail in entry.faults[0].detail
    if kind is not FaultKind.NO_AREA:
        with pytest.raises(DataError, match="strict is set, and the data has 1 "):
            open_split(tmp_path, "train", strict=True)


def test_when_no_row_is_left_the_reason_is_said(tmp_path):
    write_yolo_folder(tmp_path, rows="0 0.5 0.5 0.2 0.2 0.9 0.1 0.1\n")
    with pytest.raises(DataError, match=r"no object; 2 rows that cannot be read.*line 1\): 7 numbers after the class"):
        open_data(tmp_path)


def _folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe_in_its_place(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


FILE_FAULTS = {
    "folder": (_folder_in_its_place, "0.txt: not a file"),
    "pipe": (_pipe_in_its_place, "0.txt: not a file"),
    "endless": (_endless, "0.txt: has 68,719,476,736 bytes"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "0.txt: byte 128 is not valid UTF-8"),
    "torn": (lambda path: path.write_bytes(codecs.BOM_UTF16_LE + b"0"), "0.txt: byte 2 is not valid UTF-16"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_label_file_that_is_none_is_an_error(tmp_path, fault):
    spoil, message = FILE_FAULTS[fault]
    write_yolo_folder(tmp_path)
    spoil(tmp_path / "labels" / "train" / "0.txt")
    with pytest.raises(DataError, match=message) as error:
        open_data(tmp_path)
    one_line(error.value)


def test_missing_labels_are_counted(tmp_path):
    write_yolo_folder(tmp_path)
    (tmp_path / "labels" / "train" / "0.txt").unlink()
    (tmp_path / "labels" / "train" / "other.txt").write_text(ROWS)
    data = open_data(tmp_path)["train"]
    assert fault_counts(data) == {FaultKind.UNLABELLED_IMAGE: 1, FaultKind.NO_OBJECTS: 1, FaultKind.ORPHAN_LABELS: 1}
    assert [len(image.objects) for image in data.images] == [0, 2]
    (tmp_path / "data.yaml").write_text(DESCRIPTION + "skip_if_label_file_missing: true\n")
    data = open_data(tmp_path)["train"]
    assert fault_counts(data) == {FaultKind.OMITTED_IMAGE: 1, FaultKind.ORPHAN_LABELS: 1}
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(DataError, match=r"none of 4 images has a label file; add them, such as .*labels.train.0.txt"):
        open_data(tmp_path)


def test_damaged_images_are_skipped(tmp_path):
    write_yolo_folder(tmp_path)
    (tmp_path / "images" / "train" / "0.png").write_bytes(b"no image")
    (tmp_path / "images" / "val" / "0.png").write_bytes(b"")
    data = open_data(tmp_path)
    assert [fault_counts(data[split]) for split in ("train", "val")] == [
        {FaultKind.UNREADABLE_IMAGE: 1},
        {FaultKind.EMPTY_FILE: 1},
    ]


BAD_DESCRIPTIONS = {
    "broken": ("train: [images/train\nval: x", "line 2, column 4: broken YAML"),
    "latin-1": ("names: [ä]".encode("latin-1"), "byte 8 is not valid UTF-8"),
    "deep": ("names: " + "[" * 900 + "]" * 900, "data.yaml"),
    "train missing": ("train: nowhere\nval: images/val\nnames: [a, b]", "'train': there is no 'nowhere' in"),
    "no number": ("names: {a: 0, b: 1}\ntrain: images/train", "'names': 'a' is not a class number with a name"),
    "nested": ("names: [[a], b]\ntrain: images/train", "'names': 0 is not a class number with a name"),
    "count": ("nc: 3\nnames: [a, b]\ntrain: images/train", "'nc': is 3, but there are 2 names; correct one of them"),
    "endless count": ("nc: 999999999999\ntrain: images/train", "'nc': is '999999999999'; expected a number of classes"),
    "image": ("train: images/train/0.png\nnames: [a, b]", "0.png: neither a folder nor a .txt list of images"),
    "list": ("train: train.txt\nnames: [a, b]", "train.txt, line 1: the image './9.png' is missing"),
}


@pytest.mark.parametrize("fault", BAD_DESCRIPTIONS)
def test_what_is_wrong_with_a_description_is_said_in_one_line(tmp_path, fault):
    text, message = BAD_DESCRIPTIONS[fault]
    write_yolo_folder(tmp_path, text)
    (tmp_path / "train.txt").write_text("./9.png\n")
    with pytest.raises(DataError) as error:
        open_data(tmp_path)
    assert message in one_line(error.value)


def test_names_are_texts_whatever_yaml_makes_of_them(tmp_path):
    write_yolo_folder(tmp_path, "train: images/train\nval: images/val\nnames: [no, 1.50]\n")
    assert open_data(tmp_path)["train"].categories.names == ("no", "1.50")


def test_class_numbers_may_have_holes(tmp_path):
    write_yolo_folder(tmp_path, "train: images/train\nval: images/val\nnames: {7: dog, 0: cat}\n", "7 .5 .5 .2 .2\n")
    data = open_data(tmp_path)["train"]
    assert (data.categories.names, data.categories.ids) == (("cat", "dog"), (0, 7))
    assert {thing.category_id for image in data.images for thing in image.objects} == {7}
