import json
import os
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional

from folders import make_image
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import coco_categories
from opendetr.data.augmentation import training_transform
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.images import read_image
from opendetr.data.records import ImageRecord, ObjectRecord, usable_objects
from opendetr.data.resizing import normalise, resize, resize_fast, resized_shape
from opendetr.data.transforms import Crop, EvaluationTransform, Flip, LabelledImage, Resize, evaluation_transform

GOLDEN = Path(__file__).parent / "goldens" / "detr" / "preprocess"
PREPROCESS = json.loads(GOLDEN.with_suffix(".json").read_text())
GEOMETRY = PREPROCESS["target_geometry"]
REAL_DATA = Path(os.environ.get("OPENDETR_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def labelled(height=80, width=100, boxes=((10.0, 20.0, 50.0, 60.0),)):
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return LabelledImage(make_image(height, width), array, np.arange(1, len(array) + 1), 42, (height, width))


def golden_input():
    given = GEOMETRY["input"]
    width, height = given["image_wh"]
    return labelled(height, width, given["boxes"])


@pytest.mark.parametrize("row", PREPROCESS["resize_table"]["rows"], ids=str)
def test_resized_shapes_are_the_published_ones(row):
    width, height, size, max_size, *expected = row
    assert list(resized_shape(height, width, size, max_size)) == expected


def test_a_resized_shape_never_vanishes():
    assert resized_shape(1, 5000, 800, 1333) == (1, 5000)
    assert resized_shape(5000, 2, 800, 1333) == (2500, 1)


STEPS = {
    "hflip": Flip(),
    "crop_i12_j30_h50_w60": Crop(12, 30, 50, 60),
    "resize_160_max190": Resize(*resized_shape(80, 100, 160, 190)),
    "resize_53": Resize(*resized_shape(80, 100, 53, None)),
}


@pytest.mark.parametrize("name", STEPS)
def test_boxes_follow_the_image_as_published(name):
    expected = GEOMETRY[name]
    result = STEPS[name].apply(golden_input())
    assert list(result.pixels.shape[:2]) == expected["image_hw"]
    np.testing.assert_allclose(result.boxes, expected["boxes"], atol=1e-5)
    assert result.labels.tolist() == expected["labels"]


def test_targets_are_those_published():
    target = golden_input().target()
    np.testing.assert_allclose(target.boxes, GEOMETRY["normalize"]["boxes"], atol=1e-7)
    assert target.boxes.dtype == torch.float32
    assert (target.size, target.original_size, target.image_id) == ((80, 100), (80, 100), 42)


def test_annotations_become_targets_as_published():
    golden = PREPROCESS["annotation_conversion"]
    width, height = golden["image_wh"]
    things = [
        ObjectRecord(
            id=index,
            category_id=row["category_id"],
            box=tuple(row["bbox"]),
            area=row["area"],
            crowd=row["iscrowd"] == 1,
        )
        for index, row in enumerate(golden["annotations"])
    ]
    kept, _ = usable_objects(things, height, width, "here")
    record = ImageRecord(id=42, path=Path("a.jpg"), height=height, width=width, objects=kept)
    result = LabelledImage.from_record(record, make_image(height, width), coco_categories())
    np.testing.assert_array_equal(result.boxes, golden["result"]["boxes"])
    assert result.labels.tolist() == golden["result"]["labels"]
    assert len(kept) == len(result.labels) + 1, "the crowd region stays for scoring"


@pytest.mark.parametrize(("height", "width", "size"), [(48, 64, 20), (48, 64, 100), (64, 48, 37), (64, 64, 64)])
def test_pixels_are_those_of_the_published_pipeline(height, width, size):
    image = make_image(height, width)
    shape = resized_shape(height, width, size, 120)
    expected = functional.to_tensor(functional.resize(Image.fromarray(image), list(shape)))
    expected = functional.normalize(expected, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(EvaluationTransform(size, 120).pixels(image), expected, rtol=0, atol=0)


@pytest.mark.skipif(not (REAL_DATA / "coco128").is_dir(), reason="needs the COCO images, which are not shipped")
@pytest.mark.parametrize("row", PREPROCESS["images"], ids=lambda row: row["name"])
def test_real_pixels_are_the_published_ones(row):
    arrays = np.load(GOLDEN.with_suffix(".npz"))
    image = read_image(REAL_DATA / "coco128" / "images" / "train2017" / row["name"])
    pixels = evaluation_transform(DataConfig()).pixels(image)
    assert list(image.shape[:2]) == row["orig_hw"]
    assert list(pixels.shape[1:]) == row["out_hw"]
    top, left = row["patch_top_left"]
    name = Path(row["name"]).stem
    patches = {
        "patch": pixels[:, top : top + 16, left : left + 16],
        "corner": pixels[:, -16:, -16:],
    }
    for kind, patch in patches.items():
        levels = (patch - torch.from_numpy(arrays[f"{name}_{kind}"])) * STD * 255
        assert levels.abs().max() <= 1.001
    np.testing.assert_allclose(pixels.mean((1, 2)), row["mean"], atol=2e-3)
    np.testing.assert_allclose(pixels.std((1, 2)), row["std"], atol=2e-3)


@pytest.mark.parametrize("seed", range(60))
def test_the_fast_resize_is_nearly_the_exact_one(seed):
    rng = np.random.default_rng(seed)
    image = make_image(*rng.integers(1, 200, 2), seed)
    height, width = rng.integers(1, 300, 2).tolist()
    exact, fast = resize(image, height, width), resize_fast(image, height, width)
    assert fast.dtype == np.uint8
    assert fast.shape == exact.shape
    assert np.abs(fast.astype(int) - exact).max() <= 1


def test_training_pixels_are_those_of_the_published_pipeline():
    """One resize: a grey level apart at most; two with a crop between them: two levels."""
    image = labelled(120, 160)
    transform = training_transform(DataConfig().resized(100))
    for seed in range(30):
        steps = transform.plan(120, 160, np.random.default_rng(seed))
        expected = Image.fromarray(image.pixels)
        for step in steps:
            if isinstance(step, Flip):
                expected = functional.hflip(expected)
            elif isinstance(step, Crop):
                expected = functional.crop(expected, step.top, step.left, step.height, step.width)
            else:
                expected = functional.resize(expected, [step.height, step.width])
        pixels = transform(image, np.random.default_rng(seed)).pixels
        levels = (pixels.int() - functional.pil_to_tensor(expected).int()).abs()
        assert levels.max() <= sum(isinstance(step, Resize) for step in steps)


def test_the_box_stays_on_its_object():
    """A white rectangle on black is drawn, transformed at random, and found again where the target says."""
    image = labelled(80, 100, [[30, 20, 70, 60]])
    image.pixels[:] = 0
    image.pixels[20:60, 30:70] = 255
    config = DataConfig(augmentation=AugmentationConfig(flip_vertical=True)).resized(64)
    transform = training_transform(config)
    seen = 0
    for seed in range(40):
        sample = transform(image, np.random.default_rng(seed))
        pixels, target = sample.pixels, sample.target
        height, width = target.size
        assert pixels.shape == (3, height, width)
        bright = pixels.float().mean(0) > 127
        for box in cxcywh_to_xyxy(target.boxes) * torch.tensor([width, height] * 2):
            rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
            found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (found - box).abs().max() <= 1.5
            seen += 1
    assert seen > 30


def test_a_crop_may_leave_nothing():
    cut = Crop(0, 0, 10, 10).apply(labelled(80, 100, [[50, 50, 60, 60], [10, 0, 20, 5]]))
    target = cut.target()
    assert len(target) == 0
    assert target.boxes.shape == (0, 4)


def test_an_image_without_objects_goes_through():
    target = training_transform(DataConfig().resized(64))(labelled(boxes=()), np.random.default_rng(0)).target
    assert target.boxes.shape == (0, 4)


def plans(config, height=480, width=640, count=2000):
    transform = training_transform(config)
    return [transform.plan(height, width, np.random.default_rng(seed)) for seed in range(count)]


def test_the_augmentation_is_detrs():
    all_steps = plans(DataConfig())
    flipped = [steps for steps in all_steps if isinstance(steps[0], Flip)]
    cropped = [steps for steps in all_steps if any(isinstance(step, Crop) for step in steps)]
    assert 0.46 < len(flipped) / 2000 < 0.54
    assert 0.46 < len(cropped) / 2000 < 0.54
    plain = [steps[-1] for steps in all_steps if steps not in cropped]
    assert {step.height for step in plain} == set(range(480, 801, 32))
    assert {step.width for step in plain if step.height == 800} == {1066}
    before = [next(step for step in steps if isinstance(step, Resize)) for steps in cropped]
    assert {(step.height, step.width) for step in before} == {(400, 533), (500, 666), (600, 800)}
    crops = [next(step for step in steps if isinstance(step, Crop)) for steps in cropped]
    for resized, crop in zip(before, crops, strict=True):
        assert 384 <= crop.height <= min(resized.height, 600)
        assert 384 <= crop.width <= min(resized.width, 600)
        assert 0 <= crop.top <= resized.height - crop.height
        assert 0 <= crop.left <= resized.width - crop.width
    assert max(crop.height for crop in crops) > 590
    assert max(crop.width for crop in crops) == 600
    assert min(crop.width for crop in crops) == 384
    assert max(max(steps[-1].height, steps[-1].width) for steps in all_steps) <= 1333


def test_small_images_have_the_same_augmentation_in_small():
    config = DataConfig().resized(256)
    small = training_transform(config).augmentation
    assert config.max_size == 427
    assert small.scales == (154, 164, 174, 184, 195, 205, 215, 225, 236, 246, 256)
    assert small.scales_before_crop == (128, 160, 192)
    assert small.crop_sides == (123, 192)
    assert {min(steps[-1].height, steps[-1].width) for steps in plans(config, 256, 256, 300)} == set(small.scales)


def test_parts_of_the_augmentation_can_be_turned_off():
    off = AugmentationConfig(flip=False, multi_scale=False, crop=False)
    config = DataConfig(image_size=192, max_size=256, augmentation=off)
    assert all(steps == [Resize(192, 256)] for steps in plans(config, count=20))
    flips = plans(replace(config, augmentation=replace(off, flip=True)), count=40)
    assert {len(steps) for steps in flips} == {1, 2}
    crops = plans(replace(config, max_size=400, augmentation=replace(off, crop=True)), count=40)
    assert {min(steps[-1].height, steps[-1].width) for steps in crops} == {192}
    vertical = plans(replace(config, augmentation=replace(off, flip_vertical=True)), count=400)
    assert 0.4 < sum(Flip(vertical=True) in steps for steps in vertical) / 400 < 0.6
    scales = plans(replace(config, augmentation=replace(off, multi_scale=True)), count=200)
    assert len({steps[-1].height for steps in scales}) == 11


@pytest.mark.parametrize("multiple", [16, 32])
def test_sides_are_rounded_to_a_multiple(multiple):
    config = DataConfig().resized(192)
    rounded = replace(config, side_multiple=multiple)
    shapes = set()
    for before, after in zip(plans(config), plans(rounded), strict=True):
        assert before[:-1] == after[:-1]
        for free, side in zip(astuple(before[-1])[:2], astuple(after[-1])[:2], strict=True):
            assert side % multiple == 0
            assert abs(side - free) <= multiple / 2
        shapes.add((after[-1].height, after[-1].width))
    assert len(shapes) < len({(steps[-1].height, steps[-1].width) for steps in plans(config)}) / 5


def test_a_rounded_side_stays_within_the_largest_shape():
    config = DataConfig(image_size=192, max_size=250, side_multiple=32)
    transform = training_transform(config)
    longest = {max(steps[-1].height, steps[-1].width) for steps in plans(config, 100, 400)}
    assert max(longest) == 224 == transform.largest_shape[1]
    assert min(min(steps[-1].height, steps[-1].width) for steps in plans(config, 4, 400, 50)) == 32


@pytest.mark.parametrize(("height", "width", "expected"), [(480, 640, (256, 352)), (640, 480, (352, 256)),
                                                         (100, 400, (96, 416)), (1, 900, (32, 416))])  # fmt: skip
def test_what_is_scored_is_rounded_as_what_is_learned_from(height, width, expected):
    config = DataConfig(side_multiple=32).resized(256)
    assert evaluation_transform(config).output_shape(height, width) == expected
    always_largest = replace(config.augmentation, scales=(800,), flip=False, crop=False)
    learned = plans(replace(config, augmentation=always_largest), height, width, 1)[0][-1]
    assert (learned.height, learned.width) == expected


def test_boxes_stretch_with_a_rounded_image():
    config = DataConfig(side_multiple=32).resized(40)
    sample = evaluation_transform(config)(labelled())
    pixels, target = sample.pixels, sample.target
    assert pixels.shape == (3, 32, 64)
    np.testing.assert_allclose(target.boxes, [[0.3, 0.5, 0.4, 0.5]], atol=1e-7)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (1, 7), (300, 20)])
def test_the_shape_is_known_beforehand(height, width):
    image = labelled(height, width, ())
    for transform in (training_transform(DataConfig().resized(40)), evaluation_transform(DataConfig().resized(40))):
        for seed in range(20):
            shape = transform.output_shape(height, width, np.random.default_rng(seed))
            sample = transform(image, np.random.default_rng(seed))
            pixels, target = sample.pixels, sample.target
            assert pixels.shape == (3, *shape)
            assert target.size == shape


def test_evaluation_leaves_nothing_to_chance():
    transform = evaluation_transform(DataConfig().resized(40))
    image = labelled()
    assert torch.equal(transform(image).pixels, transform(image, np.random.default_rng(1)).pixels)
    np.testing.assert_allclose(transform(image).target.boxes, [[0.3, 0.5, 0.4, 0.5]], atol=1e-7)


def test_resize_and_normalise():
    image = make_image()
    assert resize(image, 48, 64) is image
    assert resize(image, 10, 20).shape == (10, 20, 3)
    white = normalise(torch.full((3, 2, 3), 255, dtype=torch.uint8))
    torch.testing.assert_close(white[:, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / STD.flatten())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(image_size=0), "image_size: expected 1 to"),
        (lambda: DataConfig(image_size=100, max_size=99), "max_size .99"),
        (lambda: DataConfig(val_fraction=1.0), "val_fraction: expected a fraction"),
        (lambda: DataConfig(num_workers=-1), "num_workers: expected at least 0"),
        (lambda: DataConfig(cache="disk"), "cache: expected none or ram"),
        (lambda: DataConfig(augment="blur"), "augment: expected one of detr, colour, mosaic"),
        (lambda: DataConfig(batch_pixels=0), "batch_pixels: expected at least 1"),
        (lambda: AugmentationConfig(scales=()), "scales is"),
        (lambda: AugmentationConfig(crop_sides=(600, 384)), "the smaller length first"),
        (lambda: DataConfig(side_multiple=0), "side_multiple: expected at least 1"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
