import json
import random

import pytest

from folders import coco_content, one_line, write_coco_folder, write_image
from opendetr.data.formats.coco import read_coco
from opendetr.data.formats.recognise import Format, open_data, open_split
from opendetr.data.images import read_record
from opendetr.data.records import DataError, FaultKind
from opendetr.data.tools.convert import write_data
from opendetr.synthetic import write_scenes


def fault_counts(data):
    return {entry.kind: entry.count for entry in data.fault_counts}


def with_boxes(*boxes, **extra):
    content = coco_content(2, objects=1)
    content["annotations"] += [
        {"id": 100 + index, "image_id": 1, "category_id": 3, "bbox": list(box), **extra}
        for index, box in enumerate(boxes)
    ]
    return content


def test_ids_with_holes_map_to_labels_and_back(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content(), "val": coco_content()})
    data = open_data(tmp_path)["train"]
    assert data.categories.names == ("cat", "dog")
    assert data.categories.ids == (3, 7)
    assert [thing.category_id for thing in data.images[0].objects] == [3, 7]
    assert data.images[0].objects[0].box == (4, 5.5, 20, 10)
    assert data.images[0].objects[0].area == 150.5
    assert data.summary() == "4 images, 8 objects, 2 classes"


@pytest.mark.parametrize("first_id", [0, 1])
def test_ids_may_start_at_zero(tmp_path, first_id):
    content = coco_content(first_id=first_id)
    for row in content["categories"]:
        row["id"] -= 3
    for row in content["annotations"]:
        row["category_id"] -= 3
    assert (content["annotations"][0]["id"] == 0) == (first_id == 0)
    write_coco_folder(tmp_path, {"train": content, "val": content})
    data = open_data(tmp_path)["train"]
    assert data.categories.ids == (0, 4)
    assert data.images[0].id == first_id
    truth = data.to_coco()
    assert min(row["id"] for row in truth["annotations"]) == 1
    assert len({row["id"] for row in truth["annotations"]}) == len(truth["annotations"]) == 8
    assert [row["category_id"] for row in truth["annotations"][:2]] == [0, 4]


def test_the_order_of_the_file_does_not_matter(tmp_path):
    content = coco_content(10)
    shuffled = {key: random.Random(0).sample(rows, len(rows)) for key, rows in content.items()}
    a = open_data(write_coco_folder(tmp_path / "a", {"all": content}), seed=3)
    b = open_data(write_coco_folder(tmp_path / "b", {"all": shuffled}), seed=3)
    for split in ("train", "val"):
        assert [image.objects for image in a[split].images] == [image.objects for image in b[split].images]
        assert [image.path.name for image in a[split].images] == [image.path.name for image in b[split].images]
    assert a["train"].categories == b["train"].categories


LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017"),
    "images folder": ("annotations/instances_{}.json", "images/{}"),
    "own names": ("annotations/cells_{}.json", "{}"),
    "roboflow": ("{}/_annotations.coco.json", "{}"),
    "beside": ("{}.json", "."),
    "one images folder": ("{}.json", "images"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_layouts_are_recognised(tmp_path, layout, val):
    annotations, images = LAYOUTS[layout]
    for split in ("train", val, "test"):
        path = tmp_path / annotations.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(coco_content(2 if split == "train" else 1)))
        for index in range(2):
            write_image(tmp_path / images.format(split) / f"{index}.png")
    data = open_data(tmp_path)
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "val": 1, "test": 1}
    assert all(read_record(image).shape == (48, 64, 3) for part in data.values() for image in part.images)
    assert open_split(tmp_path, "test").images == data["test"].images


def test_other_json_files_are_passed_over(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content()})
    (tmp_path / "annotations" / "panoptic_train.json").write_text("{}")
    (tmp_path / "package.json").write_text("[]")
    assert len(open_data(tmp_path)["train"]) == 3
    (tmp_path / "annotations" / "instances_train.json").rename(tmp_path / "cells.json")
    assert len(open_data(tmp_path)["train"]) == 3


def test_a_validation_split_is_made_when_there_is_none(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content(20)})
    names = {
        (seed, split): [image.path.name for image in part.images]
        for seed in (0, 1)
        for split, part in open_data(tmp_path, seed=seed, val_fraction=0.25).items()
    }
    assert len(names[0, "val"]) == 5
    assert sorted(names[0, "val"] + names[0, "train"]) == sorted(f"{index}.png" for index in range(20))
    assert names[0, "val"] != names[1, "val"]
    assert [image.path.name for image in open_split(tmp_path, "val", val_fraction=0.25).images] == names[0, "val"]
    assert len(open_split(tmp_path, "train", val_fraction=0.25)) == 15


def test_splits_can_be_chosen(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content(3), "val": coco_content(2), "night": coco_content(4)})
    data = open_data(tmp_path, train_split="night", val_split="train")
    assert {name: len(part) for name, part in data.items()} == {"train": 4, "val": 3, "night": 4}
    assert fault_counts(data["val"]) == {FaultKind.IN_TRAINING: 3}
    with pytest.raises(DataError, match="no split 'day'; it has night, train, val") as error:
        open_data(tmp_path, train_split="day")
    one_line(error.value)


def test_faults_are_counted_and_told(tmp_path):
    content = with_boxes(
        [float("nan"), 0, 5, 5], [0, 0, -5, 5], [0, 0, 0, 5], [70, 0, 5, 5], [-3, 40, 10, 20], [0, 0, 64.005, 48]
    )
    content["annotations"].append({**content["annotations"][-1], "id": 200, "bbox": [1, 2, 3, 4], "iscrowd": 1})
    del content["annotations"][1]
    write_coco_folder(tmp_path, {"train": content, "val": coco_content()})
    data = open_data(tmp_path)["train"]
    assert fault_counts(data) == {
        FaultKind.INVALID_BOX: 2,
        FaultKind.NO_AREA: 2,
        FaultKind.OUT_OF_IMAGE: 1,
        FaultKind.CROWD: 1,
        FaultKind.NO_OBJECTS: 1,
    }
    assert [thing.box for thing in data.images[0].objects[1:]] == [(-3, 40, 10, 20), (0, 0, 64.005, 48), (1, 2, 3, 4)]
    invalid = data.fault_counts[0]
    assert invalid.first.endswith("0.png, annotation 100")
    assert str(invalid) in data.summary()
    assert "1 box extending outside the image, clipped for training (first: " in data.summary()
    with pytest.raises(DataError, match=r"annotation 100: .*2 boxes with NaN") as error:
        open_data(tmp_path, strict=True)
    one_line(error.value)


def test_an_area_that_is_missing_is_that_of_the_box(tmp_path):
    content = with_boxes([0, 0, 4, 5], area=0)
    del content["annotations"][0]["area"]
    write_coco_folder(tmp_path, {"train": content, "val": content})
    assert [thing.area for thing in open_data(tmp_path)["train"].images[0].objects] == [200, 20]


def drop(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


BROKEN = {
    "no images key": (drop("images"), "not COCO: the key 'images' is missing"),
    "no annotations key": (drop("annotations"), "not COCO: the key 'annotations' is missing"),
    "no categories key": (drop("categories"), "not COCO: the key 'categories' is missing"),
    "images no list": (put({}, "images"), "'images' is not a list of objects"),
    "no images": (put([], "images"), "contains no images"),
    "no annotations": (put([], "annotations"), "no annotations"),
    "no category id": (drop("categories", 0, "id"), r"categories\[0\]: the key 'id' is missing"),
    "category twice": (put(3, "categories", 0, "id"), "two categories have the id 3"),
    "no category name": (drop("categories", 1, "name"), r"categories\[1\]: the key 'name' is missing"),
    "no image id": (drop("images", 1, "id"), r"images\[1\]: the key 'id' is missing"),
    "image id twice": (put(1, "images", 1, "id"), r"images\[1\]: the image id 1 is used twice"),
    "image id list": (put([1], "images", 1, "id"), r"images\[1\]: 'id' is \[1\]; expected a whole number"),
    "image id endless": (put(10**400, "images", 1, "id"), r"images\[1\]: 'id' is 1000"),
    "no file name": (drop("images", 0, "file_name"), r"images\[0\]: the key 'file_name' is missing"),
    "file name number": (put(7, "images", 0, "file_name"), r"images\[0\]: 'file_name' is 7; expected text"),
    "unknown image": (put(99, "annotations", 2, "image_id"), r"annotations\[2\] \(id 20\): its image, id 99"),
    "unknown category": (put(99, "annotations", 2, "category_id"), r"annotations\[2\] \(id 20\): its category, id 99"),
    "no box": (drop("annotations", 0, "bbox"), r"annotations\[0\] \(id 10\): the key 'bbox' is missing"),
    "box of three": (
        put([1, 2, 3], "annotations", 0, "bbox"),
        r"annotations\[0\] \(id 10\): 'bbox' is .*; expected four",
    ),
    "box of text": (
        put(["one", 2, 3, 4], "annotations", 0, "bbox"),
        r"annotations\[0\] \(id 10\): 'bbox' is .*; expected four",
    ),
    "missing image": (put("9.png", "images", 1, "file_name"), r"images\[1\]: the image .*9.png is missing"),
    "endless name": (put("a" * 300, "images", 1, "file_name"), r"images\[1\]: the image .*aaa is missing"),
    "name of two lines": (put("a\nb.png", "images", 1, "file_name"), r"images\[1\]: the image .*a b.png is missing"),
    "climbing": (put("../../etc/passwd", "images", 1, "file_name"), r"images\[1\]: .* leaves the data folder"),
    "hidden climbing": (put("a/../../b.png", "images", 0, "file_name"), r"images\[0\]: .* leaves the data folder"),
    "absolute": (put("/etc/passwd", "images", 1, "file_name"), r"images\[1\]: .* leaves the data folder"),
    "windows": (put("..\\..\\secret.png", "images", 0, "file_name"), r"images\[0\]: .* leaves the data folder"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_wrong_is_said_in_one_line(tmp_path, fault):
    change, message = BROKEN[fault]
    write_coco_folder(tmp_path, {"train": coco_content(), "val": coco_content()})
    content = coco_content()
    change(content)
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        open_data(tmp_path)
    assert str(tmp_path) in one_line(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1, column 1: broken JSON"),
        (b'{"images": [\n{"id": 1,', "line 2, column 10: broken JSON"),
        (b"\xff\xfe\xfa\x00", "broken JSON"),
        (b"[1, 2]", "not COCO: expected an object with images, annotations, categories, got a list"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
        (b'{"images": ' + b"1" * 5000 + b"}", "broken JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    write_coco_folder(tmp_path, {"train": coco_content(), "val": coco_content()})
    path = tmp_path / "annotations" / "instances_val.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message) as error:
        open_data(tmp_path)
    assert str(path) in one_line(error.value)


def test_folders_without_data_are_told_apart(tmp_path):
    messages = {}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write_image(tmp_path / "pictures" / "a.png")
    for name in ("missing", "empty", "file", "pictures"):
        with pytest.raises(DataError) as error:
            open_data(tmp_path / name)
        messages[name] = one_line(error.value).removeprefix(f"{tmp_path / name}: ").split(";")[0]
    assert messages == {
        "missing": "no such folder",
        "empty": "the folder is empty",
        "file": "a file, not a folder",
        "pictures": "contains no annotations",
    }


def test_all_images_missing_names_the_folders_looked_into(tmp_path):
    tmp_path = tmp_path / "set"
    write_coco_folder(tmp_path, {"train": coco_content()}, images="../elsewhere")
    with pytest.raises(DataError, match=r"its images \(0.png, ...\) are missing; put them into one of") as error:
        open_data(tmp_path)
    one_line(error.value)


def test_a_linked_images_folder_is_fine(tmp_path):
    write_coco_folder(tmp_path / "set", {"train": coco_content()}, images="../pictures")
    (tmp_path / "set" / "images").symlink_to(tmp_path / "pictures")
    data = open_data(tmp_path / "set")["train"]
    assert read_record(data.images[0]).shape == (48, 64, 3)


def test_empty_image_files_are_counted_and_skipped(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content(10)})
    (tmp_path / "images" / "3.png").write_bytes(b"")
    data = open_data(tmp_path)
    assert len(data["train"]) + len(data["val"]) == 9
    assert fault_counts(data["train"]) == {FaultKind.EMPTY_FILE: 1}
    with pytest.raises(DataError, match=r"3\.png.*zero bytes"):
        open_split(tmp_path, "val", strict=True)


def test_sizes_that_the_file_does_not_give_are_read_from_the_images(tmp_path):
    content = coco_content()
    write_coco_folder(tmp_path, {"train": content})
    for row in content["images"]:
        row["height"] = 0
        del row["width"]
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    assert {(image.height, image.width) for image in open_data(tmp_path)["train"].images} == {(48, 64)}


def test_classes_are_those_of_all_splits(tmp_path):
    val = coco_content()
    val["categories"].append({"id": 5, "name": "bird"})
    write_coco_folder(tmp_path, {"train": coco_content(), "val": val})
    data = open_data(tmp_path)
    assert data["train"].categories == data["val"].categories
    assert data["train"].categories.names == ("cat", "bird", "dog")
    val["categories"][0]["name"] = "wolf"
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(val))
    with pytest.raises(DataError, match="category 7 is 'wolf' here and 'dog' in another split"):
        open_data(tmp_path)


def test_what_is_written_is_read_back(tmp_path):
    content = with_boxes([1, 2, 3, 4], iscrowd=1, segmentation={"counts": [0, 9], "size": [48, 64]})
    data = open_data(write_coco_folder(tmp_path / "a", {"train": content, "val": coco_content()}))
    write_data(data, tmp_path / "b", Format.COCO)
    again = open_data(tmp_path / "b")
    for split, part in data.items():
        assert again[split].to_coco()["annotations"] == part.to_coco()["annotations"]
        assert again[split].categories == part.categories
        assert [image.id for image in again[split].images] == [image.id for image in part.images]
    with pytest.raises(DataError, match="not an empty folder"):
        write_data(data, tmp_path / "b", Format.COCO)


def test_too_few_images_to_divide(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content(1)})
    with pytest.raises(DataError, match="too few for a validation split"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, val_split="train")["val"]) == 1
    with pytest.raises(DataError, match="between 0 and 1"):
        open_data(tmp_path, val_fraction=1.5)


def test_a_lone_file_is_read(tmp_path):
    write_coco_folder(tmp_path, {"train": coco_content()})
    data = read_coco(tmp_path / "annotations" / "instances_train.json", tmp_path / "images")
    assert (len(data), data.split, data.file_name(data.images[0])) == (4, "all", "0.png")


def test_generated_scenes_are_a_data_set(tmp_path):
    write_scenes(tmp_path / "scenes", counts={"train": 6, "val": 3})
    data = open_data(tmp_path / "scenes")
    assert (len(data["train"]), len(data["val"])) == (6, 3)
    assert len(data["train"].categories) == 12
    assert not [kind for kind in fault_counts(data["train"]) if kind not in (FaultKind.CROWD, FaultKind.NO_OBJECTS)]
