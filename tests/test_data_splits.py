"""Dividing a dataset: every class in every part, the same whatever the order of the files."""

import random
from collections import Counter
from pathlib import Path

import pytest

from folders import coco_content, one_line, write_coco_folder
from opendetr.config import SettingError
from opendetr.data.formats.recognise import open_split, read_splits
from opendetr.data.formats.splits import pooled, stratified, usual_split
from opendetr.data.records import DataError, ImageRecord, ObjectRecord
from opendetr.synthetic import write_captioned_scenes


def image(index: int, *classes: int) -> ImageRecord:
    things = tuple(
        ObjectRecord(id=number, category_id=label, box=(0, 0, 1, 1), area=1) for number, label in enumerate(classes)
    )
    return ImageRecord(id=index, path=Path(f"{index}.png"), height=9, width=9, objects=things)


def mixed(number: int) -> list[ImageRecord]:
    """Images of which half have class 1, a fifth class 2, a twentieth class 3, and some none."""
    rng = random.Random(0)
    chances = {1: 0.5, 2: 0.2, 3: 0.05}
    return [image(index, *(label for label, p in chances.items() if rng.random() < p)) for index in range(number)]


FRACTIONS = {"train": 0.7, "val": 0.2, "test": 0.1}


def classes(images: list[ImageRecord]) -> Counter[int]:
    return Counter(label for each in images for label in {thing.category_id for thing in each.objects} or {0})


def test_every_class_has_its_share_in_every_part():
    images = mixed(400)
    parts = stratified(images, FRACTIONS, seed=0)
    assert sorted(each.id for part in parts.values() for each in part) == list(range(400))
    whole = classes(images)
    for name, share in FRACTIONS.items():
        assert len(parts[name]) == pytest.approx(share * 400, abs=4)
        for label, count in classes(parts[name]).items():
            assert count == pytest.approx(share * whole[label], abs=2.5)


def test_a_class_of_a_few_images_is_in_every_part():
    images = [image(index, 1) for index in range(60)] + [image(60 + index, 1, 2) for index in range(3)]
    parts = stratified(images, {"a": 0.34, "b": 0.33, "c": 0.33}, seed=1)
    assert [classes(part)[2] for part in parts.values()] == [1, 1, 1]


def test_the_order_of_the_images_does_not_matter_and_the_seed_does():
    images = mixed(100)
    parts = stratified(images, FRACTIONS, seed=0)
    again = stratified(random.Random(1).sample(images, len(images)), FRACTIONS, seed=0)
    other = stratified(images, FRACTIONS, seed=1)
    for name in FRACTIONS:
        assert [each.id for each in parts[name]] == sorted(each.id for each in again[name])
        assert parts[name] != other[name]


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"a": 0.5, "b": 0.6}, "the fractions add up to 1.1"),
        ({"a": 1.5}, "the fraction of 'a' is 1.5"),
        ({"a": float("nan")}, "the fraction of 'a' is nan"),
        ({"a": 0.0, "b": 1.0}, "the fraction of 'a' is 0"),
        ({"../a": 1.0}, "the split '../a' cannot be part of a file name"),
        ({"a": 0.98, "b": 0.01, "c": 0.01}, "10 images are too few: 'b' would get none"),
    ],
)
def test_shares_that_cannot_be_are_refused(fractions, message):
    with pytest.raises((DataError, SettingError)) as error:
        stratified(mixed(10), fractions, seed=0)
    assert message in one_line(error.value)


def test_splits_are_pooled_with_ids_of_their_own(tmp_path):
    one, two = coco_content(2), coco_content(2)
    for row in two["images"]:
        row["file_name"] = f"more_{row['file_name']}"
    splits = read_splits(write_coco_folder(tmp_path / "equal ids", {"train": one, "val": two}))
    whole = pooled(splits)
    assert [each.id for each in whole.images] == [1, 2, 3, 4]
    assert [thing.id for each in whole.images for thing in each.objects] == list(range(1, 9))
    overlapping = read_splits(write_coco_folder(tmp_path / "overlap", {"train": one, "trainval": one}))
    assert pooled(overlapping).images == overlapping["train"].images


@pytest.mark.parametrize(
    ("name", "split"),
    [("train2017", "train"), ("valid", "val"), ("cells_test", "test"), ("TrainVal", "trainval"), ("night", "night")],
)
def test_usual_names_are_recognised(name, split):
    assert usual_split(name) == split


def test_a_missing_validation_split_is_named_where_none_can_be_made(tmp_path):
    write_captioned_scenes(tmp_path, counts={"test": 1})
    with pytest.raises(DataError, match=r"no split 'val'; it has test$"):
        open_split(tmp_path, "val")
    assert len(open_split(tmp_path, "test")) == 3
