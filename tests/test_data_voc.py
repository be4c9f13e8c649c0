import pytest
import torch
from PIL import Image

from folders import one_line, voc_xml, write_image, write_voc_folder
from opendetr.data.config import DataConfig
from opendetr.data.formats.recognise import Format, open_data, open_split
from opendetr.data.formats.voc import read_voc
from opendetr.data.loader import train_loader
from opendetr.data.records import DataError, FaultKind
from opendetr.data.tools.convert import write_data

LISTS = {
    "train": ["image_0", "image_2"],
    "val": ["image_4"],
    "trainval": ["image_0", "image_2", "image_4"],
    "test": ["image_1", "image_3", "image_5"],
    "ant_train": ["image_0 -1", "image_2 -1"],
}


def test_lists_are_the_splits(tmp_path):
    data = open_data(write_voc_folder(tmp_path, lists=LISTS))
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "val": 1, "test": 3, "trainval": 3}
    assert [image.path.name for image in data["test"].images] == ["image_1.jpg", "image_3.jpg", "image_5.jpg"]
    assert [image.id for image in data["test"].images] == [2, 4, 6]
    assert open_split(tmp_path, "trainval").images == data["trainval"].images


def test_classes_are_sorted_and_those_of_the_whole_folder(tmp_path):
    data = open_data(write_voc_folder(tmp_path, lists=LISTS))
    assert {part.categories.names for part in data.values()} == {("ant", "zebra")}
    assert data["train"].categories.ids == (1, 2)
    assert {thing.category_id for image in data["train"].images for thing in image.objects} == {2}


def test_boxes_are_differences_of_the_corners(tmp_path):
    thing = open_data(write_voc_folder(tmp_path))["train"].images[0].objects[0]
    assert thing.box == (10, 12, 20.5, 28)
    assert thing.area == 20.5 * 28
    assert not thing.crowd


def test_a_chosen_split_takes_the_place_of_train(tmp_path):
    data = open_data(write_voc_folder(tmp_path, lists=LISTS), train_split="trainval", val_split="test")
    assert (len(data["train"]), data["train"].split, data["val"].split) == (3, "trainval", "test")
    assert data["val"].fault_counts == ()
    overlapping = open_data(tmp_path, train_split="trainval")["val"].fault_counts
    assert [(entry.kind, entry.count) for entry in overlapping] == [(FaultKind.IN_TRAINING, 1)]


def test_a_folder_with_only_trainval_is_divided(tmp_path):
    names = {name: LISTS[name] for name in ("trainval", "test")}
    data = open_data(write_voc_folder(tmp_path, lists=names), val_fraction=0.3)
    assert {name: len(part) for name, part in data.items()} == {"train": 2, "val": 1, "test": 3, "trainval": 3}


def test_a_folder_without_lists_is_divided(tmp_path):
    data = open_data(write_voc_folder(tmp_path, num_images=10), val_fraction=0.2)
    assert {name: len(part) for name, part in data.items()} == {"train": 8, "val": 2}
    assert len(open_split(tmp_path, "all")) == 10


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>", "<width>inf</width><height>many</height>"])
def test_a_size_that_is_not_given_is_read_from_the_image(tmp_path, size):
    write_voc_folder(tmp_path)
    (tmp_path / "Annotations" / "image_0.xml").write_text(voc_xml("image_0", [("ant", [1, 2, 3, 4])], size))
    image = open_split(tmp_path, "all").images[0]
    assert (image.height, image.width) == (48, 64)


def test_an_image_may_have_another_name_or_suffix(tmp_path):
    write_voc_folder(tmp_path)
    images = tmp_path / "JPEGImages"
    (images / "image_1.jpg").unlink()
    (images / "image_2.jpg").unlink()
    write_image(images / "image_1.PNG")
    write_image(images / "other.png")
    (tmp_path / "Annotations" / "image_2.xml").write_text(voc_xml("other", []).replace("other.jpg", "other.png"))
    data = open_split(tmp_path, "all")
    assert [image.path.name for image in data.images[:3]] == ["image_0.jpg", "image_1.PNG", "other.png"]
    assert {entry.kind for entry in data.fault_counts} == {FaultKind.NO_OBJECTS}


def test_the_same_data_as_coco_gives_the_same_batches(tmp_path):
    voc = open_data(write_voc_folder(tmp_path / "voc", num_images=20), seed=5)
    write_data({split: voc[split] for split in ("train", "val")}, tmp_path / "coco", Format.COCO)
    coco = open_data(tmp_path / "coco")
    config = DataConfig(num_workers=0).resized(32)
    for split in ("train", "val"):
        pairs = zip(
            train_loader(voc[split], config, batch_size=2, seed=1).epoch(3),
            train_loader(coco[split], config, batch_size=2, seed=1).epoch(3),
            strict=True,
        )
        for a, b in pairs:
            assert torch.equal(a.images.pixels, b.images.pixels)
            for x, y in zip(a.targets, b.targets, strict=True):
                assert x.image_id == y.image_id
                assert torch.equal(x.boxes, y.boxes)
                assert torch.equal(x.labels, y.labels)
        truth, again = voc[split].to_coco(), coco[split].to_coco()
        assert truth["annotations"] == again["annotations"]
        assert truth["categories"] == again["categories"]


def test_the_same_data_as_coco_is_divided_the_same(tmp_path):
    voc = open_data(write_voc_folder(tmp_path / "voc", num_images=20), seed=5)
    write_data({"all": open_split(tmp_path / "voc", "all")}, tmp_path / "coco", Format.COCO)
    coco = open_data(tmp_path / "coco", seed=5)
    for split in ("train", "val"):
        assert [i.path.name for i in voc[split].images] == [i.path.name for i in coco[split].images]
        assert [i.id for i in voc[split].images] == [i.id for i in coco[split].images]


BROKEN = {
    "broken xml": ("<annotation><object>", "line 1, column 21: broken XML"),
    "empty": ("", "line 1, column 1: broken XML"),
    "other xml": ("<html/>", "expected <annotation>, found <html>"),
    "no name": ("<annotation><object/></annotation>", "object 1: <name> is missing"),
    "no box": ("<annotation><object><name>ant</name></object></annotation>", "object 1: <bndbox> has no <xmin>"),
    "text": (voc_xml("a", [("ant", [1, 2, "x", 4])]), "object 1: <xmax> is 'x'; expected a number"),
    "missing image": (voc_xml("image_9", [("ant", [1, 2, 3, 4])]), "the image .*image_9.jpg is missing"),
    "climbing": (voc_xml("../../../secret", [("ant", [1, 2, 3, 4])]), "leaves the data folder"),
    "absolute": (voc_xml("/etc/passwd", [("ant", [1, 2, 3, 4])]), "leaves the data folder"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_wrong_is_said_in_one_line(tmp_path, fault):
    text, message = BROKEN[fault]
    write_voc_folder(tmp_path)
    (tmp_path / "Annotations" / "image_8.xml").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        open_data(tmp_path)
    assert "image_8.xml" in one_line(error.value)


def test_boxes_with_wrong_numbers_are_skipped(tmp_path):
    write_voc_folder(tmp_path)
    boxes = [("ant", box) for box in ([5, 2, 3, 4], ["nan", 2, 3, 4], [1, 2, 1, 4], [1, 2, 3, 4])]
    (tmp_path / "Annotations" / "image_0.xml").write_text(voc_xml("image_0", boxes))
    data = open_split(tmp_path, "all")
    assert [(entry.kind, entry.count) for entry in data.fault_counts] == [
        (FaultKind.INVALID_BOX, 2),
        (FaultKind.NO_AREA, 1),
    ]
    assert data.fault_counts[0].first.endswith("image_0.xml, object 1")
    assert [thing.id for thing in data.images[0].objects] == [4]
    with pytest.raises(DataError, match="strict is set, and the data has 2 boxes"):
        open_split(tmp_path, "all", strict=True)


def test_a_listed_image_without_annotation_is_an_error(tmp_path):
    write_voc_folder(tmp_path, lists={"train": ["image_0", "../image_9"], "val": ["image_2"]})
    with pytest.raises(DataError, match=r"train.txt, line 2: '../image_9' has no .*.xml"):
        open_data(tmp_path)


def test_unknown_splits_are_refused(tmp_path):
    write_voc_folder(tmp_path, lists=LISTS)
    for read in (read_voc, open_split):
        with pytest.raises(DataError, match="no split 'night'; it has test, train, trainval, val") as error:
            read(tmp_path, "night")
        one_line(error.value)
    with pytest.raises(DataError, match="contains no XML files"):
        read_voc(tmp_path / "JPEGImages", "train")


def test_grey_images_open_too(tmp_path):
    write_voc_folder(tmp_path, num_images=2)
    Image.new("L", (64, 48), 77).save(tmp_path / "JPEGImages" / "image_0.jpg")
    batch = next(train_loader(open_split(tmp_path, "all"), DataConfig(num_workers=0), batch_size=2, seed=0).epoch(0))
    assert batch.images.pixels.shape[:2] == (2, 3)
