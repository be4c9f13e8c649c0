"""The reader on a real dataset that is not shipped: `OPENDETR_TEST_DATA` says where it is."""

import os
from pathlib import Path

import pytest

from opendetr.data.config import DataConfig
from opendetr.data.formats.recognise import open_data, open_split
from opendetr.data.images import read_record
from opendetr.data.loader import eval_loader
from opendetr.data.records import FaultKind
from opendetr.data.tools.check import Demands, check_data

REAL_DATA = Path(os.environ.get("OPENDETR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
BCCD = REAL_DATA / "bccd"

pytestmark = pytest.mark.skipif(not BCCD.is_dir(), reason="needs the BCCD images, which are not shipped")


def test_bccd_opens_as_it_is():
    data = open_data(BCCD)
    assert {name: len(part) for name, part in data.items()} == {"train": 205, "val": 87, "test": 72, "trainval": 292}
    assert data["train"].categories.names == ("Platelets", "RBC", "WBC")
    assert {(image.height, image.width) for part in data.values() for image in part.images} == {(480, 640)}
    images = {image.id for part in data.values() for image in part.images}
    assert images == set(range(1, 365))
    without_area = [entry for name in ("trainval", "test") for entry in data[name].fault_counts]
    assert [(entry.kind, entry.count) for entry in without_area] == [(FaultKind.NO_AREA, 2)]
    assert "BloodImage_00338.xml, object 13" in data["trainval"].summary()
    assert "BloodImage_00343.xml, object 4" in data["train"].summary()
    assert data["trainval"].num_objects + data["test"].num_objects + 2 == 4888


def test_a_check_names_the_boxes_of_bccd_without_area():
    report = check_data(BCCD, Demands(image_size=256, max_size=427, num_queries=50))
    (kind,) = report.faults
    places = {(Path(fault.file).name, fault.at) for fault in report.faults[kind]}
    assert kind is FaultKind.NO_AREA
    assert places == {("BloodImage_00338.xml", "object 13"), ("BloodImage_00343.xml", "object 4")}


def test_bccd_images_fit_their_annotations():
    data = open_split(BCCD, "test")
    assert {read_record(image).shape for image in data.images} == {(480, 640, 3)}
    batches = list(eval_loader(data, DataConfig(image_size=192, max_size=256, num_workers=0), batch_size=8))
    assert sum(len(batch) for batch in batches) == 72
    assert sum(len(target) for batch in batches for target in batch.targets) == data.num_objects
    assert {tuple(batch.images.pixels.shape[1:]) for batch in batches} == {(3, 192, 256)}
