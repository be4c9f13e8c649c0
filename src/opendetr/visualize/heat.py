"""Draw attention over an image: heat maps of dense attention, and the sampled points of deformable attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from opendetr.visualize.drawing import as_image, enlarge, legible_scale
from opendetr.visualize.style import PALETTE, SMOOTH, Colour

HEAT: tuple[Colour, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours from the lowest to the highest weight: viridis, which is even in lightness and safe for the colour-blind."""
LEVELS: tuple[Colour, ...] = (PALETTE[6], PALETTE[5], PALETTE[2], PALETTE[3], PALETTE[1])
"""Colours of the points of each level, fine to coarse; they are told apart on a darkened image."""
COVER = (0.55, 0.3)
"""Opacity of the lowest weight in a heat map, and what the highest one adds."""
POINT_RADIUS = 0.02
"""Radius of the point with the highest weight, as a share of the longer side of the image."""
_DIMMED = 0.5  # brightness of the image under points and colours
_OPAQUE = 0.9  # opacity of the highest weight of a map in one colour
_RING = 0.012  # radius of a marked point


def draw_heat(image: Any, weights: np.ndarray, *, scale: float | None = None) -> Image.Image:
    """Draw a map of weights over an image. The highest weight has the last colour of `HEAT`.

    Args:
        image: (H, W, 3) or (H, W) uint8 array, or a PIL image.
        weights: (h, w) at least 0; the cells cover the whole image.
        scale: enlargement of the image, as in `draw_boxes`.
    """
    canvas = _legible(image, scale)
    share = _resized(weights, canvas.size)[..., None]
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.array(HEAT, dtype=np.float64)
    colour = np.stack([np.interp(share[..., 0], stops, colours[:, channel]) for channel in range(3)], -1)
    return _blended(np.asarray(canvas, dtype=np.float64), colour, COVER[0] + COVER[1] * share)


def draw_colours(
    image: Any, weights: Sequence[np.ndarray], colours: Sequence[Colour], *, scale: float | None = None
) -> Image.Image:
    """Draw several maps of weights over one image, each in its colour, as in figure 6 of the DETR paper.

    Args:
        image: as in `draw_heat`.
        weights: n maps (h, w) at least 0.
        colours: n RGB triples.
        scale: enlargement of the image, as in `draw_boxes`.
    """
    canvas = _legible(image, scale)
    pixels = np.asarray(canvas, dtype=np.float64) * _DIMMED
    for own, colour in zip(weights, colours, strict=True):
        cover = _resized(own, canvas.size)[..., None] * _OPAQUE
        pixels += cover * (np.array(colour) - pixels)
    return Image.fromarray(pixels.round().astype(np.uint8))


def draw_weighted_points(
    image: Any, points: np.ndarray, weights: np.ndarray, colours: Sequence[Colour], *, scale: float | None = None
) -> Image.Image:
    """Draw points whose areas are proportional to their weights over a darkened image.

    Args:
        image: as in `draw_heat`.
        points: (n, 2), x and y in 0..1 of the image. Points outside are not seen.
        weights: (n,) at least 0.
        colours: n RGB triples.
        scale: enlargement of the image, as in `draw_boxes`.
    """
    canvas = _legible(image, scale)
    dimmed = Image.fromarray((np.asarray(canvas) * _DIMMED).round().astype(np.uint8))
    layer = enlarge(dimmed, SMOOTH)
    draw = ImageDraw.Draw(layer)
    largest = POINT_RADIUS * max(layer.size)
    radii = largest * np.sqrt(weights / max(float(weights.max(initial=0)), 1e-12))
    for index in np.argsort(-weights, kind="stable"):  # small points over large ones
        (x, y), radius = points[index] * np.array(layer.size), radii[index]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours[index], "white", SMOOTH // 2)
    return layer.resize(dimmed.size, Image.Resampling.BOX)


def draw_rings(image: Any, points: np.ndarray, colours: Sequence[Colour], *, scale: float | None = None) -> Image.Image:
    """Mark points of an image with rings. The arguments are those of `draw_weighted_points`."""
    canvas = _legible(image, scale)
    layer = enlarge(canvas, SMOOTH)
    draw = ImageDraw.Draw(layer)
    radius = _RING * max(layer.size)
    for point, colour in zip(points, colours, strict=True):
        x, y = point * np.array(layer.size)
        for size, ink, width in ((1.35, "black", 0.75), (1.2, "white", 0.5), (1.0, colour, 0.3)):
            own = size * radius
            draw.ellipse((x - own, y - own, x + own, y + own), None, ink, max(1, round(width * radius)))
    return layer.resize(canvas.size, Image.Resampling.BOX)


def _legible(image: Any, scale: float | None) -> Image.Image:
    """The image, enlarged as `draw_boxes` does."""
    canvas = as_image(image)
    return enlarge(canvas, legible_scale(canvas) if scale is None else scale)


def _resized(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Weights (h, w) divided by the highest, interpolated to (H, W) of `size`, width and height."""
    share = np.asarray(weights, dtype=np.float32) / max(float(np.max(weights)), 1e-12)
    smooth = Image.fromarray(share).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(smooth, dtype=np.float64).clip(0, 1)


def _blended(pixels: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels + cover * (colour - pixels)).round().clip(0, 255).astype(np.uint8))
