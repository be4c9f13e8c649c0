"""Every export of `layouts.LAYOUTS` is read exactly: as it is, and nested, renamed, and with names in other cases."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from folders import one_line
from layouts import CLASSES, HEIGHT, LAYOUTS, PAGE, SPLITS, WIDTH, Layout, Put, cvat, labelme, named, objects, renewed
from layouts import coco as coco_file
from layouts import via as via_file
from layouts import xml as voc_file
from layouts import yolo as yolo_file
from opendetr.cli.main import app
from opendetr.data.faults import FaultKind
from opendetr.data.formats import Format, open_data, read_splits, recognise
from opendetr.data.records import DataError, DetectionData, FaultLog
from opendetr.files import IMAGE_SUFFIXES


def require_truth(data: dict[str, DetectionData], expected: dict[str, int]) -> None:
    """The splits have these numbers of images, and every object is as it was drawn."""
    assert {name: len(part) for name, part in data.items()} == expected
    for part in data.values():
        # Images of equal names would be mistaken for each other: each is known by its cat, which tells its number.
        for image in part.images:
            assert (image.height, image.width) == (HEIGHT, WIDTH)
            found = [
                (part.categories.names[part.categories.label_of_id(obj.category_id)], obj.box) for obj in image.objects
            ]
            digits = [int(letter) for letter in image.path.stem if letter.isdigit() and int(letter) < 7]
            assert any(
                [name for name, _ in found] == [name for name, _ in objects(index)]
                and all(
                    box == pytest.approx(truth, abs=1e-3)
                    for (_, box), (_, truth) in zip(found, objects(index), strict=True)
                )
                for index in digits
            ), (image.path, found)


def faults_of(data: dict[str, DetectionData]) -> set[str]:
    return {str(entry.kind) for part in data.values() for entry in part.fault_counts}


def rename(folder: Path, new_name: Callable[[Path], str]) -> None:
    """Rename everything below a folder, the innermost first."""
    for path in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(new_name(path)))


def nested(folder: Path) -> None:
    inner = folder / "My export (1)"
    paths = list(folder.iterdir())
    inner.mkdir()
    for path in paths:
        path.rename(inner / path.name)
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._a.xml").write_bytes(b"\0")
    (folder / "README.md").write_text("an export")


def folders_in_capitals(folder: Path) -> None:
    rename(folder, lambda path: path.name.upper() if path.is_dir() else path.name)


def suffixes_in_capitals(folder: Path) -> None:
    rename(folder, lambda path: path.stem + path.suffix.swapcase() if is_image(path) else path.name)


def with_junk(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"\0\1")
    (folder / "Thumbs.db").write_bytes(b"\0\1")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a-checkpoint.json").write_text("{}")
    (folder / "README.dataset.txt").write_text("exported on a Monday\n")
    (folder / "package.json").write_text('{"name": "pets"}')


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


CHANGES = {
    "as it is": lambda folder: None,
    "nested": nested,
    "folders in capitals": folders_in_capitals,
    "suffixes in capitals": suffixes_in_capitals,
    "beside other files": with_junk,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.id)
def test_an_export_is_read(tmp_path, layout: Layout, change):
    layout.write(Put(tmp_path / "set"))
    CHANGES[change](tmp_path / "set")
    assert recognise(tmp_path / "set").format is layout.format
    data = read_splits(tmp_path / "set")
    require_truth(data, dict(layout.splits))
    allowed = {*layout.faults, *(["respelled_name"] if "capitals" in change else [])}
    assert faults_of(data) <= allowed
    if change == "as it is":
        assert faults_of(data) == set(layout.faults)


def test_the_table_of_tools_is_that_of_this_list():
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "make it anew with `python tests/layouts.py`"


NAMED_FILES = {
    "CVAT-CVAT for images 1.1": "annotations.xml",
    "CVAT-COCO 1.0": "annotations/instances_default.json",
    "CVAT-YOLO 1.1": "obj.data",
    "CVAT-Pascal VOC 1.1": None,
    "Roboflow-YOLOv5 to v12": "data.yaml",
    "Label Studio-COCO with images": "result.json",
    "VoTT-CSV": "vott-csv-export/pets-export.csv",
    "VIA-annotations as JSON": "via_export_json.json",
    "VIA-annotations as CSV": "via_export_csv.csv",
    "FiftyOne-COCODetectionDataset": "labels.json",
    "FiftyOne-OpenImagesV6Dataset": "labels/detections.csv",
    "-table without header": "annotations.csv",
}


@pytest.mark.parametrize("name", [name for name, file in NAMED_FILES.items() if file])
def test_an_annotation_file_can_be_named(tmp_path, name):
    layout = next(layout for layout in LAYOUTS if f"{layout.tool}-{layout.export}" == name)
    layout.write(Put(tmp_path))
    require_truth(read_splits(tmp_path / (NAMED_FILES[name] or "")), dict(layout.splits))


def test_a_list_of_images_can_be_named(tmp_path):
    next(layout for layout in LAYOUTS if layout.export == "YOLO 1.1").write(Put(tmp_path))
    require_truth(read_splits(tmp_path / "train.txt"), {"train": 7})


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.id)
def test_the_commands_take_it(tmp_path, layout: Layout):
    layout.write(Put(tmp_path / "set"))
    shown = [["show", str(tmp_path / "set"), "--out", str(tmp_path / "sheet.png")]]
    written = [["convert", str(tmp_path / "set"), str(tmp_path / "coco"), "--to", "coco"]]
    for arguments in (*shown, *written):
        result = CliRunner().invoke(app, ["data", *arguments])
        assert result.exit_code == 0, result.output
    require_truth(read_splits(tmp_path / "coco"), dict(layout.splits))


# -------------------------------------------------------------------------------------------------------------- names


class Names:
    """A dataset in a format whose images have one name in the annotations, and another on the disk."""

    @staticmethod
    def coco(put: Put, name: str) -> None:
        put.json("annotations.json", coco_file({0: name}))

    @staticmethod
    def csv(put: Put, name: str) -> None:
        put.text("boxes.csv", f'image,label,x,y,width,height\n"{name}",cat,4,5,20,10\n"{name}",dog,30,8.5,25.5,30\n')

    @staticmethod
    def cvat(put: Put, name: str) -> None:
        put.text("annotations.xml", cvat({0: name.replace("&", "&amp;")}))

    @staticmethod
    def via(put: Put, name: str) -> None:
        put.json("via.json", via_file({0: name}))

    @staticmethod
    def labelme(put: Put, name: str) -> None:
        put.json("other.json", labelme(name, 0))

    @staticmethod
    def voc(put: Put, name: str) -> None:
        put.text("xml/other.xml", voc_file(name.replace("&", "&amp;"), 0))

    @staticmethod
    def yolo(put: Put, name: str) -> None:
        put.text("obj.data", "classes = 2\nnames = obj.names\ntrain = list.txt\n")
        put.text("obj.names", "cat\ndog\n")
        put.text("list.txt", f"{name}\n")
        for path in filter(is_image, put.folder.rglob("*")):
            path.with_suffix(".txt").write_text(yolo_file(0))


READERS = ("coco", "csv", "cvat", "via", "labelme", "voc", "yolo")
DECOMPOSED = unicodedata.normalize("NFD", "Käfer 0.png")
# What the annotations say, the file on the disk, and whether a warning tells that they differ.
SPELLINGS = {
    "the path": ("images/0.png", "images/0.png", False),
    "backslashes": ("images\\0.png", "images/0.png", False),
    "only the name": ("0.png", "a/b/0.png", False),
    "more folders": ("export/images/0.png", "images/0.png", False),
    "absolute": ("/home/me/set/images/0.png", "images/0.png", False),
    "windows": ("C:\\Users\\me\\images\\0.png", "images/0.png", False),
    "climbing": ("..\\..\\media\\upload\\4\\0.png", "images/0.png", True),
    "server": ("/data/upload/1/0.png", "images/0.png", True),
    "address": ("https://host:8080/data/upload/1/0.png?token=a&b=c", "images/0.png", True),
    "bucket": ("s3://bucket/shots/0.png", "images/0.png", True),
    "query": ("/data/local-files/?d=shots%2F0.png", "images/0.png", True),
    "prefix of a server": ("1f2e3d4c-0.png", "images/0.png", True),
    "decomposed": (DECOMPOSED, "images/Käfer 0.png", False),
    "composed": ("Käfer 0.png", f"images/{DECOMPOSED}", False),
    "encoded": ("K%C3%A4fer%200.png", "images/Käfer 0.png", True),
    "encoded twice": ("K%25C3%25A4fer 0.png", "images/Käfer 0.png", True),
    "encoded in latin 1": ("K%E4fer 0.png", "images/Käfer 0.png", True),
    "encoded on the disk": ("Käfer 0.png", "images/K%C3%A4fer%200.png", True),
    "suffix": ("images/0.PNG", "images/0.png", True),
    "mixed suffix": ("0.png", "images/0.Png", True),
    "name": ("IMG_0.png", "images/img_0.png", True),
    "folder": ("IMAGES/0.png", "images/0.png", True),
    "a percent sign": ("100%.0.png", "images/100%.0.png", False),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("reader", READERS)
def test_a_name_may_be_spelled_differently(tmp_path, reader, spelling):
    name, file, warned = SPELLINGS[spelling]
    put = Put(tmp_path / "set")
    put.image(file, 0)
    (tmp_path / "0.png").write_bytes(b"outside")
    getattr(Names, reader)(put, name)
    data = read_splits(put.folder)
    (part,) = data.values()
    assert [image.path for image in part.images] == [put.folder / file]
    assert part.num_objects == 2
    assert faults_of(data) == ({"respelled_name"} if warned else set())


@pytest.mark.parametrize("reader", READERS)
def test_a_name_that_fits_several_files_is_an_error_with_their_names(tmp_path, reader):
    put = Put(tmp_path)
    put.image("a/0.png", 0)
    put.image("b/0.png", 1)
    getattr(Names, reader)(put, "/data/upload/0.png")
    with pytest.raises(DataError) as error:
        read_splits(tmp_path)
    assert "fits 2 files: a/0.png, b/0.png" in one_line(error.value)
    log = FaultLog(raises=False)
    read_splits(tmp_path, log)
    assert FaultKind.AMBIGUOUS_NAME in {fault.kind for fault in log.faults}


@pytest.mark.parametrize("reader", READERS)
def test_the_folder_in_a_name_decides_between_files(tmp_path, reader):
    put = Put(tmp_path)
    put.image("pictures/a/0.png", 0)
    put.image("pictures/b/0.png", 1)
    getattr(Names, reader)(put, "/data/upload/A/0.png")
    (part,) = read_splits(tmp_path).values()
    assert part.images[0].path == tmp_path / "pictures/a/0.png"


@pytest.mark.parametrize("name", ["../0.png", "/etc/passwd", "..\\0.png", "file:///etc/passwd", "a/../../0.png"])
@pytest.mark.parametrize("reader", READERS)
def test_nothing_outside_the_folder_is_read(tmp_path, reader, name):
    put = Put(tmp_path / "set")
    put.image("other.png", 0)
    put.image("../0.png", 0)
    if reader in ("voc", "labelme"):  # an image of the name of the annotation file would be the one
        (put.folder / "other.png").rename(put.folder / "another.png")
    getattr(Names, reader)(put, name)
    with pytest.raises(DataError) as error:
        read_splits(put.folder)
    assert "missing" in one_line(error.value) or "leaves the data folder" in one_line(error.value)


def test_labels_of_other_images_are_not_taken(tmp_path):
    put = Put(tmp_path)
    for index, split in enumerate(("train", "val")):
        put.image(f"images/{split}/0.png", index)
        put.image(f"images/{split}/1{split}.png", index)
        put.text(f"labels/{split}/1{split}.txt", yolo_file(index))
    put.text("labels/val/0.txt", yolo_file(0))
    put.text("data.yaml", "train: images/train\nnames: [cat, dog]\n")
    (part,) = read_splits(tmp_path).values()
    assert [len(image.objects) for image in part.images] == [0, 2]
    assert FaultKind.UNLABELLED_IMAGE in faults_of({"train": part})


def test_labels_with_other_spellings_are_found(tmp_path):
    put = Put(tmp_path)
    stems = {"Capture_décran_0": "Capture_d%C3%A9cran_0", DECOMPOSED[:-4]: "Käfer 0", "IMG_2": "img_2"}
    for index, (image, text) in enumerate(stems.items()):
        put.image(f"images/train/{image}.jpg", index)
        put.text(f"labels/train/{text}.txt", yolo_file(index))
    put.text("data.yaml", "train: images/train\nnames: [cat, dog]\n")
    (part,) = read_splits(tmp_path).values()
    assert [len(image.objects) for image in part.images] == [2, 2, 2]
    assert [(entry.kind, entry.count) for entry in part.fault_counts] == [(FaultKind.RESPELLED_NAME, 2)]


def test_masks_with_the_names_of_images_are_not_images(tmp_path):
    put = Put(tmp_path)
    for index in range(3):
        put.image(f"photos/{index}.png", index)
        put.image(f"masks/{index}.png", index)
        put.text(f"xml/{index}.xml", voc_file("unknown.bmp", index))
    require_truth(read_splits(tmp_path), {"all": 3})
    (part,) = read_splits(tmp_path).values()
    assert {image.path.parent.name for image in part.images} == {"photos"}


@pytest.mark.parametrize("name", ["Default", "everything"])
def test_a_single_list_is_the_whole_dataset(tmp_path, name):
    put = Put(tmp_path)
    put.images("JPEGImages/{index}.png")
    for index in range(7):
        put.text(f"Annotations/{index}.xml", voc_file(f"{index}.png", index))
    put.text(f"ImageSets/Main/{name}.txt", "0\n1\n2\n3.PNG\nAnnotations\\4.xml\n")
    require_truth(read_splits(tmp_path), {"all": 5})
    assert {split: len(part) for split, part in open_data(tmp_path, val_fraction=0.2).items()} == {"train": 4, "val": 1}


# ------------------------------------------------------------------------------------------------------------- shapes


def test_shapes_of_cvat(tmp_path):
    put = Put(tmp_path)
    put.image("0.png", 0)
    shapes = {
        '<box label="a" xtl="10" ytl="20" xbr="30" ybr="30" rotation="90"/>': (15, 15, 10, 20),
        '<polygon label="a" points="4,5;24,5;24,15"/>': (4, 5, 20, 10),
        '<ellipse label="a" cx="20" cy="20" rx="10" ry="5"/>': (10, 15, 20, 10),
        '<mask label="a" rle="1, 2" left="3" top="4" width="10" height="12"/>': (3, 4, 10, 12),
        '<points label="a" points="4,5;24,5"/>': None,
        '<tag label="a"/>': None,
    }
    image = f'<image id="0" name="0.png" width="64" height="48">{"".join(shapes)}</image>'
    put.text("annotations.xml", f"<annotations>{image}</annotations>")
    (part,) = read_splits(tmp_path).values()
    found = [obj.box for obj in part.images[0].objects]
    assert found == [pytest.approx(box) for box in shapes.values() if box]
    assert part.images[0].objects[1].segmentation == [[4, 5, 24, 5, 24, 15]]
    assert part.images[0].objects[1].area == 100
    assert FaultKind.INVALID_ROW in {entry.kind for entry in part.fault_counts}


def test_subsets_of_cvat_are_splits(tmp_path):
    put = Put(tmp_path)
    put.images("images/{index}.png")
    content = cvat(named("{index}.png"))
    for index in range(7):
        subset = {"train": "Train", "valid": "Validation", "test": "default"}[
            next(k for k in SPLITS if index in SPLITS[k])
        ]
        content = content.replace(f'name="{index}.png"', f'name="{index}.png" subset="{subset}"')
    put.text("annotations.xml", content)
    require_truth(read_splits(tmp_path), {"train": 4, "val": 2, "all": 1})


def test_shapes_of_labelme(tmp_path):
    put = Put(tmp_path)
    put.image("0.png", 0)
    shapes = [
        ("rectangle", [[24, 15], [4, 5]], None),
        ("circle", [[20, 20], [20, 25]], None),
        ("polygon", [[1, 1], [5, 1], [5, 4]], 7),
        ("polygon", [[11, 1], [15, 1], [15, 4]], 7),
        ("line", [[1, 1], [5, 1]], None),
        ("mask", [[1, 2], [5, 8]], None),
    ]
    rows = [{"label": "a", "shape_type": kind, "points": points, "group_id": group} for kind, points, group in shapes]
    put.json("0.json", {**labelme("0.png", 0), "shapes": rows})
    (part,) = read_splits(tmp_path).values()
    found = part.images[0].objects
    assert [obj.box for obj in found] == [(4, 5, 20, 10), (15, 15, 10, 10), (1, 1, 14, 3), (1, 2, 4, 6)]
    assert found[2].segmentation == [[1, 1, 5, 1, 5, 4], [11, 1, 15, 1, 15, 4]]
    assert found[2].area == 12
    assert faults_of({"all": part}) == {"invalid_row"}


VIA_ATTRIBUTES = {
    "one attribute": ([{"animal": "cat"}, {"animal": "dog"}], ["cat", "dog"]),
    "usual attribute": ([{"note": "x", "Class": "cat"}, {"note": "y", "Class": "dog"}], ["cat", "dog"]),
    "check boxes": ([{"animal": {"cat": True}}, {"animal": {"dog": True, "cat": False}}], ["cat", "dog"]),
    "no attribute": ([{}, {}], ["object", "object"]),
    "an empty one": ([{"animal": "cat"}, {"animal": ""}], ["cat"]),
}


@pytest.mark.parametrize("case", VIA_ATTRIBUTES)
def test_classes_of_via(tmp_path, case):
    attributes, names = VIA_ATTRIBUTES[case]
    put = Put(tmp_path)
    put.image("0.png", 0)
    content = via_file({0: "0.png"})
    for region, own in zip(content["0.png123"]["regions"], attributes, strict=True):
        region["region_attributes"] = own
    put.json("via.json", content)
    (part,) = read_splits(tmp_path).values()
    labels = [part.categories.label_of_id(obj.category_id) for obj in part.images[0].objects]
    assert [part.categories.names[label] for label in labels] == names


def test_the_class_of_via_is_not_guessed(tmp_path):
    put = Put(tmp_path)
    put.image("0.png", 0)
    content = via_file({0: "0.png"})
    content["0.png123"]["regions"][0]["region_attributes"] = {"animal": "cat", "colour": "red"}
    content["0.png123"]["regions"][1]["region_attributes"] = {"animal": "dog", "colour": "red"}
    put.json("via.json", content)
    with pytest.raises(DataError, match="the regions have the attributes animal, colour; rename") as error:
        read_splits(tmp_path)
    one_line(error.value)


def test_fractions_of_open_images(tmp_path):
    next(layout for layout in LAYOUTS if layout.tool == "Open Images").write(Put(tmp_path))
    path = tmp_path / "test-annotations-bbox.csv"
    path.write_text(path.read_text().replace(",0,0,0,0,0\n", ",0,0,1,0,0\n", 1))
    assert [obj.crowd for obj in read_splits(tmp_path)["test"].images[0].objects] == [True, False]
    path.write_text(path.read_text() + "0000000000006,x,/m/01cat,1,10,20,10,20,0,0,0,0,0\n")
    with pytest.raises(DataError, match=r"line 4: has 10, but the columns are those of Open Images") as error:
        read_splits(tmp_path)
    one_line(error.value)


# ------------------------------------------------------------------------------------------------------ what is refused


def two_datasets(put: Put) -> None:
    for name in ("a", "b"):
        put.image(f"{name}/images/0.png", 0)
        put.json(f"{name}/annotations/instances_train.json", coco_file({0: "0.png"}))


REFUSED = {
    "nothing": (
        lambda put: put.image("a/0.png", 0),
        "contains no annotations; it contains a/: 1 .png; 1 image without",
    ),
    "datasets": (two_datasets, "contains several datasets, a, b; name the one to use"),
    "rows of text": (
        lambda put: (put.image("x/0.png", 0), put.text("y/0.txt", "a cat\n")),
        "x/: 1 .png; y/: 1 .txt; YOLO comes closest, but in y/0.txt, line 1: 'a' is not a number",
    ),
    "labels alone": (
        lambda put: put.text("y/0.txt", yolo_file(0)),
        "YOLO comes closest, but y/0.txt has no image 0.jpg",
    ),
    "coco without classes": (
        lambda put: (put.image("0.png", 0), put.json("a.json", {"images": [], "annotations": []})),
        "a.json: not COCO: the key 'categories' is missing",
    ),
    "some json": (
        lambda put: (put.image("0.png", 0), put.json("a.json", {"boxes": []})),
        "a.json: not COCO: the key 'images' is missing; ",
    ),
    "label studio": (
        lambda put: (put.image("0.png", 0), put.json("a.json", [{"id": 1, "data": {}, "annotations": []}])),
        "a.json: is in the format of Label Studio, which is not read; export COCO",
    ),
    "create ml": (
        lambda put: (put.image("0.png", 0), put.json("a.json", [{"image": "0.png", "annotations": []}])),
        "a.json: is in the format of CreateML, which is not read",
    ),
    "other xml": (
        lambda put: (put.image("0.png", 0), put.text("a.xml", "<!-- a --><html/>")),
        "a.xml: neither Pascal VOC nor CVAT: expected <annotation> or <annotations>, found <html>; ",
    ),
    "tracks of cvat": (
        lambda put: (put.image("0.png", 0), put.text("a.xml", "<annotations><track/></annotations>")),
        "a.xml: holds tracks of a video; export the task as 'CVAT for images'",
    ),
    "archive": (lambda put: put.text("a.zip", "PK"), "a.zip is an archive; unpack it"),
    "records": (lambda put: put.text("train.tfrecord", "x"), "train.tfrecord is a TFRecord file, which is not read"),
    "table without boxes": (
        lambda put: (put.image("0.png", 0), put.text("x/a.csv", "image,label\n0.png,cat\n")),
        "a.csv: no column for a box among image, label",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dataset_is_described(tmp_path, case):
    write, message = REFUSED[case]
    write(Put(tmp_path))
    with pytest.raises(DataError) as error:
        read_splits(tmp_path)
    assert message in one_line(error.value)


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.zip: a file, not a folder; unpack this archive") as error:
        open_data(tmp_path / "a.zip")
    one_line(error.value)


def test_the_format_of_a_mixture_is_the_most_complete_one(tmp_path):
    """labelme's files beside the COCO file that was made of them."""
    put = Put(tmp_path)
    put.images("{index}.jpg")
    for index in range(7):
        put.json(f"{index}.json", labelme(f"{index}.jpg", index))
    put.json("annotations.json", coco_file(named("{index}.jpg")))
    assert recognise(tmp_path).format is Format.COCO
    require_truth(read_splits(tmp_path), {"all": 7})
    assert tuple(read_splits(tmp_path)["all"].categories.names) == CLASSES
