"""Draw boxes, masks and regions over an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects

from opendetr.visualize.style import Colour

_HALO = (0, 0, 0, 64)
FILL = 0.45  # opacity of a mask's colour
_DARK = 0.35  # opacity of the dark halo around an outline
# Shades distinguish things of one class: the share of white (above 0) or black (below 0) mixed into their colour.
_SHADES = (0.0, 0.4, -0.35, 0.2, -0.18, 0.55, -0.5)


def outlined(image: Image.Image, outer: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """Draw box outlines inside the corners `outer`, (n, 4) xyxy, large boxes first.

    Lines are `line` pixels wide, and thinner in small boxes. A dark halo separates them from backgrounds of the same
    colour.
    """
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    sides = outer[:, 2:] - outer[:, :2]
    for index in np.argsort(-sides.prod(1), kind="stable"):
        left, top, right, bottom = outer[index].tolist()
        width = int(np.clip(sides[index].min() // 6, 1, line))
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_HALO, width=width + 2)
        draw.rectangle((left, top, right, bottom), outline=colours[index], width=width)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def shaded(colours: Sequence[Colour], distinct: Sequence[bool] = ()) -> list[Colour]:
    """Replace repeated colours with other shades. If given, `distinct` says for which colours (n,) this is done."""
    seen = Counter[Colour]()
    shaded = []
    for index, colour in enumerate(colours):
        shade = _SHADES[seen[colour] % len(_SHADES)] if not distinct or distinct[index] else 0.0
        seen[colour] += 1
        goal = 255 if shade > 0 else 0
        red, green, blue = (round(value + abs(shade) * (goal - value)) for value in colour)
        shaded.append((red, green, blue))
    return shaded


def masked(
    image: Image.Image, masks: np.ndarray, colours: Sequence[Colour], line: int, fill: float = FILL
) -> Image.Image:
    """Draw masks (n, H, W) with outlines, large ones first. `fill` is the opacity of the colour inside."""
    pixels = np.asarray(image).astype(np.float32)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        mask = masks[index]
        if not mask.any():
            continue
        if mask.shape != pixels.shape[:2]:  # the image is enlarged: interpolate the mask smoothly
            smooth = Image.fromarray(mask).convert("L").resize(image.size, Image.Resampling.BILINEAR)
            mask = np.asarray(smooth) > 127
        _paint(pixels, mask, colours[index], line, fill)
    return Image.fromarray(pixels.round().astype(np.uint8))


def _paint(pixels: np.ndarray, mask: np.ndarray, colour: Colour, line: int, fill: float) -> None:
    """Draw one mask on float pixels (H, W, 3) in place: its fill, an outline inside, and a dark halo around it."""
    (bounds,) = find_objects(mask.astype(np.uint8)) or (None,)
    if bounds is None:
        return
    rows, columns = (slice(max(0, side.start - 2), side.stop + 2) for side in bounds)
    part, inside = pixels[rows, columns], mask[rows, columns]
    inner = _eroded(inside, line)
    halo = ~_eroded(~inside, 1) & ~inside
    part[halo] *= 1 - _DARK
    part[inner] += fill * (np.array(colour, dtype=np.float32) - part[inner])
    part[inside & ~inner] = colour


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask without pixels within `steps` pixels of its border. The edge of the array is not a border."""
    for _ in range(steps):
        padded = np.pad(mask, 1, mode="edge")
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def resized_map(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a map of region numbers (h, w) to `size`, (width, height)."""
    if regions.shape == size[::-1]:
        return regions
    return np.asarray(Image.fromarray(regions).resize(size, Image.Resampling.NEAREST))


def coloured(image: Image.Image, regions: np.ndarray, colours: Sequence[Colour], line: int) -> Image.Image:
    """Colour regions (H, W), numbered from 1. Pixels with number 0 do not change."""
    pixels = np.asarray(image).astype(np.float32)
    palette = np.array([(0, 0, 0), *colours], dtype=np.float32)
    strength = np.where(regions > 0, FILL, 0.0).astype(np.float32)
    border = np.zeros(regions.shape, dtype=bool)
    border[1:] |= regions[1:] != regions[:-1]
    border[:, 1:] |= regions[:, 1:] != regions[:, :-1]
    border = ~_eroded(~border, max(1, line // 2))
    pixels += strength[..., None] * (palette[regions] - pixels)
    pixels[border] *= _DARK
    return Image.fromarray(pixels.round().astype(np.uint8))
