"""Transforms from an image with its objects to a sample for the model; DETR's augmentation.

A transform first plans its steps from the image size and a random generator, and then applies them. So the shape of
the result is known before the image is read, and batches can be formed of images of similar shape.

Shape letters: h w image, n objects.
Frames: during the steps, boxes are (n, 4) xyxy in pixels of the current image, and masks have its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from opendetr.boxes import xyxy_to_cxcywh
from opendetr.categories import Categories
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.records import DataError, ImageRecord, ObjectRecord
from opendetr.data.resizing import normalise, resize, resize_fast, resize_masks, resized_shape, rounded_side
from opendetr.structures import Sample, Target


@dataclass(frozen=True)
class LabelledImage:
    """An image with the ground truth of its objects.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        boxes: (n, 4) float64, xyxy in pixels, inside the image, with an area above 0.
        labels: (n,) int64 in 0..K-1.
        image_id: the dataset's id of the image.
        original_size: height and width before any step, in pixels.
        segmentations: the annotated segmentation of each object, in pixels of the image as it was read. Empty after any
            step.
        masks: (n, h, w) bool, the pixels of each object; None if masks are not loaded.
        name: the source of the image, for messages.
        index: index of the image in the dataset.
        per_object: further annotations of the objects by name, (n, ...) each. Every step that drops, adds or reorders
            objects does the same with these entries. Values of different lengths are in an array of objects. The
            mapping is empty for an image without objects; `values_of_objects` reads it.
        per_image: further annotations of the image by name. They become `Sample.extras`. An image that is composed of
            several ones keeps those of the first.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    image_id: int
    original_size: tuple[int, int]
    segmentations: tuple[Any, ...] = ()
    masks: np.ndarray | None = None
    name: str = ""
    index: int = 0
    per_object: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_image: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_record(
        cls, record: ImageRecord, pixels: np.ndarray, categories: Categories, index: int = 0
    ) -> LabelledImage:
        """The image of a record without crowd regions, with boxes clipped to the image.

        Raises:
            DataError: only some of the objects have an entry in their extras.
        """
        objects = [obj for obj in record.objects if not obj.crowd]
        boxes = np.array([obj.box for obj in objects], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, np.array([record.width, record.height] * 2, dtype=np.float64))
        labels = np.array([categories.label_of_id(obj.category_id) for obj in objects], dtype=np.int64)
        segmentations = tuple(obj.segmentation for obj in objects)
        size = (record.height, record.width)
        return cls(
            pixels,
            boxes,
            labels,
            record.id,
            size,
            segmentations,
            name=str(record.path),
            index=index,
            per_object=_extras_of(objects, str(record.path)),
            per_image=record.extras,
        )

    def with_masks(self, masks: np.ndarray) -> LabelledImage:
        """The image with masks (n, h, w), without the objects whose mask has no pixels."""
        return replace(self, masks=masks).seen()

    def seen(self) -> LabelledImage:
        """The image without the objects whose mask has no pixels."""
        assert self.masks is not None
        visible = np.asarray(self.masks.any((1, 2)))
        return self if visible.all() else self.selected(visible)

    def selected(self, chosen: np.ndarray) -> LabelledImage:
        """The image with some of its objects: `chosen` is (n,) bool, or (k,) int64 indices."""
        indices = np.arange(len(self.labels))[chosen]
        return replace(
            self,
            boxes=self.boxes[indices],
            labels=self.labels[indices],
            segmentations=tuple(self.segmentations[index] for index in indices) if self.segmentations else (),
            masks=None if self.masks is None else self.masks[indices],
            per_object={name: values[indices] for name, values in self.per_object.items()},
        )

    def with_objects_of(self, images: Sequence[LabelledImage]) -> LabelledImage:
        """The image with all objects of `images`, whose boxes are in its pixels, and without segmentations and masks.

        Raises:
            DataError: only some of the objects have an annotation.
        """
        names = dict.fromkeys(name for image in images for name in image.per_object)
        return replace(
            self,
            boxes=np.concatenate([image.boxes for image in images]),
            labels=np.concatenate([image.labels for image in images]),
            segmentations=(),
            masks=None,
            per_object={name: _concatenated(name, images) for name in names},
        )

    def values_of_objects(self, name: str, like: np.ndarray) -> np.ndarray:
        """The annotation `name` of the objects, (n, ...).

        Args:
            name: the key in `per_object`.
            like: (0, ...), the result for an image without objects.

        Raises:
            DataError: the image has objects without this annotation.
        """
        if len(self.labels) and name not in self.per_object:
            raise _missing_extra(self.name, "an object", name)
        return self.per_object[name] if len(self.labels) else like

    def sample(self) -> Sample:
        """The pixels, the target and the further annotations of the image as a sample."""
        return Sample(_channels_first(self.pixels), self.target(), self.name, self.per_image)

    def target(self) -> Target:
        """The objects as a training target, with boxes as cxcywh in 0..1."""
        height, width = self.pixels.shape[:2]
        boxes = xyxy_to_cxcywh(torch.from_numpy(self.boxes / np.array([width, height] * 2, dtype=np.float64)))
        return Target(
            labels=torch.from_numpy(self.labels),
            boxes=boxes.float(),
            size=(height, width),
            original_size=self.original_size,
            image_id=self.image_id,
            masks=None if self.masks is None else torch.from_numpy(np.ascontiguousarray(self.masks)),
        )


@dataclass(frozen=True)
class Flip:
    """Flip horizontally, or vertically if `vertical`."""

    vertical: bool = False

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The flipped image."""
        axis = 0 if self.vertical else 1
        near, far = (1, 3) if self.vertical else (0, 2)
        boxes = image.boxes.copy()
        boxes[:, [near, far]] = image.pixels.shape[axis] - image.boxes[:, [far, near]]
        pixels = torch.from_numpy(image.pixels).flip(axis).numpy()
        masks = None if image.masks is None else np.flip(image.masks, axis + 1)
        return replace(image, pixels=pixels, boxes=boxes, segmentations=(), masks=masks)


@dataclass(frozen=True)
class Resize:
    """Resize to `height` x `width` pixels.

    If `exact`, the result is identical to Pillow's; otherwise nearly identical, and much faster.
    """

    height: int
    width: int
    exact: bool = False

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The resized image, with boxes and masks scaled accordingly."""
        height, width = image.pixels.shape[:2]
        y, x = self.height / height, self.width / width
        pixels = (resize if self.exact else resize_fast)(image.pixels, self.height, self.width)
        boxes = image.boxes * np.array([x, y, x, y])
        masks = None if image.masks is None else resize_masks(image.masks, self.height, self.width)
        return replace(image, pixels=pixels, boxes=boxes, segmentations=(), masks=masks)


@dataclass(frozen=True)
class Crop:
    """Crop `height` x `width` pixels, beginning at row `top` and column `left`."""

    top: int
    left: int
    height: int
    width: int

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The cropped image.

        Boxes are clipped, and objects whose box has no area are dropped. With masks,
        objects without any pixel in the crop are dropped as well, and boxes shrink to the remaining pixels.
        """
        cut = self._cut(image)
        return cut if cut.masks is None else _shrunk(cut)

    def _cut(self, image: LabelledImage) -> LabelledImage:
        boxes = image.boxes - np.array([self.left, self.top] * 2, dtype=np.float64)
        boxes = boxes.clip(0, np.array([self.width, self.height] * 2, dtype=np.float64))
        kept = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(1))
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        masks = None if image.masks is None else image.masks[:, rows, columns]
        return replace(image, pixels=image.pixels[rows, columns], masks=masks, boxes=boxes, segmentations=()).selected(
            kept
        )


@dataclass(frozen=True)
class KeepingCrop:
    """A crop that contains a part of every object, where the image allows it.

    The window has `height` x `width` pixels. If no such window contains a part of every object, it is enlarged with the
    same aspect ratio, at most to the largest window inside the image. Its place is then chosen among those that contain
    a part of every object, or of as many as possible along each axis.

    Attributes:
        height, width: of the window in pixels.
        place: where the window lies, in 0..1 of the possible rows and columns.
    """

    height: int
    width: int
    place: tuple[float, float]

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The cropped image; see `Crop.apply`."""
        return self._window(image).apply(image)

    def _window(self, image: LabelledImage) -> Crop:
        available = image.pixels.shape[:2]
        sides = (self.height, self.width)
        # Along an axis, the window must reach from the end of the first box to the begin of the last one.
        ends = [image.boxes[:, [axis, axis + 2]] for axis in (1, 0)]
        gaps = [
            of_axis[:, 0].max(initial=0) - of_axis[:, 1].min(initial=limit)
            for of_axis, limit in zip(ends, available, strict=True)
        ]
        needed = max(1.0, *((gap + 2) / side for gap, side in zip(gaps, sides, strict=True)))
        scale = min(needed, *(limit / side for limit, side in zip(available, sides, strict=True)))
        height, width = (min(limit, math.ceil(side * scale)) for limit, side in zip(available, sides, strict=True))
        top, left = (
            _window_start(of_axis, side, limit, place)
            for of_axis, side, limit, place in zip(ends, (height, width), available, self.place, strict=True)
        )
        return Crop(top, left, height, width)


def _window_start(ends: np.ndarray, side: int, limit: int, place: float) -> int:
    """The first row or column of a window of `side` pixels that contains a part of every box.

    Args:
        ends: (n, 2), begin and end of the boxes along the axis.
        side: of the window.
        limit: the side of the image.
        place: in 0..1 of the possible range.
    """
    low = math.floor(ends[:, 0].max(initial=0.0)) + 1 - side
    high = math.ceil(ends[:, 1].min(initial=limit)) - 1
    low, high = (min(max(start, 0), limit - side) for start in sorted((low, high)))
    return low + int(place * (high - low + 1))


class ExtraAugmentation(Protocol):
    """An augmentation that is applied before DETR's; see `data.augmentation`."""

    def __call__(
        self, image: LabelledImage, others: Sequence[LabelledImage], shape: tuple[int, int], rng: np.random.Generator
    ) -> LabelledImage:
        """The changed image; `image` itself is not modified.

        Args:
            image: the original image, or the result of another extra augmentation.
            others: all images of the dataset, each read on access.
            shape: height and width that the image is resized to next.
            rng: the generator for all random choices.
        """
        ...


Step = Flip | Resize | Crop | KeepingCrop


class Transform(Protocol):
    """Makes a sample of an image. All random choices use the given generator."""

    @property
    def largest_shape(self) -> tuple[int, int]:
        """Short and long side of the largest possible result, in pixels."""
        ...

    def output_shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width of the result for an image of this size, given a generator in the same state."""
        ...

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The sample of an image. `others` are all images of the dataset, for augmentation with several images."""
        ...


@dataclass(frozen=True)
class TrainingTransform:
    """DETR's augmentation.

    Attributes:
        augmentation: the options, already scaled to `image_size`.
        image_size: short side of the result if `augmentation.multi_scale` is False, in pixels.
        max_size: maximum long side of the result, in pixels.
        side_multiple: both sides of the result are multiples of this number of pixels.
        extra: extra augmentations, applied first.
        make_sample: makes the sample of the transformed image. A member with further targets or inputs has its own.
        mirror: the step that flips an image horizontally. A member whose annotations name sides has its own.
    """

    augmentation: AugmentationConfig
    image_size: int
    max_size: int
    side_multiple: int = 1
    extra: tuple[ExtraAugmentation, ...] = ()
    make_sample: Callable[[LabelledImage], Sample] = LabelledImage.sample
    mirror: Flip = Flip()

    def plan(self, height: int, width: int, rng: np.random.Generator) -> list[Step]:
        """The steps for an image of this size; the last one is a Resize."""
        options = self.augmentation
        steps: list[Step] = []
        if options.flip and rng.random() < 0.5:
            steps.append(self.mirror)
        if options.flip_vertical and rng.random() < 0.5:
            steps.append(Flip(vertical=True))
        if options.crop and rng.random() < 0.5:
            height, width = resized_shape(height, width, int(rng.choice(options.scales_before_crop)), None)
            plan_crop = _plan_keeping_crop if options.keep_objects else _plan_crop
            crop = plan_crop(height, width, options.crop_sides, rng)
            steps += [Resize(height, width), crop]
            height, width = crop.height, crop.width
        size = int(rng.choice(options.scales)) if options.multi_scale else self.image_size
        return [*steps, Resize(*resized_shape(height, width, size, self.max_size, self.side_multiple))]

    def output_shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width of the result for an image of this size, given a generator in the same state."""
        last = self.plan(height, width, rng)[-1]
        assert isinstance(last, Resize)
        return last.height, last.width

    @property
    def largest_shape(self) -> tuple[int, int]:
        """Short and long side of the largest possible result, in pixels."""
        options = self.augmentation
        short = max(options.scales) if options.multi_scale else self.image_size
        multiple = self.side_multiple
        return rounded_side(short, multiple, self.max_size), rounded_side(self.max_size, multiple, self.max_size)

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The sample, with the objects that remain after cropping; there may be none."""
        return self.make_sample(self.transformed(image, rng, others))

    def transformed(
        self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()
    ) -> LabelledImage:
        """The image of which the sample is made. Images of one size and generators in one state give the same steps."""
        height, width = image.pixels.shape[:2]
        steps = self.plan(height, width, rng)
        first = next(step for step in steps if isinstance(step, Resize))
        for augment in self.extra:
            image = augment(image, others, (first.height, first.width), rng)
        for step in steps:
            image = step.apply(image)
        return image


@dataclass(frozen=True)
class TransformAround:
    """A transform that adds to what another one makes of an image, in the same size.

    Attributes:
        plain: the other transform.
    """

    plain: Transform

    @property
    def largest_shape(self) -> tuple[int, int]:
        """As of `plain`."""
        return self.plain.largest_shape

    def output_shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """As of `plain`."""
        return self.plain.output_shape(height, width, rng)


class PredictionTransform(Transform, Protocol):
    """A transform without random choices, which also prepares images without ground truth."""

    def pixels(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB image -> (3, h, w) normalised float."""
        ...


@dataclass(frozen=True)
class EvaluationTransform:
    """Resizes the short side to `image_size` and the long side to at most `max_size`, without random choices.

    Both sides are rounded to multiples of `side_multiple`. `make_sample` is that of `TrainingTransform`.
    """

    image_size: int
    max_size: int
    side_multiple: int = 1
    make_sample: Callable[[LabelledImage], Sample] = LabelledImage.sample

    @property
    def largest_shape(self) -> tuple[int, int]:
        """Short and long side of the largest possible result, in pixels."""
        return resized_shape(self.image_size, self.max_size, self.image_size, self.max_size, self.side_multiple)

    def output_shape(self, height: int, width: int, rng: np.random.Generator | None = None) -> tuple[int, int]:
        """Height and width of the result for an image of this size; the generator is not used."""
        return resized_shape(height, width, self.image_size, self.max_size, self.side_multiple)

    def __call__(
        self, image: LabelledImage, rng: np.random.Generator | None = None, others: Sequence[LabelledImage] = ()
    ) -> Sample:
        """The sample; neither the generator nor the other images are used."""
        image = Resize(*self.output_shape(*image.original_size), exact=True).apply(image)
        return self.make_sample(image)

    def pixels(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB image without ground truth -> (3, h, w) normalised float, for prediction."""
        height, width = image.shape[:2]
        return normalise(_channels_first(resize(image, *self.output_shape(height, width))))


def evaluation_transform(config: DataConfig) -> EvaluationTransform:
    """The transform of a configuration for evaluation and prediction."""
    return EvaluationTransform(config.image_size, config.max_size, config.side_multiple)


def _channels_first(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) -> (3, h, w) without a copy."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _extras_of(things: Sequence[ObjectRecord], file: str) -> dict[str, np.ndarray]:
    """The extras of n objects as arrays by name, (n, ...) each."""
    names = dict.fromkeys(name for thing in things for name in thing.extras)
    for thing in things:
        if len(thing.extras) < len(names):
            name = next(name for name in names if name not in thing.extras)
            raise _missing_extra(file, thing.position, name)
    return {name: as_column([thing.extras[name] for thing in things]) for name in names}


def as_column(values: Sequence[Any]) -> np.ndarray:
    """Values as an array: (n, ...) if all have one shape, otherwise (n,) of the values themselves."""
    try:
        return np.array(values)
    except ValueError:  # of different lengths
        column = np.empty(len(values), dtype=object)
        for index, value in enumerate(values):
            column[index] = value
        return column


def _concatenated(name: str, images: Sequence[LabelledImage]) -> np.ndarray:
    """The annotation `name` of all objects of some images."""
    columns = [image.values_of_objects(name, image.labels) for image in images if len(image.labels)]
    if len({column.shape[1:] for column in columns}) == 1:
        return np.concatenate(columns)
    return as_column([value for column in columns for value in column])


def _missing_extra(file: str, at: str, name: str) -> DataError:
    return DataError(f"{file}, {at}: has no {name!r}, which other objects have; give it to all objects or to none")


def _shrunk(image: LabelledImage) -> LabelledImage:
    """The image with boxes shrunk to the pixels of their masks, without the objects whose mask has no pixels."""
    image = image.seen()
    masks = image.masks
    assert masks is not None
    rows, columns = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    height, width = masks.shape[1:]
    right, bottom = width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1)
    inner = np.stack([columns.argmax(1), rows.argmax(1), right, bottom], axis=1)
    low, high = np.maximum(image.boxes[:, :2], inner[:, :2]), np.minimum(image.boxes[:, 2:], inner[:, 2:])
    # An annotated box may not overlap the outline. Then the box of the outline is used.
    boxes = np.where((low < high).all(1, keepdims=True), np.concatenate([low, high], axis=1), inner)
    return replace(image, boxes=boxes)


def _crop_side(available: int, sides: tuple[int, int], rng: np.random.Generator) -> int:
    largest = min(available, sides[1])
    return int(rng.integers(min(sides[0], largest), largest, endpoint=True))


def _plan_keeping_crop(height: int, width: int, sides: tuple[int, int], rng: np.random.Generator) -> KeepingCrop:
    crop_width, crop_height = (_crop_side(available, sides, rng) for available in (width, height))
    return KeepingCrop(crop_height, crop_width, (float(rng.random()), float(rng.random())))


def _plan_crop(height: int, width: int, sides: tuple[int, int], rng: np.random.Generator) -> Crop:
    crop_width, crop_height = (_crop_side(available, sides, rng) for available in (width, height))
    top = int(rng.integers(0, height - crop_height, endpoint=True))
    left = int(rng.integers(0, width - crop_width, endpoint=True))
    return Crop(top, left, crop_height, crop_width)
