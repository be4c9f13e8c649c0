"""From an image with its objects to what a model is given; DETR's augmentation.

Shape letters: h w image, n objects. Until the very end boxes are (n, 4) xyxy in pixels of the image as it is at that
step, and masks are of its size. A transform first plans its steps from the image's size and a random generator, then
takes them: so the shape of the result is known before anything is read, and batches can be formed of like shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from opendetr.boxes import xyxy_to_cxcywh
from opendetr.categories import Categories
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.records import ImageRecord
from opendetr.structures import Sample, Target

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class LabelledImage:
    """An image with the objects to be found in it.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        boxes: (n, 4) float64, xyxy in pixels, inside the image, each with an area.
        labels: (n,) int64 in 0..K-1.
        image_id: the dataset's own id of the image.
        original_size: height and width before any step.
        segmentations: of each object as annotated, in pixels of the image as it was read; empty after any step.
        masks: (n, h, w) bool, the pixels of each object; None where no masks are asked for.
        name: where the image came from, for messages.
        index: of the image in the dataset.
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

    @classmethod
    def from_record(
        cls, record: ImageRecord, pixels: np.ndarray, categories: Categories, index: int = 0
    ) -> LabelledImage:
        """What can be trained on: no crowd regions, boxes clamped to the image."""
        things = [thing for thing in record.objects if not thing.crowd]
        boxes = np.array([thing.box for thing in things], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, np.array([record.width, record.height] * 2, dtype=np.float64))
        labels = np.array([categories.label_of_id(thing.category_id) for thing in things], dtype=np.int64)
        segmentations = tuple(thing.segmentation for thing in things)
        size = (record.height, record.width)
        return cls(pixels, boxes, labels, record.id, size, segmentations, name=str(record.path), index=index)

    def with_masks(self, masks: np.ndarray) -> LabelledImage:
        """The objects of which something is seen, with their masks (n, h, w)."""
        return replace(self, masks=masks).seen()

    def seen(self) -> LabelledImage:
        """Without the objects whose mask has no pixel."""
        assert self.masks is not None
        seen = np.asarray(self.masks.any((1, 2)))
        if seen.all():
            return self
        return replace(
            self,
            boxes=self.boxes[seen],
            labels=self.labels[seen],
            segmentations=tuple(compress(self.segmentations, seen)),
            masks=self.masks[seen],
        )

    def sample(self) -> Sample:
        """Pixels and target as they go into a batch."""
        return Sample(_channels_first(self.pixels), self.target(), self.name)

    def target(self) -> Target:
        """The objects in the frame that models are trained in."""
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
    """Mirror left and right, or top and bottom when `vertical`."""

    vertical: bool = False

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The mirrored image."""
        axis = 0 if self.vertical else 1
        near, far = (1, 3) if self.vertical else (0, 2)
        boxes = image.boxes.copy()
        boxes[:, [near, far]] = image.pixels.shape[axis] - image.boxes[:, [far, near]]
        pixels = torch.from_numpy(image.pixels).flip(axis).numpy()
        masks = None if image.masks is None else np.flip(image.masks, axis + 1)
        return replace(image, pixels=pixels, boxes=boxes, segmentations=(), masks=masks)


@dataclass(frozen=True)
class Resize:
    """Resize to `height` x `width` pixels: exactly as Pillow does, or, if not `exact`, much faster and nearly so."""

    height: int
    width: int
    exact: bool = False

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The resized image."""
        height, width = image.pixels.shape[:2]
        y, x = self.height / height, self.width / width
        pixels = (resize if self.exact else resize_fast)(image.pixels, self.height, self.width)
        boxes = image.boxes * np.array([x, y, x, y])
        masks = None if image.masks is None else resize_masks(image.masks, self.height, self.width)
        return replace(image, pixels=pixels, boxes=boxes, segmentations=(), masks=masks)


@dataclass(frozen=True)
class Crop:
    """Cut out `height` x `width` pixels, from row `top` and column `left` on."""

    top: int
    left: int
    height: int
    width: int

    def apply(self, image: LabelledImage) -> LabelledImage:
        """The cut-out; boxes are clipped, those without area dropped.

        Objects with masks are dropped, too, when none of their pixels is left, and their boxes shrink to what is.
        """
        cut = self._cut(image)
        return cut if cut.masks is None else _shrunk(cut)

    def _cut(self, image: LabelledImage) -> LabelledImage:
        boxes = image.boxes - np.array([self.left, self.top] * 2, dtype=np.float64)
        boxes = boxes.clip(0, np.array([self.width, self.height] * 2, dtype=np.float64))
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (sides > 0).all(1)
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        return replace(
            image,
            pixels=image.pixels[rows, columns],
            masks=None if image.masks is None else image.masks[kept, rows, columns],
            boxes=boxes[kept],
            labels=image.labels[kept],
            segmentations=(),
        )


class Effect(Protocol):
    """What a recipe does to an image beyond DETR's augmentation, and before it."""

    def __call__(
        self, image: LabelledImage, others: Sequence[LabelledImage], shape: tuple[int, int], rng: np.random.Generator
    ) -> LabelledImage:
        """The changed image; the one given stays as it is.

        Args:
            image: as read from the file, or as another effect left it.
            others: the images of the dataset, each read when it is asked for.
            shape: height and width that the image is about to be resized to.
            rng: where all chance comes from.
        """
        ...


class Transform(Protocol):
    """Makes a sample of an image; everything random is drawn from the generator that it is given."""

    @property
    def largest_shape(self) -> tuple[int, int]:
        """Short and long side of the largest image that can come out, in pixels."""
        ...

    def output_shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width that an image of this size will have, given the generator in the same state."""
        ...

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The sample of an image. `others` are the images of the dataset by index, for what needs several."""
        ...


@dataclass(frozen=True)
class TrainingTransform:
    """DETR's augmentation.

    Attributes:
        augmentation: already scaled to `image_size`.
        image_size: short side where the augmentation does not vary it.
        max_size: limit of the long side.
        side_multiple: what the sides that come out are multiples of.
        effects: what is done to the image first, beyond DETR's augmentation.
    """

    augmentation: AugmentationConfig
    image_size: int
    max_size: int
    side_multiple: int = 1
    effects: tuple[Effect, ...] = ()

    def plan(self, height: int, width: int, rng: np.random.Generator) -> list[Flip | Resize | Crop]:
        """The steps for an image of this size; the last one is a Resize."""
        options = self.augmentation
        steps: list[Flip | Resize | Crop] = []
        if options.flip and rng.random() < 0.5:
            steps.append(Flip())
        if options.flip_vertical and rng.random() < 0.5:
            steps.append(Flip(vertical=True))
        if options.crop and rng.random() < 0.5:
            height, width = resized_shape(height, width, int(rng.choice(options.scales_before_crop)), None)
            crop = _plan_crop(height, width, options.crop_sides, rng)
            steps += [Resize(height, width), crop]
            height, width = crop.height, crop.width
        size = int(rng.choice(options.scales)) if options.multi_scale else self.image_size
        return [*steps, Resize(*resized_shape(height, width, size, self.max_size, self.side_multiple))]

    def output_shape(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width that an image of this size will have, given the generator in the same state."""
        last = self.plan(height, width, rng)[-1]
        assert isinstance(last, Resize)
        return last.height, last.width

    @property
    def largest_shape(self) -> tuple[int, int]:
        """Short and long side of the largest image that can come out."""
        options = self.augmentation
        short = max(options.scales) if options.multi_scale else self.image_size
        multiple = self.side_multiple
        return _rounded(short, multiple, self.max_size), _rounded(self.max_size, multiple, self.max_size)

    def __call__(self, image: LabelledImage, rng: np.random.Generator, others: Sequence[LabelledImage] = ()) -> Sample:
        """The sample, with the objects that are left after a crop: perhaps none."""
        height, width = image.pixels.shape[:2]
        steps = self.plan(height, width, rng)
        first = next(step for step in steps if isinstance(step, Resize))
        for effect in self.effects:
            image = effect(image, others, (first.height, first.width), rng)
        for step in steps:
            image = step.apply(image)
        return image.sample()


@dataclass(frozen=True)
class EvaluationTransform:
    """Short side `image_size`, long side at most `max_size`, both to a multiple; nothing is left to chance."""

    image_size: int
    max_size: int
    side_multiple: int = 1

    @property
    def largest_shape(self) -> tuple[int, int]:
        """Short and long side of the largest image that can come out."""
        return resized_shape(self.image_size, self.max_size, self.image_size, self.max_size, self.side_multiple)

    def output_shape(self, height: int, width: int, rng: np.random.Generator | None = None) -> tuple[int, int]:
        """Height and width that an image of this size will have; the generator is not asked."""
        return resized_shape(height, width, self.image_size, self.max_size, self.side_multiple)

    def __call__(
        self, image: LabelledImage, rng: np.random.Generator | None = None, others: Sequence[LabelledImage] = ()
    ) -> Sample:
        """The sample; neither the generator nor the other images are used."""
        image = Resize(*self.output_shape(*image.original_size), exact=True).apply(image)
        return image.sample()

    def pixels(self, image: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 RGB without known objects -> (3, h, w) normalised float, for prediction."""
        height, width = image.shape[:2]
        return normalise(_channels_first(resize(image, *self.output_shape(height, width))))


def evaluation_transform(config: DataConfig) -> EvaluationTransform:
    """The plain resize of evaluation and prediction."""
    return EvaluationTransform(config.image_size, config.max_size, config.side_multiple)


def resized_shape(height: int, width: int, size: int, max_size: int | None, multiple: int = 1) -> tuple[int, int]:
    """Height and width after resizing the short side to `size`, the long side to at most `max_size`; at least 1.

    As DETR counts: the limit shrinks `size`, rounding half to even; the long side is cut to a whole number. So the
    long side may stay a few pixels below `max_size`. Then each side goes to the nearest multiple of `multiple`.
    """
    height, width = _published_shape(height, width, size, max_size)
    return _rounded(height, multiple, max_size), _rounded(width, multiple, max_size)


def _published_shape(height: int, width: int, size: int, max_size: int | None) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * size > max_size:
        size = max(1, round(max_size * short / long))
    if short == size:
        return height, width
    return (int(size * height / width), size) if width < height else (size, int(size * width / height))


def _rounded(side: int, multiple: int, max_size: int | None) -> int:
    """The multiple nearest to a side: at least the first, at most the last within `max_size`."""
    if multiple == 1:  # DETR's long side may be a pixel above `max_size`, and stays so
        return side
    nearest = (side + multiple // 2) // multiple
    most = nearest if max_size is None else max_size // multiple
    return max(1, min(nearest, most)) * multiple


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (height, width, 3) uint8, bilinear, antialiased when shrinking; bit for bit as Pillow's."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `resize`, computed by torch: about three times as fast, and off by a grey level in 2 of 10,000 values."""
    if image.shape[:2] == (height, width):
        return image
    channels = torch.from_numpy(image).permute(2, 0, 1)
    return interpolate(channels[None], (height, width), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def resize_masks(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, H, W) -> (n, height, width), each pixel that of the nearest centre.

    So masks keep to the pixels, which are resized about the same centres. The original's rule begins at the upper left
    corner, and moves masks by up to half a pixel.
    """
    if masks.shape[1:] == (height, width):
        return masks
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.intp)
        for new, old in zip((height, width), masks.shape[1:], strict=True)
    )
    return masks.take(rows, axis=1).take(columns, axis=2)


def normalise(pixels: Tensor, out: Tensor | None = None) -> Tensor:
    """(3, h, w) uint8 RGB -> float32 with ImageNet's mean taken away, divided by its standard deviation.

    Args:
        pixels: what to normalise.
        out: (3, h, w) float32 to write to, perhaps a part of a batch; a new tensor when omitted.
    """
    mean, std = _statistics(pixels.device)
    return torch.div(pixels, 255, out=out).sub_(mean).div_(std)


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and standard deviation, (3, 1, 1) each."""
    return torch.tensor(_MEAN, device=device).view(3, 1, 1), torch.tensor(_STD, device=device).view(3, 1, 1)


def _channels_first(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) -> (3, h, w) without a copy."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _shrunk(image: LabelledImage) -> LabelledImage:
    """Boxes cut to the pixels of their masks, objects without any dropped."""
    image = image.seen()
    masks = image.masks
    assert masks is not None
    rows, columns = np.asarray(masks.any(2)), np.asarray(masks.any(1))
    height, width = masks.shape[1:]
    right, bottom = width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1)
    inner = np.stack([columns.argmax(1), rows.argmax(1), right, bottom], axis=1)
    low, high = np.maximum(image.boxes[:, :2], inner[:, :2]), np.minimum(image.boxes[:, 2:], inner[:, 2:])
    # An outline may lie beside its box; then it is the outline that counts.
    boxes = np.where((low < high).all(1, keepdims=True), np.concatenate([low, high], axis=1), inner)
    return replace(image, boxes=boxes)


def _plan_crop(height: int, width: int, sides: tuple[int, int], rng: np.random.Generator) -> Crop:
    def side(available: int) -> int:
        greatest = min(available, sides[1])
        return int(rng.integers(min(sides[0], greatest), greatest, endpoint=True))

    crop_width, crop_height = side(width), side(height)
    top = int(rng.integers(0, height - crop_height, endpoint=True))
    left = int(rng.integers(0, width - crop_width, endpoint=True))
    return Crop(top, left, crop_height, crop_width)
