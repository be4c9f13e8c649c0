"""Images of what was found and of what is true, and sheets of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opendetr.categories import Categories
from opendetr.files import atomic_path
from opendetr.visualize.labels import Region, draw_label, label_options, label_places, label_size, region_options
from opendetr.visualize.layers import coloured, masked, outlined, resized_map, shaded
from opendetr.visualize.style import INK, PAPER, Colour, fitted, font_of

_LEAST_LABELLED = 0.001  # segments below this share of the image get no name: it would hide them and others


class TruthObject(Protocol):
    """What `draw_truth` reads of an object: a dataset's own record of it."""

    @property
    def category_id(self) -> int:
        """The dataset's id of its category."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, w, h in pixels of the image."""

    @property
    def crowd(self) -> bool:
        """Whether it stands for many objects."""


def draw_truth(
    image: Any,
    objects: Iterable[TruthObject],
    categories: Categories,
    *,
    masks: np.ndarray | None = None,
    scale: float | None = None,
) -> Image.Image:
    """The image with the box and name of every object of a dataset's record; crowds are marked as such.

    Args:
        image: (H, W, 3) uint8 RGB or a PIL image, of the size that the record gives.
        objects: the record's objects, boxes as x, y, w, h in pixels.
        categories: gives names and colours to their category ids.
        masks: (n, H, W) bool of the objects, which are drawn instead of the boxes; of one without a mask all False.
        scale: as in `draw_detections`.
    """
    boxes, captions, colours = [], [], []
    for item in objects:
        left, top, width, height = item.box
        label = categories.label_of_id(item.category_id)
        boxes.append((left, top, left + width, top + height))
        captions.append(f"{categories.names[label]} (crowd)" if item.crowd else categories.names[label])
        colours.append(categories.colours[label])
    return draw_boxes(image, np.array(boxes), captions, colours, masks=masks, scale=scale)


def draw_boxes(
    image: Any,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[Colour],
    *,
    masks: np.ndarray | None = None,
    scale: float | None = None,
) -> Image.Image:
    """The image with boxes and captions. Captions keep inside the image and out of each other's way.

    Args:
        image: (H, W, 3) or (H, W) uint8 array, or a PIL image.
        boxes: (n, 4) xyxy in pixels of the image; what lies outside it is cut off.
        captions: n texts; where room is short the first ones get the better places. An empty one draws no label.
        colours: n RGB triples.
        masks: (n, H, W) bool in the image, drawn half-transparent with an outline instead of the boxes, those of one
            colour in different shades. Where a mask is empty, its box is drawn.
        scale: as in `draw_detections`.

    Raises:
        ValueError: a box is not finite, or the lengths differ.
    """
    picture = as_image(image)
    scale = _legible_scale(picture) if scale is None else scale
    if masks is not None and masks.shape != (len(captions), picture.height, picture.width):
        expected = (len(captions), picture.height, picture.width)
        raise ValueError(f"draw_boxes: expected masks of {expected}, got {masks.shape}")
    picture = _enlarged(picture, scale)
    corners = _drawable(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale, picture.size)
    if not len(corners) == len(captions) == len(colours):
        raise ValueError(f"draw_boxes: {len(corners)} boxes, {len(captions)} captions, {len(colours)} colours")
    font = _image_font(picture)
    line = _line_width(font)
    sizes = [np.array(label_size(caption, font)) for caption in captions]
    outer = (corners.round() + np.array([-1, -1, 1, 1]) * (line // 2)).clip(0, np.tile(picture.size, 2) - 1)
    options = [label_options(box, size, picture.size) for box, size in zip(outer, sizes, strict=True)]
    boxed: np.ndarray = np.ones(len(corners), dtype=bool)
    if masks is not None:
        colours = shaded(colours)
        boxed = np.array([not mask.any() for mask in masks], dtype=bool)
        picture = masked(picture, masks, colours, line)
        for index in np.flatnonzero(~boxed):
            options[index] = region_options(Region.of(masks[index], scale), sizes[index], picture.size)
    picture = outlined(picture, outer[boxed], list(compress(colours, boxed.tolist())), line)
    places = label_places(options)
    for caption, colour, place in reversed(list(zip(captions, colours, places, strict=True))):
        if caption:
            draw_label(picture, caption, colour, place, font)
    return picture


def draw_segments(
    image: Any,
    segments: np.ndarray,
    labels: Mapping[int, int],
    categories: Categories,
    *,
    scale: float | None = None,
) -> Image.Image:
    """The image with every segment of a panoptic map in its colour, and names at the centres of the larger ones.

    Args:
        image: (H, W, 3) or (H, W) uint8 array, or a PIL image.
        segments: (H, W) whole numbers, the segment that each pixel belongs to.
        labels: the label of each segment by its number; what is not in it stays as it is.
        categories: gives names and colours to the labels; things of one class are told apart by shades.
        scale: as in `draw_detections`.

    Raises:
        ValueError: image and map differ in size.
    """
    picture = as_image(image)
    if segments.shape != (picture.height, picture.width):
        expected = (picture.height, picture.width)
        raise ValueError(f"draw_segments: expected a map of {expected}, got {segments.shape}")
    scale = _legible_scale(picture) if scale is None else scale
    picture = _enlarged(picture, scale)
    present, index = np.unique(segments, return_inverse=True)
    index = index.reshape(segments.shape)
    known = [number for number, id_ in enumerate(present.tolist()) if id_ in labels]
    of_known = [labels[int(present[number])] for number in known]
    colours = shaded(
        [categories.colours[label] for label in of_known], [categories.isthing[label] for label in of_known]
    )
    font = _image_font(picture)
    regions = np.zeros(len(present), dtype=np.int32)
    regions[known] = np.arange(1, len(known) + 1)
    enlarged = resized_map(regions[index], picture.size)
    picture = coloured(picture, enlarged, colours, _line_width(font))
    names = [categories.names[label] for label in of_known]
    return _named(picture, enlarged, names, colours, font)


def _named(
    picture: Image.Image,
    regions: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Colour],
    font: ImageFont.FreeTypeFont,
) -> Image.Image:
    """The image with a name in the middle of each region that is large enough, the largest first."""
    areas = np.bincount(regions.ravel(), minlength=len(names) + 1)[1:]
    order = [index for index in np.argsort(-areas, kind="stable") if areas[index] >= _LEAST_LABELLED * regions.size]
    options = []
    for index in order:
        region = Region.of(regions == index + 1, 1.0)
        options.append(region_options(region, np.array(label_size(names[index], font)), picture.size))
    plates = label_places(options)
    for index, plate in reversed(list(zip(order, plates, strict=True))):
        draw_label(picture, names[index], colours[index], plate, font)
    return picture


def contact_sheet(pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] = ()) -> Image.Image:
    """Images in rows of `columns`, each under its title; a row is as high as its highest image.

    Raises:
        ValueError: there is no image, or not as many titles (when there are any) as images.
    """
    if not pictures:
        raise ValueError("contact_sheet: expected at least one image, got none")
    if titles and len(titles) != len(pictures):
        raise ValueError(f"contact_sheet: expected {len(pictures)} titles, got {len(titles)}")
    columns = min(columns, len(pictures))
    width = max(image.width for image in pictures)
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(image.height for image in row) for row in rows]
    font = font_of(max(13, round(0.024 * (width * max(heights)) ** 0.5)))
    gap = round(font.size * 0.8)
    strip = round(font.size * 1.7) if titles else 0
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + len(rows) * (strip + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + sum(heights[:row]) + row * (strip + gap)
        if titles:
            draw.text((left, top + strip * 0.42), fitted(titles[index], font, width), INK, font, anchor="lm")
        sheet.paste(image, (left, top + strip))
    return sheet


def truth_sheet(
    pictures: Iterable[tuple[str, Any, Iterable[TruthObject], np.ndarray | None]],
    categories: Categories,
    *,
    columns: int,
    side: int = 480,
) -> Image.Image:
    """A contact sheet of a dataset: every image with the boxes or masks of its objects, and their names.

    Args:
        images: title, image, objects and masks of each, as in `draw_truth`.
        categories: gives names and colours to the objects' category ids.
        columns: images in a row.
        side: pixels of the longer side of every image on the sheet.

    Raises:
        ValueError: there is no image.
    """
    titles, drawn = [], []
    for title, image, objects, masks in pictures:
        titles.append(title)
        scale = side / max(np.asarray(image).shape[:2])
        drawn.append(draw_truth(image, objects, categories, masks=masks, scale=scale))
    return contact_sheet(drawn, columns, titles)


def as_image(image: Any) -> Image.Image:
    """An RGB PIL image of an array or of a PIL image of any mode."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def _enlarged(picture: Image.Image, scale: float) -> Image.Image:
    """The image so many times as large."""
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _image_font(picture: Image.Image) -> ImageFont.FreeTypeFont:
    """The letters for names in an image; they grow with it."""
    return font_of(max(12, round(0.021 * (picture.width * picture.height) ** 0.5)))


def _line_width(font: ImageFont.FreeTypeFont) -> int:
    """Of outlines, in pixels."""
    return round(1 + font.size / 7)


def _legible_scale(picture: Image.Image) -> int:
    """Whole enlargement that brings the longer side near 720 pixels; large images stay as they are."""
    return min(8, max(1, round(720 / max(picture.size))))


def _drawable(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) boxes cut to the image, right side out. Raises ValueError when one is not finite."""
    finite = np.isfinite(corners).all(1)
    if not finite.all():
        raise ValueError(f"draw_boxes: box {int(finite.argmin())} is not finite: {corners[finite.argmin()].tolist()}")
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    limit = np.array(size) - 1
    return np.concatenate((low.clip(0, limit), high.clip(0, limit)), 1)


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image atomically, in the format that the suffix of its path names.

    Raises:
        OSError: it cannot be written.
        KeyError: Pillow writes no format with such a suffix.
    """
    with atomic_path(path) as temporary:
        image.save(temporary, Image.registered_extensions()[path.suffix.lower()])
