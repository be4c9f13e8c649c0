"""What a run draws of its data: statistics of the dataset, and the first batch as it is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from folders import coco_content, write_coco_folder
from opendetr.categories import Categories
from opendetr.cli.main import app
from opendetr.data import DataStatistics, DetectionData, denormalise, open_data
from opendetr.data.records import ObjectRecord
from opendetr.data.resizing import normalise
from opendetr.structures import Batch, ImageBatch, Target
from opendetr.training.data_images import BATCH_FILE, LABELS_FILE, DataImages, batch_sheet
from opendetr.training.events import BatchLoaded, RunStarted
from opendetr.visualize import draw_statistics
from opendetr.visualize.style import PALETTE

RED, BLUE = (230, 40, 40), (30, 60, 230)
PETS = Categories(("cat", "dog"), (3, 7), colours=(RED, BLUE))
GREY = torch.full((3, 40, 60), 128, dtype=torch.uint8)


def batch(*, masks: bool = False) -> Batch:
    """Two grey images of 60x40 and 40x30 pixels: the first has a dog in its right half, the second nothing."""
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[:, 10:30, 35:50] = True
    dog = Target(torch.tensor([1]), torch.tensor([[0.75, 0.5, 0.4, 0.8]]), (40, 60), (400, 600), 1,
                 masks=mask if masks else None)  # fmt: skip
    nothing = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (30, 40), (300, 400), 2,
                     masks=torch.zeros(0, 30, 40, dtype=torch.bool) if masks else None)  # fmt: skip
    images = ImageBatch.from_images([normalise(GREY), normalise(GREY[:, :30, :40])])
    return Batch(images, (dog, nothing), ("folder/a.png", "folder/b.png"))


def area(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of exactly this colour."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_denormalise_is_the_inverse_of_normalise():
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 4, 256)
    assert torch.equal(denormalise(normalise(pixels)), pixels)


def test_the_batch_is_drawn_as_it_is_trained_on():
    drawn = batch_sheet(batch(), PETS)
    left, top, right, bottom = area(drawn, (128, 128, 128))  # both images, without padding
    gap, strip = left, top
    assert right - left == pytest.approx(960 + gap, abs=2) and bottom - top == pytest.approx(360, abs=2)
    box = area(drawn, BLUE)  # the longer side of 60 pixels is drawn on 480
    expected = (gap + 33 * 8, strip + 4 * 8, gap + 57 * 8, strip + 36 * 8)
    assert box[0] == pytest.approx(expected[0], abs=6) and box[2:] == pytest.approx(expected[2:], abs=6)
    assert box[1] == pytest.approx(expected[1], abs=30)  # the class name is above the box


def test_masks_are_drawn_with_boxes_over_them():
    drawn = np.asarray(batch_sheet(batch(masks=True), PETS))
    inside, outside = drawn[24 + 20 * 8, 10 + 42 * 8], drawn[24 + 20 * 8, 10 + 52 * 8]
    assert inside[2] > inside[0] + 20 and min(inside) > 100  # pale blue over grey
    assert outside.tolist() == [128, 128, 128]  # in the box, outside the mask
    assert area(Image.fromarray(drawn), BLUE)[2] == pytest.approx(10 + 57 * 8, abs=6)  # the box


@pytest.fixture
def splits(tmp_path) -> dict[str, DetectionData]:
    folder = write_coco_folder(tmp_path / "pets", {"train": coco_content(4), "val": coco_content(2, first_id=9)})
    return open_data(folder)


@pytest.mark.parametrize(("step", "files"), [(0, {"labels.png", "batch.jpg"}), (3, set())])
def test_only_a_new_run_draws_its_data(tmp_path, splits, step, files):
    images = DataImages(splits)
    out = tmp_path / "run"
    images.on_start(RunStarted(out, step, 5, 10, "cpu", 0, {}))
    images.on_batch(BatchLoaded(step, batch()))
    found = {path.name for path in out.rglob("*") if path.is_file()}
    assert found == files
    if files:
        before = (out / BATCH_FILE).stat().st_mtime_ns
        images.on_batch(BatchLoaded(step + 1, batch()))
        assert (out / BATCH_FILE).stat().st_mtime_ns == before
        assert (out / LABELS_FILE).stat().st_size > 5000


def test_statistics_count_what_is_trained_on(splits):
    data = splits["train"]
    first = data.images[0]
    crowd = replace(first.objects[0], crowd=True)
    outside = ObjectRecord(id=1, category_id=7, box=(54, 38, 20, 20), area=400)  # 10x10 pixels of it are inside
    images = (replace(first, objects=(crowd, outside)), replace(first, objects=()))
    categories = Categories((*data.categories.names, "N/A"), (*data.categories.ids, 9), used=(True, True, False))
    statistics = DataStatistics.of(replace(data, images=images, categories=categories))
    assert statistics.class_counts == {"cat": 0, "dog": 1}
    assert statistics.box_sizes.tolist() == [[10 / 64, 10 / 48]]
    assert statistics.objects_per_image.tolist() == [1, 0]


def made(counts: dict[str, int], sizes: tuple[float, float] = (0.5, 0.1), per_image: tuple[int, ...] = (1,)):
    return DataStatistics(counts, np.full((sum(counts.values()), 2), sizes), np.array(per_image, dtype=np.int64))


def test_statistics_are_drawn_where_the_values_are():
    drawn = draw_statistics({"train": made({"cat": 10, "dog": 30}, per_image=(2, 2, 2, 8))})
    bars = np.asarray(drawn.crop((0, 80, 960, drawn.height))) == PALETTE[0]
    none, cats, dogs = sorted(set(bars.all(-1).sum(1).tolist()))  # the widths of bars
    assert none == 0 and dogs == pytest.approx(3 * cats, rel=0.02)
    left, top, right, bottom = area(drawn.crop((960, 60, 1920, 540)), PALETTE[0])  # one cell
    assert right - left < 30 and bottom - top < 20
    middle, height = (left + right) / 2, (top + bottom) / 2
    # The axes go from 0.1 to 1, and 0.5 is at 70 % of their logarithms.
    assert 600 < middle < 720 and height > 400
    left, top, right, bottom = area(drawn.crop((960, 640, 1920, 1080)), PALETTE[0])
    shares = (np.asarray(drawn.crop((960, 640, 1920, 1080))) == PALETTE[0]).all(-1).sum(0)
    assert shares[left] == pytest.approx(3 * shares[right - 2], rel=0.05)  # three images of two objects, one of eight


@pytest.mark.parametrize(
    "splits",
    [
        {"train": made({"cat": 0, "dog": 0}, per_image=(0, 0))},
        {"train": made({}, per_image=())},
        {"train": made({"cat": 1}, sizes=(1.0, 1.0)), "val": made({"cat": 0}, per_image=())},
        {"train": made({f"class {number}": number for number in range(200)}, per_image=(1000, 0, 3))},
        {"train": made({"a name that is longer than all the others and than the image itself " * 3: 3}, (1e-5, 1e-4))},
        {f"split {number}": made({"cat": 5}) for number in range(12)},
    ],
    ids=["no objects", "no classes", "empty split", "many classes", "long name", "many splits"],
)
def test_every_dataset_can_be_drawn(splits):
    drawn = draw_statistics(splits)
    assert drawn.width == 1920 and 1080 <= drawn.height < 1700


def test_data_check_draws_the_statistics(tmp_path, splits):
    folder = splits["train"].folder
    run = CliRunner().invoke(app, ["data", "check", str(folder), "--plot", str(tmp_path / "new" / "pets.png")])
    assert run.exit_code == 0 and f"per image: {tmp_path / 'new' / 'pets.png'}" in run.stderr
    with Image.open(tmp_path / "new" / "pets.png") as drawn:
        assert drawn.width == 1920
    run = CliRunner().invoke(app, ["data", "check", str(folder), "--plot", "pets.txt"])
    assert run.exit_code == 2 and "pets.txt: give a name that ends in .png" in run.stderr
    (folder / "annotations" / "instances_train.json").write_text("[")
    (folder / "annotations" / "instances_val.json").unlink()
    run = CliRunner().invoke(app, ["data", "check", str(folder), "--plot", str(tmp_path / "none.png")])
    assert run.exit_code == 1 and "none.png: not written" in run.stderr and not (tmp_path / "none.png").exists()
    assert not Path("pets.txt").exists()
