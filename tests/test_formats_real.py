"""YOLO and the conversions on real datasets that are not shipped: `OPENDETR_TEST_DATA` says where they are."""

import os
from pathlib import Path

import pytest

from opendetr.data.formats.recognise import open_data, open_split, read_splits
from opendetr.data.images import read_record
from opendetr.data.records import FaultKind
from opendetr.data.tools.convert import WRITTEN_FORMATS, convert
from shifted_truth import score_of_shifted_truth

REAL_DATA = Path(os.environ.get("OPENDETR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
BCCD, COCO128 = REAL_DATA / "bccd", REAL_DATA / "coco128"

pytestmark = pytest.mark.skipif(not BCCD.is_dir(), reason="needs the BCCD and COCO128 images, which are not shipped")


def test_coco128_opens_as_it_is():
    data = open_data(COCO128 / "object_detection")
    assert {name: len(part) for name, part in data.items()} == {"train": 128, "val": 128}
    assert data["train"].num_objects + data["val"].num_objects == 1827  # of 1,839 rows, 12 are of two images not there
    assert data["train"].categories.ids == tuple(range(80))
    found = {entry.kind: entry.count for entry in data["train"].fault_counts}
    assert found == {FaultKind.UNLABELLED_IMAGE: 2, FaultKind.NO_OBJECTS: 2, FaultKind.ORPHAN_LABELS: 2}
    assert all(read_record(image).shape == (image.height, image.width, 3) for image in data["val"].images[:10])


def test_coco128_polygons_open_as_they_are():
    data = open_data(COCO128 / "instance_segmentation")
    assert {name: len(part) for name, part in data.items()} == {"train": 100, "val": 100}
    assert (data["val"].categories.ids[:2], data["val"].categories.ids[-1]) == ((1, 2), 90)
    assert all(thing.segmentation for image in data["val"].images for thing in image.objects)
    assert {entry.kind for entry in data["val"].fault_counts} == {FaultKind.OMITTED_IMAGE}


def facts(folder):
    return {
        name: [(i.id, i.path.name, i.height, i.width, i.objects) for i in data.images]
        for name, data in read_splits(folder).items()
    }


@pytest.mark.parametrize("source", ["bccd", "coco128/object_detection", "coco128/instance_segmentation"])
def test_real_data_comes_back_bit_for_bit(tmp_path, source):
    before = facts(REAL_DATA / source)
    for to in WRITTEN_FORMATS:
        convert(REAL_DATA / source, tmp_path / to, to, link=True)
        assert facts(tmp_path / to) == before


def test_bccd_scores_the_same_in_three_formats(tmp_path):
    expected = score_of_shifted_truth(open_split(BCCD, "test"))
    assert 0.2 < expected["AP"] < 0.99
    for to in WRITTEN_FORMATS:
        convert(BCCD, tmp_path / to, to, link=True)
        assert score_of_shifted_truth(open_split(tmp_path / to, "test")) == expected
