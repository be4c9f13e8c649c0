"""What training does to images beyond DETR's augmentation: found again by brute force on drawn scenes."""

import colorsys
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from folders import make_image
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.data.augmentation import EXTRA_AUGMENTATIONS, ColourJitter, CopyPaste, Mosaic, training_transform
from opendetr.data.config import Augment, AugmentationConfig, DataConfig
from opendetr.data.loader import sample_rng
from opendetr.data.records import DataError, ImageRecord, ObjectRecord
from opendetr.data.transforms import LabelledImage, evaluation_transform
from opendetr.structures import Target
from opendetr.synthetic import CATEGORIES, SceneConfig, draw_scene

THINGS = [category for category in CATEGORIES if category["isthing"]]
CLASSES = Categories(tuple(thing["name"] for thing in THINGS), tuple(thing["id"] for thing in THINGS))
NUM_SCENES = 8
PLAIN = AugmentationConfig(flip=False, multi_scale=False, crop=False)


@cache
def scene(index):
    return draw_scene(index, config=SceneConfig(size=96))


def polygons(mask):
    """A rectangle for every run of pixels of a row: exact, as no contour would be."""
    rows = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(int), [0]))))
        rows += [[float(a), float(y), float(b - 1), float(y), float(b - 1), float(y)] for a, b in edges.reshape(-1, 2)]
    return rows


@cache
def record(index, with_polygons=True):
    """A scene as the dataset has it: crowd regions too."""
    drawn = scene(index)
    things = []
    for thing in drawn.objects:
        x0, y0, x1, y1 = thing.box
        outline = polygons(drawn.segments == thing.id) if with_polygons else None
        things.append(
            ObjectRecord(id=thing.id, category_id=thing.category_id, box=(x0, y0, x1 - x0, y1 - y0),
                         area=thing.area, crowd=thing.iscrowd, segmentation=outline)
        )  # fmt: skip
    return ImageRecord(id=index, path=None, height=96, width=96, objects=tuple(things))


def labelled(index, with_polygons=True, pixels=None):
    pixels = scene(index).image if pixels is None else pixels
    return LabelledImage.from_record(record(index, with_polygons), pixels, CLASSES)


def trained_on(index):
    return [thing for thing in scene(index).objects if not thing.iscrowd]


def transformed(augment, seed, *, augmentation=PLAIN, with_polygons=True, pixels=None, size=80):
    """Image `seed` as a recipe leaves it. `pixels` maps an image's number to what takes the place of its image."""
    transform = training_transform(DataConfig(augment=augment, augmentation=augmentation).resized(size))
    images = [labelled(index, with_polygons, pixels(index) if pixels else None) for index in range(NUM_SCENES)]
    sample = transform(images[seed % NUM_SCENES], sample_rng(seed, 0, 0), images)
    return sample.pixels, sample.target


def boxes_in_pixels(target):
    return cxcywh_to_xyxy(target.boxes) * torch.tensor([*target.size[::-1]] * 2)


def marked(index, labels):
    """A scene in black, but for the objects of three classes: each lights up a channel."""
    drawn = scene(index)
    channels = [np.isin(drawn.segments, [thing.id for thing in trained_on(index) if label_of(thing) == label])
                for label in labels]  # fmt: skip
    return np.stack(channels, -1).astype(np.uint8) * 255


def label_of(thing):
    return CLASSES.label_of_id(thing.category_id)


FULL = AugmentationConfig(flip_vertical=True)


@pytest.mark.parametrize("augment", ["mosaic", "copy-paste"])
@pytest.mark.parametrize("augmentation", [PLAIN, FULL], ids=["plain", "detr"])
def test_objects_lie_in_boxes_of_their_class(augment, augmentation):
    """The same is done to images of the objects alone: what is seen of a class lies in its boxes."""
    num_pixels = num_outside = num_boxes = num_empty = 0
    for seed in range(16):
        _, target = transformed(augment, seed, augmentation=augmentation)
        assert ((target.boxes >= 0) & (target.boxes <= 1)).all()
        boxes = boxes_in_pixels(target)
        for first in range(0, len(CLASSES), 3):
            labels = range(first, first + 3)
            pixels, other = transformed(
                augment, seed, augmentation=augmentation, pixels=lambda index, labels=labels: marked(index, labels)
            )
            assert torch.equal(other.boxes, target.boxes), "the boxes do not depend on the pixels"
            for label, channel in zip(labels, pixels > 127, strict=True):
                y, x = channel.nonzero().T[..., None]
                x0, y0, x1, y1 = boxes[target.labels == label].T
                inside = (x >= x0 - 1.5) & (x <= x1 + 0.5) & (y >= y0 - 1.5) & (y <= y1 + 0.5)
                num_pixels += len(inside)
                num_outside += int((~inside.any(1)).sum())
                num_boxes += inside.shape[1]
                num_empty += int((~inside.any(0)).sum())
    assert num_boxes > 100
    assert num_pixels > 20_000
    # A mosaic drops objects that it cuts off but for a tenth; what is left of others may be an empty corner of the box.
    assert num_outside <= (0.01 * num_pixels if augment == "mosaic" else 0)
    assert num_empty <= (0.01 if (augment, augmentation) == ("copy-paste", PLAIN) else 0.05) * num_boxes


def test_a_mosaic_shows_four_images_and_their_objects():
    """Its tiles are of the images that it was given; its labels those of the objects that are in them."""
    colours = [
        (200, 0, 0),
        (0, 200, 0),
        (0, 0, 200),
        (200, 200, 0),
        (0, 200, 200),
        (200, 0, 200),
        (90, 90, 90),
        (9, 9, 9),
    ]
    seen, counts = set(), []
    for seed in range(40):
        flat = lambda index: np.full((96, 96, 3), colours[index], dtype=np.uint8)  # noqa: E731
        pixels, target = transformed("mosaic", seed, pixels=flat)
        found = {tuple(pixel) for pixel in pixels.flatten(1).T.tolist()}
        assert len(found) <= 4
        assert colours[seed % NUM_SCENES] in found, "the image itself is always there"
        assert pixels.shape == (3, 80, 80)
        counts.append(len(found))
        if len(found) == 1 and torch.equal(target.labels, torch.from_numpy(labelled(seed % NUM_SCENES).labels)):
            continue
        present = {colours.index(colour) for colour in found}
        allowed = {label for index in present for label in labelled(index).labels.tolist()}
        assert set(target.labels.tolist()) <= allowed
        seen |= present
    assert 0.3 < counts.count(1) / 40 < 0.7, "half of the images stay as they are"
    assert seen == set(range(NUM_SCENES))


def test_a_mosaic_is_as_sharp_as_its_images():
    """Tiles are resized once, straight to their size on the canvas."""
    image = LabelledImage(make_image(200, 300), np.zeros((0, 4)), np.zeros(0, int), 0, (200, 300))
    mosaic = Mosaic(probability=1)(image, [image], (120, 180), np.random.default_rng(0))
    assert mosaic.pixels.shape == (120, 180, 3)
    assert mosaic.pixels.std() > 0.7 * image.pixels.std()


def test_boxes_in_a_mosaic_are_around_the_pixels_that_are_seen():
    """Each image has a white rectangle; cropped and resized, its box is around what is left."""
    images = []
    for index, (height, width) in enumerate([(200, 300), (400, 150), (90, 120), (300, 300), (150, 500)]):
        box = np.array([[0.2 * width, 0.3 * height, 0.7 * width, 0.8 * height]]).round()
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[int(box[0, 1]) : int(box[0, 3]), int(box[0, 0]) : int(box[0, 2])] = 255
        images.append(LabelledImage(pixels, box, np.array([index]), index, (height, width)))
    for seed in range(20):
        mosaic = Mosaic(probability=1)(images[seed % 5], images, (240, 360), np.random.default_rng(seed))
        assert len(mosaic.boxes) == len(mosaic.labels) > 2
        for x0, y0, x1, y1 in mosaic.boxes:
            around = mosaic.pixels[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1)), 0]
            assert abs((x1 - x0) * (y1 - y0) - around.sum() / 255) < x1 - x0 + y1 - y0  # a pixel at the border


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (1, 500), (4, 90), (500, 3)])
def test_a_mosaic_of_any_shape(shape):
    sizes = [(96, 96), (1, 1), (1, 700), (700, 1), (3, 2)]
    images = [LabelledImage(make_image(h, w), np.array([[0.0, 0, w, h]]), np.array([1]), 0, (h, w)) for h, w in sizes]
    for seed in range(20):
        mosaic = Mosaic(probability=1)(images[seed % 5], images, shape, np.random.default_rng(seed))
        assert mosaic.pixels.shape[:2] in (shape, sizes[seed % 5])
        assert (mosaic.boxes[:, 2:] > mosaic.boxes[:, :2]).all()
        assert (mosaic.boxes >= 0).all()
        assert (mosaic.boxes <= [*mosaic.pixels.shape[1::-1]] * 2).all()


def paste(seed, with_polygons=True, **options):
    images = [labelled(index, with_polygons) for index in range(NUM_SCENES)]
    image = images[seed % NUM_SCENES]
    return image, CopyPaste(probability=1, **options)(image, images, (80, 80), np.random.default_rng(seed))


@pytest.mark.parametrize("with_polygons", [True, False])
def test_pasting_loses_no_object_and_adds_some(with_polygons):
    num_added = 0
    for seed in range(40):
        image, pasted = paste(seed, with_polygons)
        count = len(image.labels)
        assert pasted.labels[:count].tolist() == image.labels.tolist()
        assert len(pasted.labels) <= count + 5
        assert len(pasted.labels) == len(pasted.boxes)
        assert (pasted.boxes[:, 2:] > pasted.boxes[:, :2]).all()
        own, before = pasted.boxes[:count], image.boxes
        assert (own[:, :2] >= before[:, :2]).all() and (own[:, 2:] <= before[:, 2:]).all(), "boxes only shrink"
        changed = (pasted.pixels != image.pixels).any(2)
        for box in pasted.boxes[count:].astype(int):
            changed[box[1] : box[3], box[0] : box[2]] = False
        assert not changed.any(), "pixels change in the new boxes alone"
        num_added += len(pasted.labels) - count
    assert num_added > 40


def test_pasted_objects_are_cut_out_along_their_polygons():
    """A white disc comes to a black image as a white disc, not as the square around it."""
    canvas = Image.new("L", (96, 96))
    corners = [(48 + 30 * np.cos(a), 48 + 30 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 60, endpoint=False)]
    ImageDraw.Draw(canvas).polygon(corners, fill=1)
    disc = np.array(canvas, dtype=bool)
    pixels = np.where(disc[..., None], np.uint8(255), np.uint8(90)).repeat(3, 2)
    outline = [[float(number) for corner in corners for number in corner]]
    box = np.array([[18.0, 18, 79, 79]])
    donor = LabelledImage(pixels, box, np.array([3]), 0, (96, 96), (outline,))
    black = LabelledImage(np.zeros((200, 200, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int), 1, (200, 200))
    result = CopyPaste(probability=1)(black, [donor], (80, 80), np.random.default_rng(0))
    assert result.labels.tolist() == [3]
    assert black.pixels.max() == 0, "the image that was given stays as it is"
    x0, y0, x1, y1 = result.boxes[0]
    touched = result.pixels.any(2)
    assert np.argwhere(touched).min(0).tolist() == [y0, x0]
    assert (np.argwhere(touched).max(0) + 1).tolist() == [y1, x1]
    assert abs(touched.sum() / ((x1 - x0) * (y1 - y0)) - np.pi / 4) < 0.03
    ratio = (x1 - x0) / 61
    assert 0.65 * 200 / 96 < ratio < 1.45 * 200 / 96, "it keeps its size relative to the image"


def test_the_boxes_of_what_is_hidden_shrink():
    """A white square, its left part hidden by grey squares: its box is around what is still white."""
    image, _ = paste(0)
    white = np.full((60, 60, 3), 255, dtype=np.uint8)
    canvas = np.zeros((100, 100, 3), dtype=np.uint8)
    canvas[20:80, 20:80] = white
    square = replace(image, pixels=canvas, boxes=np.array([[20.0, 20, 80, 80]]), labels=np.array([1]),
                     segmentations=())  # fmt: skip
    grey = replace(square, pixels=np.full((100, 100, 3), 99, dtype=np.uint8), boxes=np.array([[0.0, 0, 50, 100]]))
    num_shrunk = 0
    for seed in range(60):
        result = CopyPaste(probability=1, scale=(0.9, 1))(square, [grey], (80, 80), np.random.default_rng(seed))
        y, x = (result.pixels[..., 0] == 255).nonzero()
        assert result.boxes[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert len(x) >= 1800
        num_shrunk += (result.boxes[0] != square.boxes[0]).any()
    assert num_shrunk > 3


def test_boxes_that_share_their_place_are_not_cut_out():
    crowded = LabelledImage(make_image(96, 96), np.array([[10.0, 10, 50, 50], [20, 20, 60, 60]]), np.array([1, 2]),
                            0, (96, 96))  # fmt: skip
    black = replace(crowded, pixels=np.zeros_like(crowded.pixels))
    for seed in range(10):
        result = CopyPaste(probability=1)(black, [crowded], (80, 80), np.random.default_rng(seed))
        assert not result.pixels.any()
        assert result.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    "segmentation",
    [None, [], [[]], [[1, 2, 3]], [["a"] * 6], [[float("nan")] * 6], [[1e300, -1e300] * 3], {"counts": "x"},
     [[5, 5, 5, 5, 5, 5]], "polygons", [[-50, -50, 500, -50, 500, 500]]],
    ids=str,
)  # fmt: skip
def test_outlines_that_cannot_be_drawn_do_no_harm(segmentation):
    image = LabelledImage(make_image(96, 96), np.array([[10.25, 10.5, 50, 50]]), np.array([1]), 0,
                          (96, 96), (segmentation,))  # fmt: skip
    for seed in range(10):
        result = CopyPaste(probability=1)(image, [image], (80, 80), np.random.default_rng(seed))
        assert (result.boxes[:, 2:] > result.boxes[:, :2]).all()


def test_crowd_regions_are_neither_pasted_nor_shown_as_objects():
    crowds = {index: [t for t in scene(index).objects if t.iscrowd] for index in range(40)}
    index = next(index for index, things in crowds.items() if things)
    image = LabelledImage.from_record(record(index), scene(index).image, CLASSES)
    assert len(image.labels) == len(scene(index).objects) - len(crowds[index])
    assert len(image.segmentations) == len(image.labels)
    boxes = {tuple(box) for box in image.boxes.tolist()}
    assert not boxes & {tuple(map(float, thing.box)) for thing in crowds[index]}


def test_colours_change_and_nothing_else():
    image = labelled(0)
    changed = 0
    for seed in range(30):
        result = ColourJitter()(image, [], (80, 80), np.random.default_rng(seed))
        assert result.pixels.shape == image.pixels.shape
        assert result.pixels.dtype == np.uint8
        assert result.boxes is image.boxes
        changed += not np.array_equal(result.pixels, image.pixels)
    assert 24 <= changed <= 30
    grey = replace(image, pixels=np.full((9, 9, 3), 100, dtype=np.uint8))
    levels = [
        ColourJitter(contrast=(1, 1))(grey, [], (9, 9), np.random.default_rng(s)).pixels.mean() for s in range(30)
    ]
    assert 87 <= min(levels) < 95, "an eighth darker at most"
    assert 105 < max(levels) <= 113, "an eighth brighter at most"


def grey(pixels):
    return (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]


def turned(pixels, turns):
    """Every pixel's hue turned on the colour circle."""
    colours = [colorsys.rgb_to_hsv(*pixel) for pixel in (pixels.reshape(-1, 3) / 255).tolist()]
    return np.array([colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in colours]).reshape(pixels.shape) * 255


COLOURS = {
    "brightness": ((0.875, 1.125), lambda pixels, factor: pixels * factor),
    "contrast": ((0.5, 1.5), lambda pixels, factor: grey(pixels).mean() + (pixels - grey(pixels).mean()) * factor),
    "saturation": ((0.5, 1.5), lambda pixels, factor: grey(pixels) + (pixels - grey(pixels)) * factor),
    "hue": ((-0.05, 0.05), turned),
}


@pytest.mark.parametrize("end", [0, 1], ids=["least", "greatest"])
@pytest.mark.parametrize("name", COLOURS)
def test_each_change_of_colours_alone(name, end):
    """The one that is wanted, by as much as it may: chance decides on them in the order of their names above."""

    class Chance:
        asked = iter(COLOURS)

        def random(self):
            return 0.0 if next(self.asked) == name else 0.99

        def uniform(self, *limits):
            return limits[end]

    image = labelled(0)
    limits, change = COLOURS[name]
    pixels = ColourJitter()(image, [], (80, 80), Chance()).pixels.astype(float)
    expected = change(image.pixels.astype(float), limits[end]).clip(0, 255)
    off = np.abs(pixels - expected)  # Pillow counts in whole numbers, and hues in 255 steps
    assert off.mean() < (2 if name == "hue" else 1) < np.abs(expected - image.pixels).mean()
    assert off.max() <= (12 if name == "hue" else 2)


@pytest.mark.parametrize("augment", get_args(Augment))
def test_a_recipe_is_a_function_of_its_generator(augment):
    """The same again for the same seed; the shape is known beforehand, and is that of DETR's augmentation."""
    config = DataConfig(augment=augment).resized(80)
    transform, images = training_transform(config), [labelled(index) for index in range(NUM_SCENES)]
    before = [image.pixels.copy() for image in images]
    for seed in range(10):
        sample = transform(images[0], np.random.default_rng(seed), images)
        pixels, target = sample.pixels, sample.target
        again = transform(images[0], np.random.default_rng(seed), images)
        assert torch.equal(pixels, again.pixels)
        assert torch.equal(target.boxes, again.target.boxes)
        assert pixels.shape[1:] == transform.output_shape(96, 96, np.random.default_rng(seed)) == target.size
        assert pixels.dtype == torch.uint8
        assert target.original_size == (96, 96)
        assert len(target.labels) == len(target.boxes)
    assert all(np.array_equal(image.pixels, pixels) for image, pixels in zip(images, before, strict=True))


@pytest.mark.parametrize("augment", get_args(Augment))
def test_a_recipe_without_objects(augment):
    empty = LabelledImage(make_image(96, 96), np.zeros((0, 4)), np.zeros(0, int), 0, (96, 96))
    transform = training_transform(DataConfig(augment=augment).resized(80))
    for seed in range(10):
        target = transform(empty, np.random.default_rng(seed), [empty]).target
        assert target.boxes.shape == (0, 4)


def test_every_name_has_effects():
    assert set(EXTRA_AUGMENTATIONS) == set(get_args(Augment))
    assert EXTRA_AUGMENTATIONS["detr"] == ()


# -------------------------------------------------------------------------------------------------- further annotations


def numbered(index, with_polygons=True):
    """A scene in which every object has a class of its own, and further annotations from which the class follows."""
    plain = record(index, with_polygons)
    things = tuple(
        replace(thing, extras={"number": number, "pair": [number, -number], "words": [number] * (1 + number % 3)})
        for number, thing in enumerate(plain.objects, 100 * index)
    )
    whole = replace(plain, objects=things, extras={"caption": f"scene {index}"})
    image = LabelledImage.from_record(whole, scene(index).image, CLASSES)
    return replace(image, labels=np.array([thing.extras["number"] for thing in things if not thing.crowd]))


def with_scene_masks(image, index):
    kept = np.array([thing.id for thing in trained_on(index)])
    return image.with_masks(scene(index).segments[None] == kept[:, None, None])


@dataclass(frozen=True, kw_only=True)
class AnnotatedTarget(Target):
    number: np.ndarray
    pair: np.ndarray
    words: tuple


def annotated(image):
    """A sample whose target has the further annotations."""
    plain = image.sample()
    empty = np.zeros(0, dtype=np.int64)
    target = AnnotatedTarget(
        **vars(plain.target),
        number=image.values_of_objects("number", empty),
        pair=image.values_of_objects("pair", empty.reshape(0, 2)),
        words=tuple(map(list, image.values_of_objects("words", empty))),
    )
    return replace(plain, target=target)


TRANSFORMS = {
    **{augment: (augment, False, True) for augment in get_args(Augment)},
    "copy-paste of boxes": ("copy-paste", False, False),
    "masks": ("detr", True, True),
    "masks, colour": ("colour", True, True),
    "evaluation": (None, False, True),
    "evaluation, masks": (None, True, True),
}


@pytest.mark.parametrize(("augment", "masks", "with_polygons"), TRANSFORMS.values(), ids=TRANSFORMS)
def test_further_annotations_stay_with_their_objects(augment, masks, with_polygons):
    config = DataConfig(augment=augment or "detr", augmentation=AugmentationConfig(flip_vertical=True)).resized(80)
    transform = replace(training_transform(config) if augment else evaluation_transform(config), make_sample=annotated)
    images = [numbered(index, with_polygons) for index in range(NUM_SCENES)]
    if masks:
        images = [with_scene_masks(image, index) for index, image in enumerate(images)]
    num_changed = 0
    for seed in range(24):
        image = images[seed % NUM_SCENES]
        sample = transform(image, sample_rng(seed, 0, 0), images)
        target, labels = sample.target, sample.target.labels.tolist()
        assert target.number.tolist() == labels
        assert target.pair.tolist() == [[label, -label] for label in labels]
        assert list(target.words) == [[label] * (1 + label % 3) for label in labels]
        assert len(target.boxes) == len(labels)
        assert sample.extras == {"caption": f"scene {seed % NUM_SCENES}"}
        num_changed += labels != image.labels.tolist()
    assert (num_changed > 0) == (augment is not None), "objects were dropped or added"


def test_an_image_without_objects_joins_others():
    empty = LabelledImage(make_image(96, 96), np.zeros((0, 4)), np.zeros(0, int), 0, (96, 96))
    images = [empty, numbered(1)]
    for effect in (Mosaic(probability=1), CopyPaste(probability=1)):
        for seed in range(8):
            changed = effect(empty, images, (80, 80), np.random.default_rng(seed))
            values = changed.values_of_objects("number", np.zeros(0, dtype=np.int64))
            assert values.tolist() == changed.labels.tolist()


def test_an_annotation_of_only_some_objects_is_refused():
    plain = record(0)
    first = next(thing for thing in plain.objects if not thing.crowd)
    things = (replace(first, extras={"track_id": 3}), replace(first, id=7))
    with pytest.raises(DataError, match="annotation 7: has no 'track_id', which other objects have"):
        LabelledImage.from_record(replace(plain, objects=things), scene(0).image, CLASSES)
    with pytest.raises(DataError, match="an object: has no 'track_id'"):
        labelled(0).with_objects_of([labelled(0), replace(labelled(0), per_object={"track_id": labelled(0).labels})])
