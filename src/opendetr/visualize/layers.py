"""Boxes, masks and regions laid over an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects

from opendetr.visualize.style import Colour

_HALO = (0, 0, 0, 64)
_FILL = 0.45  # how much of a mask's colour covers the image
_DARK = 0.35  # the halo of an outline, likewise
# Things of one class are told apart by shades: how far their colours go to white (above 0) or to black (below).
_SHADES = (0.0, 0.4, -0.35, 0.2, -0.18, 0.55, -0.5)


def outlined(picture: Image.Image, outer: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """The image with lines inside the corners `outer`, large boxes first.

    Lines are `line` wide, thinner in boxes that they would fill. A dark halo sets them off from backgrounds of their
    own colour.
    """
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    sides = outer[:, 2:] - outer[:, :2]
    for index in np.argsort(-sides.prod(1), kind="stable"):
        left, top, right, bottom = outer[index].tolist()
        width = int(np.clip(sides[index].min() // 6, 1, line))
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_HALO, width=width + 2)
        draw.rectangle((left, top, right, bottom), outline=colours[index], width=width)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def shaded(colours: Sequence[Colour], apart: Sequence[bool] = ()) -> list[Colour]:
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


def masked(picture: Image.Image, masks: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """The image with (n, H, W) masks on it, half-transparent and outlined, large ones first."""
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


def resized_map(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) region numbers brought to the size of the image."""
    if regions.shape == size[::-1]:
        return regions
    return np.asarray(Image.fromarray(regions).resize(size, Image.Resampling.NEAREST))


def coloured(picture: Image.Image, regions: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """The image with regions (H, W), numbered from 1, in their colours; 0 stays as it is."""
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
