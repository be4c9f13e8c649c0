"""Draw boxes, masks and panoptic maps on images, and arrange images in contact sheets."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opendetr.categories import Categories, spread_colour
from opendetr.files import atomic_path
from opendetr.visualize.labels import Region, draw_label, label_options, label_places, label_size, region_options
from opendetr.visualize.layers import FILL, coloured, masked, outlined, resized_map, shaded
from opendetr.visualize.style import INK, PAPER, Colour, fitted, font_of

_LEAST_LABELLED = 0.001  # segments below this share of the image get no label: it would hide them and others


class TruthObject(Protocol):
    """The attributes of an annotated object that `draw_truth` uses."""

    @property
    def category_id(self) -> int:
        """The dataset's id of its category."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, w, h in pixels of the image."""

    @property
    def crowd(self) -> bool:
        """Whether it is a region of many objects."""


def draw_truth(
    image: Any,
    objects: Iterable[TruthObject],
    categories: Categories,
    *,
    names: Sequence[str] | None = None,
    masks: np.ndarray | None = None,
    scale: float | None = None,
    text: float = 1,
) -> Image.Image:
    """Draw the box and class name of each annotated object. Crowds are marked.

    Args:
        image: (H, W, 3) uint8 RGB or a PIL image, in the size of the annotations.
        objects: the annotated objects, with boxes as x, y, w, h in pixels.
        categories: the names and colours of the category ids.
        names: for each object the phrase that is drawn instead of its class name, in the colour of the phrase.
        masks: (n, H, W) bool, drawn instead of the boxes. For an object with an empty mask its box is drawn.
        scale: enlargement of the image, as in `draw_boxes`.
        text: size of the labels, as in `draw_boxes`.
    """
    boxes, captions, colours = [], [], []
    for index, item in enumerate(objects):
        left, top, width, height = item.box
        label = categories.label_of_id(item.category_id)
        boxes.append((left, top, left + width, top + height))
        name = categories.names[label] if names is None else names[index]
        captions.append(f"{name} (crowd)" if item.crowd else name)
        colours.append(categories.colours[label] if names is None else phrase_colour(name))
    return draw_boxes(image, np.array(boxes), captions, colours, masks=masks, scale=scale, text=text)


def phrase_colour(phrase: str) -> Colour:
    """The colour of what a phrase names: the same in every image, and most often another one for another phrase."""
    return spread_colour(zlib.crc32(phrase.encode()) % 1000)


def draw_boxes(
    image: Any,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[Colour],
    *,
    masks: np.ndarray | None = None,
    fill: float = FILL,
    scale: float | None = None,
    text: float = 1,
) -> Image.Image:
    """Draw boxes with captions. Captions stay inside the image and avoid each other.

    Args:
        image: (H, W, 3) or (H, W) uint8 array, or a PIL image.
        boxes: (n, 4) xyxy in pixels of the image. Boxes are clipped to the image.
        captions: n texts. If space is short, the first captions get the better positions. An empty text draws no label.
        colours: n RGB triples.
        masks: (n, H, W) bool, drawn half-transparent with outlines instead of the boxes. Masks of one colour get
            different shades. For an empty mask its box is drawn.
        fill: opacity of the colour inside masks, in 0..1.
        scale: factor by which the image is enlarged before drawing. None: small images are enlarged by a whole factor
            until labels are legible.
        text: factor on the size of labels and lines, for images that are shown smaller than they are.

    Raises:
        ValueError: a box is not finite, the lengths differ, or the masks do not have the size of the image.
    """
    canvas = as_image(image)
    scale = legible_scale(canvas) if scale is None else scale
    if masks is not None and masks.shape != (len(captions), canvas.height, canvas.width):
        expected = (len(captions), canvas.height, canvas.width)
        raise ValueError(f"draw_boxes: expected masks of {expected}, got {masks.shape}")
    canvas = enlarge(canvas, scale)
    corners = _drawable(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale, canvas.size)
    if not len(corners) == len(captions) == len(colours):
        raise ValueError(f"draw_boxes: {len(corners)} boxes, {len(captions)} captions, {len(colours)} colours")
    font = _image_font(canvas, text)
    line = _line_width(font)
    sizes = [np.array(label_size(caption, font)) for caption in captions]
    outer = (corners.round() + np.array([-1, -1, 1, 1]) * (line // 2)).clip(0, np.tile(canvas.size, 2) - 1)
    options = [label_options(box, size, canvas.size) for box, size in zip(outer, sizes, strict=True)]
    boxed: np.ndarray = np.ones(len(corners), dtype=bool)
    if masks is not None:
        colours = shaded(colours)
        boxed = np.array([not mask.any() for mask in masks], dtype=bool)
        canvas = masked(canvas, masks, colours, line, fill)
        for index in np.flatnonzero(~boxed):
            options[index] = region_options(Region.of(masks[index], scale), sizes[index], canvas.size)
    canvas = outlined(canvas, outer[boxed], list(compress(colours, boxed.tolist())), line)
    places = label_places(options)
    for caption, colour, place in reversed(list(zip(captions, colours, places, strict=True))):
        if caption:
            draw_label(canvas, caption, colour, place, font)
    return canvas


def draw_segments(
    image: Any,
    segments: np.ndarray,
    labels: Mapping[int, int],
    categories: Categories,
    *,
    scale: float | None = None,
    text: float = 1,
) -> Image.Image:
    """Colour the segments of a panoptic map and write class names on the larger ones.

    Args:
        image: (H, W, 3) or (H, W) uint8 array, or a PIL image.
        segments: (H, W) integers, the number of the segment of each pixel.
        labels: the label of each segment by its number. Pixels of other numbers do not change.
        categories: the names and colours of the labels. Things of one class get different shades.
        scale: enlargement of the image, as in `draw_boxes`.
        text: size of the labels, as in `draw_boxes`.

    Raises:
        ValueError: image and map differ in size.
    """
    canvas = as_image(image)
    if segments.shape != (canvas.height, canvas.width):
        expected = (canvas.height, canvas.width)
        raise ValueError(f"draw_segments: expected a map of {expected}, got {segments.shape}")
    scale = legible_scale(canvas) if scale is None else scale
    canvas = enlarge(canvas, scale)
    present, index = np.unique(segments, return_inverse=True)
    index = index.reshape(segments.shape)
    known = [position for position, number in enumerate(present.tolist()) if number in labels]
    known_labels = [labels[int(present[position])] for position in known]
    colours = shaded(
        [categories.colours[label] for label in known_labels], [categories.isthing[label] for label in known_labels]
    )
    font = _image_font(canvas, text)
    regions = np.zeros(len(present), dtype=np.int32)
    regions[known] = np.arange(1, len(known) + 1)
    enlarged = resized_map(regions[index], canvas.size)
    canvas = coloured(canvas, enlarged, colours, _line_width(font))
    names = [categories.names[label] for label in known_labels]
    return _labelled(canvas, enlarged, names, colours, font)


def _labelled(
    canvas: Image.Image,
    regions: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Colour],
    font: ImageFont.FreeTypeFont,
) -> Image.Image:
    """Draw the name of each region that is large enough in its middle, the largest region first."""
    areas = np.bincount(regions.ravel(), minlength=len(names) + 1)[1:]
    order = [index for index in np.argsort(-areas, kind="stable") if areas[index] >= _LEAST_LABELLED * regions.size]
    options = []
    for index in order:
        region = Region.of(regions == index + 1, 1.0)
        options.append(region_options(region, np.array(label_size(names[index], font)), canvas.size))
    places = label_places(options)
    for index, place in reversed(list(zip(order, places, strict=True))):
        draw_label(canvas, names[index], colours[index], place, font)
    return canvas


def contact_sheet(images: Sequence[Image.Image], columns: int, titles: Sequence[str] = ()) -> Image.Image:
    """Arrange images in rows of `columns`, each below its title. The height of a row is that of its highest image.

    Raises:
        ValueError: there are no images, or the number of titles, if there are any, is not the number of images.
    """
    if not images:
        raise ValueError("contact_sheet: expected at least one image, got none")
    if titles and len(titles) != len(images):
        raise ValueError(f"contact_sheet: expected {len(images)} titles, got {len(titles)}")
    columns = min(columns, len(images))
    width = max(image.width for image in images)
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [max(image.height for image in row) for row in rows]
    font = font_of(max(13, round(0.024 * (width * max(heights)) ** 0.5)))
    gap = round(font.size * 0.8)
    strip = round(font.size * 1.7) if titles else 0
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + len(rows) * (strip + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + sum(heights[:row]) + row * (strip + gap)
        if titles:
            draw.text((left, top + strip * 0.42), fitted(titles[index], font, width), INK, font, anchor="lm")
        sheet.paste(image, (left, top + strip))
    return sheet


def as_image(image: Any) -> Image.Image:
    """Convert an array or a PIL image of any mode to an RGB PIL image."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def enlarge(image: Image.Image, scale: float) -> Image.Image:
    """The image enlarged by the factor `scale`."""
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _image_font(image: Image.Image, text: float) -> ImageFont.FreeTypeFont:
    """The font for labels; its size grows with the image and by the factor `text`."""
    return font_of(round(text * max(12, round(0.021 * (image.width * image.height) ** 0.5))))


def _line_width(font: ImageFont.FreeTypeFont) -> int:
    """The width of outlines in pixels."""
    return round(1 + font.size / 7)


def legible_scale(image: Image.Image) -> int:
    """The integer factor, 1 to 8, that brings the longer side of a small image near 720 pixels."""
    return min(8, max(1, round(720 / max(image.size))))


def _drawable(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) boxes clipped to the image, with ordered corners. Raises ValueError if a box is not finite."""
    finite = np.isfinite(corners).all(1)
    if not finite.all():
        raise ValueError(f"draw_boxes: box {int(finite.argmin())} is not finite: {corners[finite.argmin()].tolist()}")
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    limit = np.array(size) - 1
    return np.concatenate((low.clip(0, limit), high.clip(0, limit)), 1)


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image atomically, in the format of the path's suffix.

    Raises:
        OSError: the file cannot be written.
        ValueError: Pillow has no format with this suffix.
    """
    format_ = require_format(path)
    with atomic_path(path) as temporary:
        image.save(temporary, format_)


def require_format(path: Path) -> str:
    """The name of Pillow's format for the path's suffix. Raises ValueError if it writes no images with this suffix."""
    format_ = Image.registered_extensions().get(path.suffix.lower(), "")
    if format_ not in Image.SAVE:
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; give a name such as image.png")
    return format_
