"""Pictures: boxes and masks with labels, panoptic maps, truth beside prediction, contact sheets, curves of a training.

Everything is drawn with Pillow and NumPy and returned as a new RGB image. Small images are drawn enlarged, so that
labels stay legible; line widths and letters follow the size of the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress, pairwise
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, find_objects

from opendetr.categories import Categories
from opendetr.structures import Detections, Panoptic

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (37, 99, 235), (234, 88, 12), (22, 163, 74), (147, 51, 234),
    (220, 38, 38), (8, 145, 178), (161, 98, 7), (71, 85, 105),
)  # fmt: skip
INK, FAINT_INK, RULE, PAPER = (17, 24, 39), (107, 114, 128), (229, 231, 235), (255, 255, 255)
HALO = (0, 0, 0, 64)
_CHART_MARGIN = 24
_FEW_POINTS, _MANY_POINTS = 40, 200  # up to the first each is marked, above the second an average is drawn
_FILL = 0.45  # how much of a mask's colour covers the picture
_DARK = 0.35  # the halo of an outline, likewise
# Things of one class are told apart by shades: how far their colours go to white (above 0) or to black (below).
_SHADES = (0.0, 0.4, -0.35, 0.2, -0.18, 0.55, -0.5)
_LEAST_LABELLED = 0.001  # segments below this share of the picture get no name: it would hide them and others
_DEPTH_SIDE = 256  # the longer side of the map in which places for names are looked for
_SMOOTH = 4  # curves and rounded corners are drawn so many times larger and shrunk, which smooths their edges


class TruthObject(Protocol):
    """What `draw_truth` reads of an object: a data set's own record of it."""

    @property
    def category_id(self) -> int:
        """The data set's id of its category."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x, y, w, h in pixels of the image."""

    @property
    def crowd(self) -> bool:
        """Whether it stands for many objects."""


def draw_detections(
    detections: Detections, image: Any = None, *, min_score: float = 0.0, scale: float | None = None
) -> Image.Image:
    """The picture with the box, name and score of every detection; where it has a mask, that instead of the box.

    Args:
        detections: what was found in one image.
        image: (H, W, 3) uint8 RGB or a PIL image to draw on; `detections.image` when omitted.
        min_score: detections below it are not drawn.
        scale: enlargement of the picture; small images are enlarged to about 720 pixels when omitted.

    Raises:
        ValueError: there is no image, or it is of another size than the one the detections were found in.
    """
    picture = _own_picture("draw_detections", "detections", detections.image if image is None else image, detections)
    shown = detections[detections.scores >= min_score]
    captions = [f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores.tolist(), strict=True)]
    colours = [shown.categories.colours[label] for label in shown.labels.tolist()]
    masks = None if shown.masks is None else shown.masks.cpu().numpy()
    return draw_boxes(picture, shown.boxes.detach().cpu().numpy(), captions, colours, masks=masks, scale=scale)


def draw_panoptic(found: Panoptic, image: Any = None, *, scale: float | None = None) -> Image.Image:
    """The picture with every segment of a panoptic map in its colour, and their names.

    Args:
        found: the map of one image.
        image: (H, W, 3) uint8 RGB or a PIL image to draw on; `found.image` when omitted.
        scale: as in `draw_detections`.

    Raises:
        ValueError: there is no image, or it is of another size than the map.
    """
    picture = _own_picture("draw_panoptic", "map", found.image if image is None else image, found)
    labels = {segment.id: segment.label for segment in found.info}
    return draw_segments(picture, found.segments.cpu().numpy(), labels, found.categories, scale=scale)


def _own_picture(function: str, what: str, image: Any, found: Detections | Panoptic) -> Image.Image:
    """The image as a picture. Raises ValueError when it is missing, or of another size than what was found in it."""
    if image is None:
        raise ValueError(f"{function}: the {what} hold{'' if what.endswith('s') else 's'} no image; pass the one of it")
    picture = _as_picture(image)
    height, width = found.size
    if picture.size != (width, height):
        raise ValueError(
            f"{function}: the image is {picture.width} x {picture.height}, but the {what} "
            f"{'are' if what.endswith('s') else 'is'} of one of {width} x {height}; pass that one"
        )
    return picture


def draw_truth(
    image: Any,
    objects: Iterable[TruthObject],
    categories: Categories,
    *,
    masks: np.ndarray | None = None,
    scale: float | None = None,
) -> Image.Image:
    """The picture with the box and name of every object of a data set's record; crowds are marked as such.

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
    """The picture with boxes and captions. Captions keep inside the picture and out of each other's way.

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
    picture = _as_picture(image)
    scale = _legible_scale(picture) if scale is None else scale
    if masks is not None and masks.shape != (len(captions), picture.height, picture.width):
        expected = (len(captions), picture.height, picture.width)
        raise ValueError(f"draw_boxes: expected masks of {expected}, got {masks.shape}")
    picture = _enlarged(picture, scale)
    corners = _drawable(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale, picture.size)
    if not len(corners) == len(captions) == len(colours):
        raise ValueError(f"draw_boxes: {len(corners)} boxes, {len(captions)} captions, {len(colours)} colours")
    font = _picture_font(picture)
    line = _line_width(font)
    sizes = [np.array(_label_size(caption, font)) for caption in captions]
    outer = (corners.round() + np.array([-1, -1, 1, 1]) * (line // 2)).clip(0, np.tile(picture.size, 2) - 1)
    options = [_label_options(box, size, picture.size) for box, size in zip(outer, sizes, strict=True)]
    boxed: np.ndarray = np.ones(len(corners), dtype=bool)
    if masks is not None:
        colours = _shaded(colours)
        boxed = np.array([not mask.any() for mask in masks], dtype=bool)
        picture = _masked(picture, masks, colours, line)
        for index in np.flatnonzero(~boxed):
            options[index] = _region_options(_Region.of(masks[index], scale), sizes[index], picture.size)
    picture = _outlined(picture, outer[boxed], list(compress(colours, boxed.tolist())), line)
    places = _label_places(options)
    for caption, colour, place in reversed(list(zip(captions, colours, places, strict=True))):
        if caption:
            _draw_label(picture, caption, colour, place, font)
    return picture


def draw_segments(
    image: Any,
    segments: np.ndarray,
    labels: Mapping[int, int],
    categories: Categories,
    *,
    scale: float | None = None,
) -> Image.Image:
    """The picture with every segment of a panoptic map in its colour, and names at the centres of the larger ones.

    Args:
        image: (H, W, 3) or (H, W) uint8 array, or a PIL image.
        segments: (H, W) whole numbers, the segment that each pixel belongs to.
        labels: the label of each segment by its number; what is not in it stays as it is.
        categories: gives names and colours to the labels; things of one class are told apart by shades.
        scale: as in `draw_detections`.

    Raises:
        ValueError: image and map differ in size.
    """
    picture = _as_picture(image)
    if segments.shape != (picture.height, picture.width):
        expected = (picture.height, picture.width)
        raise ValueError(f"draw_segments: expected a map of {expected}, got {segments.shape}")
    scale = _legible_scale(picture) if scale is None else scale
    picture = _enlarged(picture, scale)
    present, index = np.unique(segments, return_inverse=True)
    index = index.reshape(segments.shape)
    known = [number for number, id_ in enumerate(present.tolist()) if id_ in labels]
    of_known = [labels[int(present[number])] for number in known]
    colours = _shaded(
        [categories.colours[label] for label in of_known], [categories.isthing[label] for label in of_known]
    )
    font = _picture_font(picture)
    regions = np.zeros(len(present), dtype=np.int32)
    regions[known] = np.arange(1, len(known) + 1)
    enlarged = _resized_map(regions[index], picture.size)
    picture = _coloured(picture, enlarged, colours, _line_width(font))
    names = [categories.names[label] for label in of_known]
    return _named(picture, enlarged, names, colours, font)


def contact_sheet(pictures: Sequence[Image.Image], columns: int, titles: Sequence[str] = ()) -> Image.Image:
    """Pictures in rows of `columns`, each under its title; a row is as high as its highest picture.

    Raises:
        ValueError: there is no picture, or not as many titles (when there are any) as pictures.
    """
    if not pictures:
        raise ValueError("contact_sheet: expected at least one picture, got none")
    if titles and len(titles) != len(pictures):
        raise ValueError(f"contact_sheet: expected {len(pictures)} titles, got {len(titles)}")
    columns = min(columns, len(pictures))
    width = max(picture.width for picture in pictures)
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    font = _font(max(13, round(0.024 * (width * max(heights)) ** 0.5)))
    gap = round(font.size * 0.8)
    strip = round(font.size * 1.7) if titles else 0
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + len(rows) * (strip + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + sum(heights[:row]) + row * (strip + gap)
        if titles:
            draw.text((left, top + strip * 0.42), _fitted(titles[index], font, width), INK, font, anchor="lm")
        sheet.paste(picture, (left, top + strip))
    return sheet


def truth_sheet(
    pictures: Iterable[tuple[str, Any, Iterable[TruthObject], np.ndarray | None]],
    categories: Categories,
    *,
    columns: int,
    side: int = 480,
) -> Image.Image:
    """A contact sheet of a data set: every picture with the boxes or masks of its objects, and their names.

    Args:
        pictures: title, image, objects and masks of each, as in `draw_truth`.
        categories: gives names and colours to the objects' category ids.
        columns: pictures in a row.
        side: pixels of the longer side of every picture on the sheet.

    Raises:
        ValueError: there is no picture.
    """
    titles, drawn = [], []
    for title, image, objects, masks in pictures:
        titles.append(title)
        scale = side / max(np.asarray(image).shape[:2])
        drawn.append(draw_truth(image, objects, categories, masks=masks, scale=scale))
    return contact_sheet(drawn, columns, titles)


def _as_picture(image: Any) -> Image.Image:
    """An RGB PIL image of an array or of a PIL image of any mode."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    return image.convert("RGB")


def _enlarged(picture: Image.Image, scale: float) -> Image.Image:
    """The picture so many times as large."""
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _picture_font(picture: Image.Image) -> ImageFont.FreeTypeFont:
    """The letters for names in a picture; they grow with it."""
    return _font(max(12, round(0.021 * (picture.width * picture.height) ** 0.5)))


def _line_width(font: ImageFont.FreeTypeFont) -> int:
    """Of outlines, in pixels."""
    return round(1 + font.size / 7)


def _legible_scale(picture: Image.Image) -> int:
    """Whole enlargement that brings the longer side near 720 pixels; large pictures stay as they are."""
    return min(8, max(1, round(720 / max(picture.size))))


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font in `size` pixels."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which draws text; reinstall it: pip install -U pillow")
    return font


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, its end cut off with an ellipsis where it is wider than `width`."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _drawable(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) boxes cut to the picture, right side out. Raises ValueError when one is not finite."""
    finite = np.isfinite(corners).all(1)
    if not finite.all():
        raise ValueError(f"draw_boxes: box {int(finite.argmin())} is not finite: {corners[finite.argmin()].tolist()}")
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    limit = np.array(size) - 1
    return np.concatenate((low.clip(0, limit), high.clip(0, limit)), 1)


def _outlined(picture: Image.Image, outer: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """The picture with lines inside the corners `outer`, large boxes first.

    Lines are `line` wide, thinner in boxes that they would fill. A dark halo sets them off from backgrounds of their
    own colour.
    """
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    sides = outer[:, 2:] - outer[:, :2]
    for index in np.argsort(-sides.prod(1), kind="stable"):
        left, top, right, bottom = outer[index].tolist()
        width = int(np.clip(sides[index].min() // 6, 1, line))
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=HALO, width=width + 2)
        draw.rectangle((left, top, right, bottom), outline=colours[index], width=width)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _shaded(colours: Sequence[Colour], apart: Sequence[bool] = ()) -> list[Colour]:
    """The colours; those that have been there before in other shades, where `apart` does not say otherwise."""
    seen = Counter[Colour]()
    shaded = []
    for index, colour in enumerate(colours):
        shade = _SHADES[seen[colour] % len(_SHADES)] if not apart or apart[index] else 0.0
        seen[colour] += 1
        goal = 255 if shade > 0 else 0
        red, green, blue = (round(value + abs(shade) * (goal - value)) for value in colour)
        shaded.append((red, green, blue))
    return shaded


def _masked(picture: Image.Image, masks: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """The picture with (n, H, W) masks on it, half-transparent and outlined, large ones first."""
    pixels = np.asarray(picture).astype(np.float32)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        mask = masks[index]
        if not mask.any():
            continue
        if mask.shape != pixels.shape[:2]:  # smooth where it is enlarged
            smooth = Image.fromarray(mask).convert("L").resize(picture.size, Image.Resampling.BILINEAR)
            mask = np.asarray(smooth) > 127
        _paint(pixels, mask, colours[index], line)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _paint(pixels: np.ndarray, mask: np.ndarray, colour: Colour, line: int) -> None:
    """Lay one mask on (H, W, 3) float pixels: its fill, a dark halo around it, and its outline inside."""
    (place,) = find_objects(mask.astype(np.uint8)) or (None,)
    if place is None:
        return
    rows, columns = (slice(max(0, side.start - 2), side.stop + 2) for side in place)
    part, inside = pixels[rows, columns], mask[rows, columns]
    inner = _eroded(inside, line)
    halo = ~_eroded(~inside, 1) & ~inside
    part[halo] *= 1 - _DARK
    part[inner] += _FILL * (np.array(colour, dtype=np.float32) - part[inner])
    part[inside & ~inner] = colour


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask without what lies within so many pixels of its border; the edge of the array is no border."""
    for _ in range(steps):
        padded = np.pad(mask, 1, mode="edge")
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _resized_map(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) region numbers brought to the size of the picture."""
    if regions.shape == size[::-1]:
        return regions
    return np.asarray(Image.fromarray(regions).resize(size, Image.Resampling.NEAREST))


def _coloured(picture: Image.Image, regions: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """The picture with regions (H, W), numbered from 1, in their colours; 0 stays as it is."""
    pixels = np.asarray(picture).astype(np.float32)
    palette = np.array([(0, 0, 0), *colours], dtype=np.float32)
    strength = np.where(regions > 0, _FILL, 0.0).astype(np.float32)
    border = np.zeros(regions.shape, dtype=bool)
    border[1:] |= regions[1:] != regions[:-1]
    border[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    border = ~_eroded(~border, max(1, line // 2))
    pixels += strength[..., None] * (palette[regions] - pixels)
    pixels[border] *= _DARK
    return Image.fromarray(pixels.round().astype(np.uint8))


def _named(
    picture: Image.Image,
    regions: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Colour],
    font: ImageFont.FreeTypeFont,
) -> Image.Image:
    """The picture with a name in the middle of each region that is large enough, the largest first."""
    areas = np.bincount(regions.ravel(), minlength=len(names) + 1)[1:]
    order = [index for index in np.argsort(-areas, kind="stable") if areas[index] >= _LEAST_LABELLED * regions.size]
    options = []
    for index in order:
        region = _Region.of(regions == index + 1, 1.0)
        options.append(_region_options(region, np.array(_label_size(names[index], font)), picture.size))
    plates = _label_places(options)
    for index, plate in reversed(list(zip(order, plates, strict=True))):
        _draw_label(picture, names[index], colours[index], plate, font)
    return picture


@dataclass(frozen=True)
class _Region:
    """Where a name may stand for a region of a picture.

    Attributes:
        box: (4,) its corners.
        middle: (2,) x and y of a pixel deep inside it, near its centre.
        depth: how far its deepest pixel is from its border, in pixels.
    """

    box: np.ndarray
    middle: np.ndarray
    depth: float

    @classmethod
    def of(cls, mask: np.ndarray, scale: float) -> _Region:
        """The region of an (H, W) mask with at least one pixel, in a picture `scale` times as large."""
        ((rows, columns),) = find_objects(mask.astype(np.uint8))
        shrink = max(1, max(rows.stop - rows.start, columns.stop - columns.start) // _DEPTH_SIDE)
        coarse = np.pad(mask[rows, columns][::shrink, ::shrink], 1)
        depths = distance_transform_edt(coarse)
        deep, centre = np.argwhere(depths >= 0.9 * depths.max()), np.argwhere(coarse).mean(0)
        row, column = deep[((deep - centre) ** 2).sum(1).argmin()]
        middle = np.array((column - 0.5, row - 0.5)) * shrink + (columns.start, rows.start)
        box = np.array((columns.start, rows.start, columns.stop, rows.stop))
        return cls(box * scale, middle * scale, float(depths.max()) * shrink * scale)


def _label_size(caption: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a label in pixels."""
    return round(font.getlength(caption) + font.size * 0.7), round(font.size * 1.4)


def _label_places(options: Iterable[np.ndarray]) -> np.ndarray:
    """(n, 4) corners of the labels: of the (options, 4) corners of each, the one off the labels placed before."""
    places = np.zeros((0, 4))
    for each in options:
        low = np.maximum(each[:, None, :2], places[None, :, :2])
        high = np.minimum(each[:, None, 2:], places[None, :, 2:])
        hidden = (high - low).clip(0).prod(-1).sum(-1)
        preference = np.arange(len(each)) * 0.02 * (each[0, 2:] - each[0, :2]).prod()
        places = np.concatenate((places, each[[np.argmin(hidden + preference)]]))
    return places


def _label_options(box: np.ndarray, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(options, 4) corners where a label may stand, best first: above its box, inside, below, beside it."""
    (left, top, right, bottom), (width, height) = box, size
    across, down = (left, right - width), (top, bottom - height)
    low = np.array(
        [(x, top - height) for x in across]
        + [(x, top) for x in across]
        + [(x, bottom) for x in across]
        + [(x, bottom - height) for x in across]
        + [(x, y) for x in (right, left - width) for y in down]
    )
    return _inside(low, size, picture)


def _region_options(region: _Region, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(options, 4) corners where a label may stand: in the middle of its region if it fits there, else beside it."""
    width = region.box[2] - region.box[0]
    fits = 2 * region.depth >= 1.3 * size[1] and 0.8 * width >= size[0]
    return _options_around(region.middle, size, picture) if fits else _label_options(region.box, size, picture)


def _options_around(middle: np.ndarray, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(options, 4) corners where a label may stand, best first: on the point, then around it."""
    steps = np.array([(0, 0), (0, -1), (0, 1), (-0.6, 0), (0.6, 0), (-0.6, -1), (0.6, -1), (-0.6, 1), (0.6, 1)])
    return _inside(middle + (steps - 0.5) * size, size, picture)


def _inside(low: np.ndarray, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(options, 4) whole corners of labels of one size, moved into the picture."""
    low = low.clip(0, np.maximum(np.array(picture) - size, 0))
    return np.concatenate((low, low + size), 1).round()


def _draw_label(
    picture: Image.Image, caption: str, colour: Colour, place: np.ndarray, font: ImageFont.FreeTypeFont
) -> None:
    """Draw a caption on a plate of the box's colour, in black or white, whichever is easier to read on it."""
    left, top, right, bottom = (int(value) for value in place)
    width, height = right - left, bottom - top
    plate = Image.new("L", (width * _SMOOTH, height * _SMOOTH))
    area = (0, 0, plate.width - 1, plate.height - 1)
    ImageDraw.Draw(plate).rounded_rectangle(area, radius=round(font.size * 0.25) * _SMOOTH, fill=255)
    picture.paste(colour, (left, top), plate.resize((width, height), Image.Resampling.BOX))
    ink = PAPER if _contrast(colour, PAPER) > _contrast(colour, INK) else INK
    middle = (left + width / 2, top + height / 2)
    ImageDraw.Draw(picture).text(middle, caption, ink, font, anchor="mm")


def _luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour, 0..1 (WCAG 2.1)."""
    values = np.array(colour) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _contrast(a: Colour, b: Colour) -> float:
    """Contrast ratio of two colours, 1..21 (WCAG 2.1)."""
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@dataclass(frozen=True)
class _Curve:
    """One line of a chart: `points` and, drawn strongly, `trend`, both (n, 2); they are one where few points are."""

    points: np.ndarray
    trend: np.ndarray

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> _Curve:
        """With a moving average over a fiftieth of the points as trend, where there are more than 200."""
        array = np.array(points, dtype=np.float64).reshape(-1, 2)
        array[~np.isfinite(array).all(1), 1] = np.nan
        if len(array) <= _MANY_POINTS:
            return cls(array, array)
        known = np.isfinite(array[:, 1])
        window = np.ones(2 * (len(array) // 100) + 1)
        total = np.convolve(np.where(known, array[:, 1], 0.0), window, "same")
        count = np.convolve(known, window, "same")
        mean = np.where(known, total / np.maximum(count, 1), np.nan)
        return cls(array, np.stack((array[:, 0], mean), 1))

    @property
    def last(self) -> float | None:
        """The last known value, None where there is none."""
        known = self.trend[np.isfinite(self.trend[:, 1]), 1]
        return float(known[-1]) if len(known) else None


@dataclass(frozen=True)
class _Frame:
    """The area of a chart that holds the curves: its pixels, and the range of values that they span."""

    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def place(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) values -> (n, 2) pixels; what lies above or below the range ends at its edge."""
        low, high = np.array((self.x_range, self.y_range)).T
        share = (points - low) / (high - low)
        x = self.left + share[:, 0] * (self.right - self.left)
        y = self.bottom - share[:, 1].clip(0, 1) * (self.bottom - self.top)
        return np.stack((x, y), 1)


def draw_curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str = "",
    *,
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (960, 540),
) -> Image.Image:
    """A line chart; the legend gives the last value of each line.

    A line of more than 200 points is drawn as their moving average over a fiftieth of them, with the points themselves
    behind it in a pale shade. Values that are not finite leave a gap.

    Args:
        series: the (x, y) points of each line by its name, in the order of x.
        title: above the chart.
        x_label: below the horizontal axis.
        y_label: above the vertical axis.
        size: width and height of the picture in pixels.
    """
    curves = {name: _Curve.of(points) for name, points in series.items()}
    chart = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(chart)
    top = _CHART_MARGIN
    if title:
        draw.text((_CHART_MARGIN, top), _fitted(title, _font(20), size[0] - 2 * _CHART_MARGIN), INK, _font(20))
        top += 34
    top = _draw_legend(draw, curves, top, size[0])
    if y_label:
        draw.text((_CHART_MARGIN, top), y_label, FAINT_INK, _font(13))
        top += 20
    if x_label:
        draw.text((size[0] / 2, size[1] - 12), x_label, FAINT_INK, _font(13), anchor="mb")
    frame = _draw_axes(draw, list(curves.values()), (top + 10, size[1] - (56 if x_label else 40)), size[0])
    return _with_curves(chart, frame, list(curves.values()))


def _draw_legend(draw: ImageDraw.ImageDraw, curves: Mapping[str, _Curve], top: int, width: int) -> int:
    """Draw each line's colour, name and last value in rows below `top`; the height where they end."""
    font = _font(14)
    x = _CHART_MARGIN
    for index, (name, curve) in enumerate(curves.items()):
        value = "" if curve.last is None else _value_text(curve.last)
        length = 26 + font.getlength(f"{name} {value}") + 4
        if x > _CHART_MARGIN and x + length > width - _CHART_MARGIN:
            x, top = _CHART_MARGIN, top + 22
        draw.rounded_rectangle((x, top + 6, x + 18, top + 10), 2, PALETTE[index % len(PALETTE)])
        draw.text((x + 26, top + 8), name, INK, font, anchor="lm")
        draw.text((x + length, top + 8), value, FAINT_INK, font, anchor="rm")
        x += round(length) + 24
    return top + 28 if curves else top


def _draw_axes(draw: ImageDraw.ImageDraw, curves: Sequence[_Curve], rows: tuple[int, int], width: int) -> _Frame:
    """Draw grid and ticks between two heights; the frame that they leave for the curves."""
    font = _font(13)
    x_low, x_high, y_low, y_high = _ranges(curves)
    whole = all(np.all(curve.points[:, 0] % 1 == 0) for curve in curves)
    x_step = _nice_step(x_high - x_low, 8)
    x_step = max(1.0, x_step) if whole else x_step
    y_step = _nice_step(y_high - y_low, 5)
    y_ticks = np.arange(np.floor(y_low / y_step), np.ceil(y_high / y_step) + 1) * y_step
    x_ticks = np.arange(np.ceil(x_low / x_step), np.floor(x_high / x_step) + 1) * x_step
    texts = [_tick_text(tick, y_step) for tick in y_ticks]
    left = _CHART_MARGIN + max(font.getlength(text) for text in texts) + 10
    right = width - _CHART_MARGIN - 6
    frame = _Frame(left, rows[0], right, rows[1], (x_low, x_high), (y_ticks[0], y_ticks[-1]))
    for (_, y), text in zip(frame.place(np.stack((np.full_like(y_ticks, x_low), y_ticks), 1)), texts, strict=True):
        draw.line((left, round(y), right, round(y)), RULE, 1)
        draw.text((left - 10, y), text, FAINT_INK, font, anchor="rm")
    for tick, (x, _) in zip(x_ticks, frame.place(np.stack((x_ticks, np.full_like(x_ticks, y_low)), 1)), strict=True):
        draw.text((x, rows[1] + 10), _tick_text(tick, x_step), FAINT_INK, font, anchor="ma")
    return frame


def _ranges(curves: Sequence[_Curve]) -> tuple[float, float, float, float]:
    """Lowest and highest x, lowest and highest y to show; a few outliers among many points are left outside."""
    known = [curve.points[np.isfinite(curve.points[:, 1])] for curve in curves]
    trends = [curve.trend[np.isfinite(curve.trend[:, 1])] for curve in curves]
    x = np.concatenate([points[:, 0] for points in known] or [np.zeros(0)])
    if not len(x):
        return 0.0, 1.0, 0.0, 1.0
    y = np.concatenate([trend[:, 1] for trend in trends])
    many = [points[:, 1] for points in known if len(points) > _MANY_POINTS]
    bulk = np.concatenate([np.percentile(values, (1, 99)) for values in many] or [y])
    y_low, y_high = min(y.min(), bulk.min()), max(y.max(), bulk.max())
    if 0 <= y_low < 0.5 * y_high:
        y_low = 0.0
    return *_widened(x.min(), x.max()), *_widened(y_low, y_high)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range itself, or one around its value where it has no extent."""
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` into about `count` parts."""
    magnitude = 10.0 ** np.floor(np.log10(span / count))
    return float(magnitude * next(factor for factor in (1, 2, 5, 10) if span / count <= factor * magnitude))


def _tick_text(value: float, step: float) -> str:
    """A tick's number with as many decimals as the step between ticks needs."""
    decimals = max(0, -int(np.floor(np.log10(step))))
    value = 0.0 if abs(value) < step / 2 else value  # no minus before a zero
    return f"{value:,.{decimals}f}" if decimals <= 4 else f"{value:.3g}"


def _value_text(value: float) -> str:
    """A number with about four digits, and none of an exponent where it is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _with_curves(chart: Image.Image, frame: _Frame, curves: Sequence[_Curve]) -> Image.Image:
    """The chart with the curves drawn, pale points first. Enlarging and shrinking smooths lines and spares letters."""
    large = chart.resize((chart.width * _SMOOTH, chart.height * _SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    colours = [PALETTE[index % len(PALETTE)] for index in range(len(curves))]
    for curve, colour in zip(curves, colours, strict=True):
        if curve.trend is not curve.points:
            pale = tuple(round(0.25 * value + 0.75 * 255) for value in colour)
            _draw_curve(draw, frame.place(curve.points), pale, 1.2)
    for curve, colour in zip(curves, colours, strict=True):
        _draw_curve(draw, frame.place(curve.trend), colour, 2.4)
    return large.resize(chart.size, Image.Resampling.BOX)


def _draw_curve(draw: ImageDraw.ImageDraw, pixels: np.ndarray, colour: tuple[int, ...], width: float) -> None:
    """Draw the runs of known points among (n, 2) pixels; where there are few points, each is marked with a dot."""
    large = (pixels + 0.5) * _SMOOTH
    gaps = np.flatnonzero(~np.isfinite(large[:, 1]))
    for start, end in pairwise([-1, *gaps.tolist(), len(large)]):
        run = [(x, y) for x, y in large[start + 1 : end].tolist()]
        if not run:
            continue
        draw.line(run, colour, round(width * _SMOOTH), joint="curve")
        radius = width * _SMOOTH * 1.3
        for x, y in run if len(large) <= _FEW_POINTS else ():
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
