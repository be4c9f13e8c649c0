"""Conversion between the formats: nothing is lost, nothing is overwritten, nothing is half written."""

import json
import math
import random
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from folders import coco_content, make_image, one_line, write_coco_folder, write_image, write_voc_folder
from opendetr.data.formats.recognise import Format, open_data, open_split, read_splits, recognise
from opendetr.data.records import DataError, FaultKind
from opendetr.data.tools import convert as convert_module
from opendetr.data.tools.convert import WRITTEN_FORMATS, convert, write_data
from opendetr.inference.predictor import Predictor, load
from opendetr.models.detr import DETR
from opendetr.presets import DEFAULT_MODEL, build_model, miniature
from opendetr.synthetic import write_scenes
from shifted_truth import score_of_shifted_truth

COCO, YOLO, VOC = WRITTEN_FORMATS


def facts(folder):
    """All that is to be kept of a dataset: a triple of split, classes and images."""
    return [
        (name, data.categories, [(i.id, i.path.name, i.height, i.width, i.objects) for i in data.images])
        for name, data in sorted(read_splits(folder).items())
    ]


def awkward_content():
    """COCO with all that other formats have no place for: see the names of the tests."""
    content = coco_content(3, first_id=0)
    content["categories"] = [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 90, "name": "unused"}]
    for index, row in enumerate(content["annotations"]):
        row |= {"id": index * 3, "category_id": 7 * (index % 2)}
    content["annotations"] = content["annotations"][:4]  # the third image has none
    polygon = [[4.25, 5.5, 24.25, 5.5, 14, 15.5]]
    crowd_mask = {"counts": [100, 20, 2952], "size": [48, 64]}
    content["annotations"][0] |= {"segmentation": polygon, "area": 100.125, "bbox": [4.25, 5.5, 20, 10]}
    content["annotations"][1] |= {"difficult": 1, "bbox": [1 / 3, 0.1 + 0.2, 20.7, math.pi]}
    content["annotations"][2] |= {"iscrowd": 1, "segmentation": crowd_mask, "area": 20}
    content["annotations"][3] |= {"segmentation": [*polygon, [0, 0, 1, 0, 1, 1]], "bbox": [-200.5, -3, 600, 60.25]}
    return content


@pytest.fixture
def awkward(tmp_path) -> Path:
    val = coco_content(2, first_id=5)
    val["categories"] = awkward_content()["categories"]
    for row in val["annotations"]:
        row |= {"id": row["id"] + 100, "category_id": 7}
    for row in val["images"]:
        row["file_name"] = f"val_{row['file_name']}"
    return write_coco_folder(tmp_path / "source", {"train": awkward_content(), "val": val})


@pytest.mark.parametrize("chain", [(YOLO,), (VOC,), (COCO,), (YOLO, VOC, COCO, VOC, YOLO, COCO)], ids=str)
@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_lost(awkward, tmp_path, chain, link):
    before, folder = facts(awkward), awkward
    assert before[0][2][0][4][0].id == before[0][2][0][4][0].category_id == 0
    for step, to in enumerate(chain):
        convert(folder, tmp_path / str(step), to, link=link)
        folder = tmp_path / str(step)
        assert recognise(folder).format is to
        assert facts(folder) == before
    images = [image.path for data in read_splits(folder).values() for image in data.images]
    assert all(path.is_symlink() == link for path in images)
    assert not list(tmp_path.glob(".*"))


def test_other_programs_read_the_rows(awkward, tmp_path):
    notes = convert(awkward, tmp_path / "yolo", YOLO)
    assert (tmp_path / "yolo" / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n  2: unused\n"
    )
    # The second object of the first image is no polygon, so the first one is a box as well.
    rows = [line.split() for line in (tmp_path / "yolo" / "labels" / "train" / "0.txt").read_text().splitlines()]
    assert [[float(value) for value in row] for row in rows] == [
        pytest.approx([0, 14.25 / 64, 10.5 / 48, 20 / 64, 10 / 48], abs=1e-15),
        pytest.approx([1, (1 / 3 + 10.35) / 64, (0.3 + math.pi / 2) / 48, 20.7 / 64, math.pi / 48], abs=1e-15),
    ]
    # A crowd region would be taken for an object, a box ten images wide for numbers in pixels.
    assert (tmp_path / "yolo" / "labels" / "train" / "1.txt").read_text() == ""
    assert (tmp_path / "yolo" / "labels" / "train" / "2.txt").read_text() == ""
    kept = "kept in opendetr.json, which other programs do not read"
    assert notes == (
        f"1 crowd region {kept}",
        f"1 box far outside the image, {kept}",
        f"1 outline of an object {kept}",
        f"1 difficult flag {kept}",
    )
    convert(awkward, tmp_path / "voc", VOC)
    root = ET.parse(tmp_path / "voc" / "Annotations" / "0.xml").getroot()
    assert [thing.findtext("name") for thing in root.iter("object")] == ["cat", "dog"]
    assert [thing.findtext("difficult") for thing in root.iter("object")] == ["0", "1"]
    corners = [corner.text for corner in root.find("object/bndbox")]
    assert corners == ["4.25", "5.5", "24.25", "15.5"]
    assert (tmp_path / "voc" / "ImageSets" / "Main" / "val.txt").read_text() == "val_0\nval_1\n"


def test_polygons_stay_polygons_in_yolo(tmp_path):
    content = coco_content(1, objects=1)
    content["annotations"][0] |= {"bbox": [8, 12, 32, 24], "segmentation": [[8, 12, 40, 12, 24, 36]], "area": 400}
    write_coco_folder(tmp_path / "a", {"train": content})
    assert convert(tmp_path / "a", tmp_path / "b", YOLO) == ()
    assert (tmp_path / "b" / "labels" / "train" / "0.txt").read_text() == "0 0.125 0.25 0.625 0.25 0.375 0.75\n"
    assert facts(tmp_path / "b") == facts(tmp_path / "a")
    (tmp_path / "b" / "opendetr.json").unlink()
    (thing,) = read_splits(tmp_path / "b")["train"].images[0].objects
    assert (thing.box, thing.area) == ((8, 12, 32, 24), 384)


def test_edited_rows_count_and_their_extras_do_not(awkward, tmp_path):
    convert(awkward, tmp_path / "yolo", YOLO)
    before = read_splits(tmp_path / "yolo")["train"]
    label = tmp_path / "yolo" / "labels" / "train" / "0.txt"
    label.write_text(label.read_text().replace(" ", "\t").replace("\n", "\r\n"))  # the same rows
    assert read_splits(tmp_path / "yolo")["train"].images == before.images
    label.write_text("1 0.5 0.5 0.25 0.5\n")
    after = read_splits(tmp_path / "yolo")["train"]
    assert [(thing.category_id, thing.box) for thing in after.images[0].objects] == [(7, (24, 12, 16, 24))]
    assert after.images[0].id == before.images[0].id
    assert after.images[1:] == before.images[1:]
    assert {f.kind: f.first for f in after.fault_counts}[FaultKind.STALE_EXTRA] == str(label)
    ids = [thing.id for image in after.images for thing in image.objects]
    assert len(set(ids)) == len(ids)


def test_classes_can_be_renamed_and_added_afterwards(awkward, tmp_path):
    convert(awkward, tmp_path / "yolo", YOLO)
    description = tmp_path / "yolo" / "data.yaml"
    description.write_text(description.read_text().replace("dog", "hound") + "  3: cow\n")
    categories = read_splits(tmp_path / "yolo")["train"].categories
    assert (categories.names, categories.ids) == (("cat", "hound", "unused", "cow"), (0, 7, 90, 91))
    description.write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"names 2 classes, opendetr.json 3; name them all") as error:
        read_splits(tmp_path / "yolo")
    one_line(error.value)


BROKEN_EXTRAS = {
    "no json": "{",
    "a list": "[]",
    "another version": '{"opendetr": 99}',
    "no classes": '{"opendetr": 1, "images": {}}',
    "a class too many": '{"opendetr": 1, "images": {}, "names": ["a"], "categories": {"names": [], "ids": []}}',
    "a wrong kind": '{"opendetr": 1, "images": {"x": {"id": "y"}}, "names": [], "categories": {"names":[], "ids":[]}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("fault", BROKEN_EXTRAS)
@pytest.mark.parametrize("to", [YOLO, VOC])
def test_a_broken_extra_file_is_said_in_one_line(awkward, tmp_path, fault, to):
    convert(awkward, tmp_path / "out", to)
    (tmp_path / "out" / "opendetr.json").write_text(BROKEN_EXTRAS[fault])
    with pytest.raises(DataError, match=r"opendetr.json: .*convert the dataset again, or delete this file") as error:
        read_splits(tmp_path / "out")
    one_line(error.value)


@pytest.mark.parametrize("change", ["category_id", "area", "size"])
def test_extras_that_cannot_be_are_refused(awkward, tmp_path, change):
    convert(awkward, tmp_path / "out", YOLO)
    path = tmp_path / "out" / "opendetr.json"
    content = json.loads(path.read_text())
    image = content["images"]["labels/train/0.txt"]
    if change == "size":
        image["size"] = [0, 5]
    else:
        image["objects"][0][change] = -5
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"opendetr.json: images.labels/train/0.txt: "):
        read_splits(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------- names and splits


def test_equal_names_are_told_apart(tmp_path):
    content = coco_content(4)
    names = ["a/1.png", "b/1.png", "b/1.jpg", "2.png"]
    for row, name in zip(content["images"], names, strict=True):
        row["file_name"] = name
    write_coco_folder(tmp_path / "source", {"train": content})
    notes = convert(tmp_path / "source", tmp_path / "voc", VOC)
    assert sorted(path.name for path in (tmp_path / "voc" / "JPEGImages").iterdir()) == [
        "2.png", "a_1.png", "b_1-2.jpg", "b_1.png",
    ]  # fmt: skip
    assert "3 images under a new name" in notes
    convert(tmp_path / "source", tmp_path / "coco", COCO)
    assert sorted(path.name for path in (tmp_path / "coco" / "images" / "train").iterdir()) == [
        "1.jpg", "2.png", "a_1.png", "b_1.png",
    ]  # fmt: skip
    for folder in ("voc", "coco"):
        after = [(i.id, i.objects) for i in read_splits(tmp_path / folder)["train"].images]
        assert after == [(i.id, i.objects) for i in read_splits(tmp_path / "source")["train"].images]


def test_overlapping_splits_share_their_images(tmp_path):
    lists = {"train": ["image_0", "image_2"], "val": ["image_4"], "trainval": ["image_0", "image_2", "image_4"]}
    write_voc_folder(tmp_path / "source", lists=lists)
    for to in WRITTEN_FORMATS:
        convert(tmp_path / "source", tmp_path / to, to)
        assert facts(tmp_path / to) == facts(tmp_path / "source")
    assert (tmp_path / "yolo" / "trainval.txt").read_text().splitlines()[-1] == "./images/val/image_4.jpg"
    assert len(list((tmp_path / "yolo").rglob("*.jpg"))) == 3


def test_names_that_other_formats_cannot_hold(tmp_path):
    content = coco_content(2)
    content["categories"] = [{"id": 3, "name": " big \n cat\x01"}, {"id": 7, "name": ""}, {"id": 9, "name": "big cat"}]
    content["annotations"][1]["category_id"] = 9
    for row, name in zip(content["images"], ["with space 1.png", "Ünïcode.png"], strict=True):
        row["file_name"] = name
    write_coco_folder(tmp_path / "source", {"train": content, "val": content})
    for to in (YOLO, VOC):
        convert(tmp_path / "source", tmp_path / to, to)
        assert facts(tmp_path / to) == facts(tmp_path / "source")


@pytest.mark.parametrize("name", ["names", "../up", "a/b"])
def test_splits_that_cannot_name_files_are_refused(awkward, tmp_path, name):
    data = replace(read_splits(awkward)["train"], split=name)
    with pytest.raises(DataError, match="cannot be part of a file name; rename it"):
        write_data({name: data}, tmp_path / "out", YOLO)
    assert not (tmp_path / "out").exists()


def test_boxes_annotated_before_an_exif_turn_stay_where_they_are(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    write_coco_folder(tmp_path / "source", {"train": coco_content(2)})
    Image.fromarray(make_image()).save(tmp_path / "source" / "images" / "0.png", exif=exif)
    for to in (YOLO, VOC):
        convert(tmp_path / "source", tmp_path / to, to)
        assert facts(tmp_path / to) == facts(tmp_path / "source")


# ------------------------------------------------------------------------------------------------ whole, or not at all


@pytest.mark.parametrize("to", WRITTEN_FORMATS)
def test_nothing_is_left_when_an_image_cannot_be_copied(awkward, tmp_path, to, monkeypatch):
    def full(source, target):
        if Path(source).name == "2.png":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        convert(awkward, tmp_path / "deep" / "out", to)
    assert list((tmp_path / "deep").iterdir()) == []


def test_nothing_is_written_over(awkward, tmp_path):
    for target in (awkward, awkward / "annotations" / "instances_train.json"):
        before = facts(awkward)
        with pytest.raises(DataError, match="not an empty folder; choose a new folder"):
            convert(awkward, target, YOLO)
        assert facts(awkward) == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not an empty folder"):
        convert(awkward, tmp_path / "link", YOLO)
    (tmp_path / "empty").mkdir()
    convert(awkward, tmp_path / "empty", YOLO)
    assert facts(tmp_path / "empty") == facts(awkward)


def test_what_cannot_be_written_is_refused(awkward, tmp_path):
    with pytest.raises(DataError, match="cannot write the format csv; choose coco, yolo, voc"):
        convert(awkward, tmp_path / "out", Format.TABLE)
    empty = replace(read_splits(awkward)["train"], images=())
    with pytest.raises(DataError, match="the dataset has no image to write"):
        write_data({"train": empty}, tmp_path / "out", COCO)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- any numbers, and the same score

NUMBERS = st.floats(-1e4, 1e4) | st.integers(-50, 150)
SIDES = st.floats(0, 1e4) | st.integers(0, 150)
THINGS = st.fixed_dictionaries(
    {"bbox": st.tuples(NUMBERS, NUMBERS, SIDES, SIDES), "category_id": st.sampled_from([3, 7])},
    optional={
        "area": st.floats(1e-3, 1e9),
        "iscrowd": st.integers(0, 1),
        "difficult": st.integers(0, 1),
        "segmentation": st.lists(st.lists(NUMBERS, min_size=5, max_size=8), max_size=2),
    },
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(things=st.lists(THINGS, max_size=4))
@example(things=[{"bbox": (0.0, -0.0, 1.0, 1.0), "category_id": 3}] * 2)
def test_any_numbers_come_back_bit_for_bit(tmp_path_factory, things):
    tmp_path = tmp_path_factory.mktemp("numbers")
    content = coco_content(1, objects=0)
    content["annotations"] = [
        thing | {"id": 5 - index, "image_id": 1, "bbox": list(thing["bbox"])} for index, thing in enumerate(things)
    ]
    write_coco_folder(tmp_path / "coco", {"train": content})
    for to in (YOLO, VOC):
        convert(tmp_path / "coco", tmp_path / to, to)
        assert facts(tmp_path / to) == facts(tmp_path / "coco")


@pytest.mark.parametrize("to", [YOLO, VOC])
@pytest.mark.parametrize("size", [(48, 64), (427, 1333), (1, 7)])
def test_boxes_with_a_few_decimals_need_no_extras(tmp_path, to, size):
    """Other programs write VOC and YOLO as well: what they wrote in full reads as the same numbers as COCO's."""
    height, width = size
    rng = random.Random(0)
    content = coco_content(1, objects=0)
    content["images"][0] |= {"height": height, "width": width}
    for index in range(200):
        x, y = round(rng.uniform(0, width * 0.9), 2), round(rng.uniform(0, height * 0.9), 2)
        box = [x, y, round(rng.uniform(0.01, width), 2), round(rng.uniform(0.01, height), 2)]
        content["annotations"].append({"id": index + 1, "image_id": 1, "category_id": 3, "bbox": box})
    write_coco_folder(tmp_path / "coco", {"train": content})
    convert(tmp_path / "coco", tmp_path / "out", to)
    (tmp_path / "out" / "opendetr.json").unlink()
    (before,), (after,) = (read_splits(tmp_path / name)["train"].images for name in ("coco", "out"))
    assert [thing.box for thing in after.objects] == [thing.box for thing in before.objects]
    assert [thing.area for thing in after.objects] == [thing.area for thing in before.objects]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[Format, Path]:
    """The same scenes in three formats, with annotation id 0, category id 0 and holes between the ids."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "drawn", counts={"val": 4}, seed=3)
    path = folder / "drawn" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for row in content["categories"]:
        row["id"] = (row["id"] - 1) * 3
    for row in content["annotations"]:
        row |= {"id": (row["id"] - 1) * 2, "category_id": (row["category_id"] - 1) * 3}
    assert {0} < {row["id"] for row in content["annotations"]} and {0} < {row["id"] for row in content["categories"]}
    path.write_text(json.dumps(content))
    for to in WRITTEN_FORMATS:
        convert(folder / "drawn", folder / to, to)
    return {to: folder / to for to in WRITTEN_FORMATS}


def test_the_shipped_detector_scores_the_same_in_three_formats(scenes):
    detector = load(DEFAULT_MODEL, device="cpu")
    scores = [detector.evaluate(open_split(folder, "val")) for folder in scenes.values()]
    assert scores[0].metrics["AP"] > 0.1
    for score in scores[1:]:
        assert score.metrics == scores[0].metrics
        assert score.per_class == scores[0].per_class
        assert score.results == scores[0].results


def test_an_untrained_model_scores_the_same_in_three_formats(scenes):
    torch.manual_seed(0)
    preset = miniature("detr-r50")
    data = {to: open_split(folder, "val") for to, folder in scenes.items()}
    categories = data[COCO].categories
    model = build_model(preset, len(categories))
    assert isinstance(model, DETR)
    predictor = Predictor(model, preset, categories, device="cpu")
    scores = [predictor.evaluate(part) for part in data.values()]
    assert [score.metrics for score in scores[1:]] == [scores[0].metrics] * 2
    assert [score.results for score in scores[1:]] == [scores[0].results] * 2


def test_shifted_truth_scores_the_same_in_three_formats(scenes):
    scores = [score_of_shifted_truth(open_split(folder, "val")) for folder in scenes.values()]
    assert 0.2 < scores[0]["AP"] < 0.99
    assert scores[1:] == [scores[0]] * 2


def test_a_folder_that_is_divided_is_divided_the_same_in_three_formats(tmp_path):
    write_voc_folder(tmp_path / "source", num_images=20)
    for to in WRITTEN_FORMATS:
        convert(tmp_path / "source", tmp_path / to, to)
    parts = [
        {name: [image.path.name for image in part.images] for name, part in open_data(tmp_path / to, seed=5).items()}
        for to in WRITTEN_FORMATS
    ]
    assert parts[1:] == [parts[0]] * 2
    assert set(parts[0]) == {"train", "val"}


def test_a_single_image_can_be_written(tmp_path):
    write_image(tmp_path / "source" / "images" / "0.png")
    (tmp_path / "source" / "labels").mkdir()
    (tmp_path / "source" / "labels" / "0.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    convert(tmp_path / "source", tmp_path / "voc", VOC)
    assert facts(tmp_path / "voc") == facts(tmp_path / "source")
