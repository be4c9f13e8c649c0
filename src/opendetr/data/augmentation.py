"""Extra training augmentation: colour jitter, mosaic and copy-paste, selected by `DataConfig.augment`.

It is applied to the original images, before DETR's augmentation.

Shape letters: h w image, n objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torchvision.transforms.v2 import functional

from opendetr.data.config import Augment, DataConfig
from opendetr.data.resizing import resize_fast
from opendetr.data.transforms import Crop, ExtraAugmentation, Flip, LabelledImage, Resize, TrainingTransform

# Minimum side of a mosaic's tile, in pixels. An image that is too small for such tiles is not changed.
_MIN_TILE_SIDE = 2
_MIN_POLYGON_NUMBERS = 6  # x and y of three points


@dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Changes brightness, contrast, saturation and hue, each in half of the images, as in SSD (section 2.2).

    Attributes:
        brightness: minimum and maximum factor.
        contrast: minimum and maximum factor.
        saturation: minimum and maximum factor.
        hue: minimum and maximum shift, in turns of the colour circle.
    """

    brightness: tuple[float, float] = (0.875, 1.125)
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: tuple[float, float] = (-0.05, 0.05)

    def __call__(
        self, image: LabelledImage, others: Sequence[LabelledImage], shape: tuple[int, int], rng: np.random.Generator
    ) -> LabelledImage:
        """The image with changed colours; see `ExtraAugmentation`."""
        changes = (
            (functional.adjust_brightness, self.brightness),
            (functional.adjust_contrast, self.contrast),
            (functional.adjust_saturation, self.saturation),
            (functional.adjust_hue, self.hue),
        )
        pixels = Image.fromarray(image.pixels)
        for change, limits in changes:
            if rng.random() < 0.5:
                pixels = change(pixels, rng.uniform(*limits))
        return replace(image, pixels=np.array(pixels))


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Combines four images in one, as in YOLOv4. The result has more and smaller objects in new surroundings.

    Each tile is a random crop of its image with the aspect ratio of the tile, flipped horizontally at random.

    Attributes:
        probability: fraction of the images that become a mosaic.
        centre: minimum and maximum position of the point where the tiles meet, as a fraction of height and width.
        min_crop: minimum side of a crop, as a fraction of the largest crop that fits into the image.
        min_visible: an object is dropped if a smaller fraction of its box is inside the crop.
    """

    probability: float = 0.5
    centre: tuple[float, float] = (0.3, 0.7)
    min_crop: float = 0.6
    min_visible: float = 0.1

    def __call__(
        self, image: LabelledImage, others: Sequence[LabelledImage], shape: tuple[int, int], rng: np.random.Generator
    ) -> LabelledImage:
        """A mosaic with pixels (*shape, 3), or the image unchanged; see `ExtraAugmentation`."""
        if rng.random() >= self.probability:
            return image
        height, width = shape
        row, column = (round(length * rng.uniform(*self.centre)) for length in shape)
        if min(row, column, height - row, width - column) < _MIN_TILE_SIDE:
            return image
        quarters = [(0, 0, row, column), (0, column, row, width - column),
                    (row, 0, height - row, column), (row, column, height - row, width - column)]  # fmt: skip
        images = [image, *(others[int(rng.integers(len(others)))] for _ in range(3))]
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        tiles: list[LabelledImage] = []
        for place in rng.permutation(4).tolist():
            top, left, tile_height, tile_width = quarters[place]
            tile = self._make_tile(images[len(tiles)], tile_height, tile_width, rng)
            pixels[top : top + tile_height, left : left + tile_width] = tile.pixels
            tiles.append(replace(tile, boxes=tile.boxes + np.array([left, top] * 2)))
        return replace(image, pixels=pixels).with_objects_of(tiles)

    def _make_tile(self, image: LabelledImage, height: int, width: int, rng: np.random.Generator) -> LabelledImage:
        """A random crop of the image with the aspect ratio of the tile, resized to the tile."""
        available = image.pixels.shape[:2]
        scale = min(available[0] / height, available[1] / width) * rng.uniform(self.min_crop, 1)
        part = tuple(
            max(1, min(round(side * scale), limit)) for side, limit in zip((height, width), available, strict=True)
        )
        top, left = (
            int(rng.integers(limit - side, endpoint=True)) for side, limit in zip(part, available, strict=True)
        )
        crop = Crop(top, left, *part)
        tile = crop.apply(image.selected(_visible_fraction(image, crop) >= self.min_visible))
        if rng.random() < 0.5:
            tile = Flip().apply(tile)
        return Resize(height, width).apply(tile)


@dataclass(frozen=True, kw_only=True)
class CopyPaste:
    """Pastes objects of another image into an image, as in "Simple Copy-Paste" (Ghiasi et al., 2021).

    An object is cut out along its polygons. An object without polygons is cut out along its box, if every other object
    overlaps the box by at most a tenth. Its size relative to the image changes by a random factor. It is pasted at a
    random place where every other object stays visible enough. The boxes of partly hidden objects shrink to their
    visible pixels.

    Attributes:
        probability: fraction of the images that objects are pasted into.
        max_objects: maximum number of objects pasted into one image.
        scale: minimum and maximum factor of an object's size.
        min_visible: minimum fraction of every object that stays visible.
        max_tries: number of places to try for an object before it is skipped.
    """

    probability: float = 0.5
    max_objects: int = 5
    scale: tuple[float, float] = (0.7, 1.4)
    min_visible: float = 0.5
    max_tries: int = 10

    def __call__(
        self, image: LabelledImage, others: Sequence[LabelledImage], shape: tuple[int, int], rng: np.random.Generator
    ) -> LabelledImage:
        """The image with pasted objects, or unchanged; see `ExtraAugmentation`."""
        if rng.random() >= self.probability:
            return image
        donor = others[int(rng.integers(len(others)))]
        candidates = [index for index in range(len(donor.labels)) if _can_be_cut_out(donor, index)]
        count = int(rng.integers(1, self.max_objects, endpoint=True))
        pixels = image.pixels.copy()
        regions = [_Region.of(image, index) for index in range(len(image.labels))]
        pasted: list[int] = []
        for index in rng.permutation(candidates).astype(int).tolist()[:count]:
            region, patch = self._cut_out(donor, index, pixels.shape[:2], rng)
            placed = self._find_place(region, regions, pixels.shape[:2], rng)
            if placed is not None:
                pixels[placed.rows, placed.columns][placed.mask] = patch[placed.mask]
                regions = [*(each.without(placed) for each in regions), placed]
                pasted.append(index)
        return self._assemble(image, donor, pixels, regions, pasted)

    def _cut_out(
        self, donor: LabelledImage, index: int, shape: Sequence[int], rng: np.random.Generator
    ) -> tuple[_Region, np.ndarray]:
        """An object of the donor, resized for an image of `shape` and flipped at random: mask and (h, w, 3) pixels."""
        region = _Region.of(donor, index)
        height, width = region.mask.shape
        scale = rng.uniform(*self.scale) * min(shape) / min(donor.pixels.shape[:2])
        scale = min(scale, shape[0] / height, shape[1] / width)
        height, width = max(1, int(height * scale)), max(1, int(width * scale))
        patch = resize_fast(np.ascontiguousarray(donor.pixels[region.rows, region.columns]), height, width)
        mask = np.array(Image.fromarray(region.mask).resize((width, height), Image.Resampling.NEAREST))
        if rng.random() < 0.5:
            patch, mask = patch[:, ::-1], mask[:, ::-1]
        return _Region(0, 0, mask, 0), patch

    def _find_place(
        self, region: _Region, others: Sequence[_Region], shape: Sequence[int], rng: np.random.Generator
    ) -> _Region | None:
        """The region at a place where every other object stays visible enough.

        None if no such place was found, or the region has no pixels.
        """
        if not region.mask.any():
            return None
        height, width = region.mask.shape
        for _ in range(self.max_tries):
            top = int(rng.integers(shape[0] - height, endpoint=True))
            left = int(rng.integers(shape[1] - width, endpoint=True))
            placed = _Region(top, left, region.mask, int(region.mask.sum()))
            if all(other.without(placed).visible_fraction >= self.min_visible for other in others):
                return placed
        return None

    @staticmethod
    def _assemble(
        image: LabelledImage, donor: LabelledImage, pixels: np.ndarray, regions: Sequence[_Region], pasted: list[int]
    ) -> LabelledImage:
        """The image with the visible parts of its own objects and the pasted objects."""
        count = len(image.labels)
        boxes = image.boxes.copy()
        for index, region in enumerate(regions[:count]):
            if region.visible_fraction < 1:
                visible = region.box
                boxes[index] = np.concatenate(
                    (np.maximum(boxes[index][:2], visible[:2]), np.minimum(boxes[index][2:], visible[2:]))
                )
        places = np.array([region.box for region in regions[count:]]).reshape(-1, 4)
        new = replace(donor.selected(np.array(pasted, dtype=np.intp)), boxes=places)
        return replace(image, pixels=pixels).with_objects_of([replace(image, boxes=boxes), new])


@dataclass(frozen=True)
class _Region:
    """The visible pixels of an object.

    Attributes:
        top: first row of the mask in the image.
        left: first column of the mask in the image.
        mask: (h, w) bool.
        full_area: number of pixels of the object, including hidden ones.
    """

    top: int
    left: int
    mask: np.ndarray
    full_area: int

    @classmethod
    def of(cls, image: LabelledImage, index: int) -> _Region:
        """The pixels of an object of an image: those of its polygons, or of its box if it has none."""
        left, top = np.floor(image.boxes[index][:2]).astype(int).tolist()
        right, bottom = np.ceil(image.boxes[index][2:]).astype(int).tolist()
        polygons = _polygons(image, index)
        canvas = Image.new("1", (right - left, bottom - top), 0 if polygons else 1)
        for polygon in polygons:
            ImageDraw.Draw(canvas).polygon((polygon - (left, top)).ravel().tolist(), fill=1)
        mask = np.array(canvas)
        return cls(top, left, mask, int(mask.sum()))

    @property
    def rows(self) -> slice:
        """The rows of the image that the mask covers."""
        return slice(self.top, self.top + self.mask.shape[0])

    @property
    def columns(self) -> slice:
        """The columns of the image that the mask covers."""
        return slice(self.left, self.left + self.mask.shape[1])

    @property
    def visible_fraction(self) -> float:
        """Visible fraction of the object; 1 for an object without pixels."""
        return int(self.mask.sum()) / self.full_area if self.full_area else 1.0

    @property
    def box(self) -> np.ndarray:
        """(4,) float64, xyxy around the visible pixels; at least one pixel must be visible."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        corners = (self.left + columns[0], self.top + rows[0], self.left + columns[-1] + 1, self.top + rows[-1] + 1)
        return np.array(corners, dtype=np.float64)

    def without(self, front: _Region) -> _Region:
        """The region without the pixels that the region `front` hides."""
        top, left = max(self.top, front.top), max(self.left, front.left)
        bottom, right = min(self.rows.stop, front.rows.stop), min(self.columns.stop, front.columns.stop)
        if top >= bottom or left >= right:
            return self
        mask = self.mask.copy()
        hidden = front.mask[top - front.top : bottom - front.top, left - front.left : right - front.left]
        mask[top - self.top : bottom - self.top, left - self.left : right - self.left] &= ~hidden
        return replace(self, mask=mask)


EXTRA_AUGMENTATIONS: dict[Augment, tuple[ExtraAugmentation, ...]] = {
    "detr": (),
    "colour": (ColourJitter(),),
    "mosaic": (Mosaic(),),
    "copy-paste": (CopyPaste(),),
    "strong": (CopyPaste(), Mosaic(), ColourJitter()),
}
"""The extra augmentations of each value of `DataConfig.augment`, in the order in which they are applied."""


def training_transform(config: DataConfig) -> TrainingTransform:
    """The training transform of a configuration, scaled to its image size."""
    scaled = config.augmentation.scaled(config.image_size)
    return TrainingTransform(
        scaled, config.image_size, config.max_size, config.side_multiple, EXTRA_AUGMENTATIONS[config.augment]
    )


def _visible_fraction(image: LabelledImage, crop: Crop) -> np.ndarray:
    """(n,) fraction of each object's box that is inside a crop."""
    window = np.array([crop.left, crop.top, crop.left + crop.width, crop.top + crop.height], dtype=np.float64)
    return _intersections(image.boxes, window) / _areas(image.boxes)


def _can_be_cut_out(image: LabelledImage, index: int) -> bool:
    """Whether an object has polygons, or no other object overlaps more than a tenth of its box."""
    if _polygons(image, index):
        return True
    others = np.delete(image.boxes, index, axis=0)
    overlaps = _intersections(others, image.boxes[index])
    return bool((overlaps <= 0.1 * _areas(image.boxes[index][None])).all())


def _intersections(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(n,) area of the intersection of each of `boxes` (n, 4) with `box` (4,)."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    return sides.clip(0).prod(1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _polygons(image: LabelledImage, index: int) -> list[np.ndarray]:
    """The polygons of an object, each (k, 2) x and y. Empty if its mask is RLE or it has no valid polygon."""
    segmentation = image.segmentations[index] if image.segmentations else None
    if not isinstance(segmentation, list):
        return []
    height, width = image.pixels.shape[:2]
    return [np.array(row).reshape(-1, 2).clip(0, (width, height)) for row in segmentation if _is_polygon(row)]


def _is_polygon(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) >= _MIN_POLYGON_NUMBERS
        and len(row) % 2 == 0
        and all(isinstance(number, int | float) and math.isfinite(number) for number in row)
    )
