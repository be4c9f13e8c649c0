"""Labels in images: choose their positions and draw them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, find_objects

from opendetr.visualize.style import INK, PAPER, SMOOTH, Colour

_DEPTH_SIDE = 256  # masks are reduced to about this longer side when label positions are computed


@dataclass(frozen=True)
class Region:
    """A region of an image that is to be labelled. All values are in pixels.

    Attributes:
        box: (4,) its bounding box, xyxy.
        middle: (2,) x and y of a pixel far from its border, near its centre.
        depth: distance of the innermost pixel from the border.
    """

    box: np.ndarray
    middle: np.ndarray
    depth: float

    @classmethod
    def of(cls, mask: np.ndarray, scale: float) -> Region:
        """The region of a non-empty mask (H, W), in an image that is `scale` times as large."""
        ((rows, columns),) = find_objects(mask.astype(np.uint8))
        shrink = max(1, max(rows.stop - rows.start, columns.stop - columns.start) // _DEPTH_SIDE)
        coarse = np.pad(mask[rows, columns][::shrink, ::shrink], 1)
        depths = distance_transform_edt(coarse)
        deep, centre = np.argwhere(depths >= 0.9 * depths.max()), np.argwhere(coarse).mean(0)
        row, column = deep[((deep - centre) ** 2).sum(1).argmin()]
        middle = np.array((column - 0.5, row - 0.5)) * shrink + (columns.start, rows.start)
        box = np.array((columns.start, rows.start, columns.stop, rows.stop))
        return cls(box * scale, middle * scale, float(depths.max()) * shrink * scale)


def label_size(caption: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Width and height of a label in pixels."""
    return round(font.getlength(caption) + font.size * 0.7), round(font.size * 1.4)


def label_places(options: Iterable[np.ndarray]) -> np.ndarray:
    """Choose for each label the option (k, 4) that covers the least of earlier labels. Returns (n, 4) xyxy."""
    places = np.zeros((0, 4))
    for boxes in options:
        low = np.maximum(boxes[:, None, :2], places[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], places[None, :, 2:])
        overlap = (high - low).clip(0).prod(-1).sum(-1)
        penalty = np.arange(len(boxes)) * 0.02 * (boxes[0, 2:] - boxes[0, :2]).prod()
        places = np.concatenate((places, boxes[[np.argmin(overlap + penalty)]]))
    return places


def label_options(box: np.ndarray, size: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Possible positions of a box's label, (k, 4) xyxy, best first: above the box, inside, below, next to it."""
    (left, top, right, bottom), (width, height) = box, size
    across, down = (left, right - width), (top, bottom - height)
    low = np.array(
        [(x, top - height) for x in across]
        + [(x, top) for x in across]
        + [(x, bottom) for x in across]
        + [(x, bottom - height) for x in across]
        + [(x, y) for x in (right, left - width) for y in down]
    )
    return _inside(low, size, image_size)


def region_options(region: Region, size: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Possible positions of a region's label, (k, 4) xyxy: in the middle if it fits, otherwise as for its box."""
    width = region.box[2] - region.box[0]
    fits = 2 * region.depth >= 1.3 * size[1] and 0.8 * width >= size[0]
    return _options_around(region.middle, size, image_size) if fits else label_options(region.box, size, image_size)


def _options_around(middle: np.ndarray, size: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Possible positions of a label, (k, 4) xyxy, best first: on the point, then around it."""
    steps = np.array([(0, 0), (0, -1), (0, 1), (-0.6, 0), (0.6, 0), (-0.6, -1), (0.6, -1), (-0.6, 1), (0.6, 1)])
    return _inside(middle + (steps - 0.5) * size, size, image_size)


def _inside(low: np.ndarray, size: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Labels (k, 4) xyxy of one size with the corners `low` (k, 2), moved into the image and rounded to pixels."""
    low = low.clip(0, np.maximum(np.array(image_size) - size, 0))
    return np.concatenate((low, low + size), 1).round()


def draw_label(
    image: Image.Image, caption: str, colour: Colour, place: np.ndarray, font: ImageFont.FreeTypeFont
) -> None:
    """Draw a caption in dark or light ink, whichever has more contrast, on a rounded rectangle of the given colour."""
    left, top, right, bottom = (int(value) for value in place)
    width, height = right - left, bottom - top
    plate = Image.new("L", (width * SMOOTH, height * SMOOTH))
    area = (0, 0, plate.width - 1, plate.height - 1)
    ImageDraw.Draw(plate).rounded_rectangle(area, radius=round(font.size * 0.25) * SMOOTH, fill=255)
    image.paste(colour, (left, top), plate.resize((width, height), Image.Resampling.BOX))
    ink = PAPER if _contrast(colour, PAPER) > _contrast(colour, INK) else INK
    middle = (left + width / 2, top + height / 2)
    ImageDraw.Draw(image).text(middle, caption, ink, font, anchor="mm")


def _luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour, 0..1 (WCAG 2.1)."""
    values = np.array(colour) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _contrast(a: Colour, b: Colour) -> float:
    """Contrast ratio of two colours, 1..21 (WCAG 2.1)."""
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)
