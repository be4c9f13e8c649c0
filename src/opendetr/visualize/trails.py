"""Draw the objects of a video frame with their track ids and trails, which fade with time.

Shape letters: n objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from opendetr.categories import spread_colour
from opendetr.visualize.drawing import as_image, draw_boxes, enlarge, legible_scale
from opendetr.visualize.style import Colour

_WIDTH = 0.006  # of a trail at its new end, as a fraction of the image's diagonal
_OPACITY = 0.85  # of a trail at its new end
_PARTS = 8  # steps in which a trail fades


def draw_tracks(
    image: Any,
    boxes: np.ndarray,
    ids: Sequence[int],
    names: Sequence[str],
    trails: Mapping[int, Sequence[tuple[float, float]]],
    *,
    scale: float | None = None,
) -> Image.Image:
    """Draw boxes with ids and names, and the way that each object has taken.

    Args:
        image: (H, W, 3) uint8 RGB or a PIL image.
        boxes: (n, 4) xyxy in pixels of the image.
        ids: the n track ids. Each has its own colour.
        names: the n names of their classes.
        trails: track id -> the past centres x, y in pixels of the image, the oldest first. The line to a centre gets
            wider and more opaque with its position, so the last one should be that of this frame.
        scale: as in `draw_boxes`.
    """
    canvas = as_image(image)
    scale = legible_scale(canvas) if scale is None else scale
    canvas = _with_trails(enlarge(canvas, scale), trails, scale)
    captions = [f"{id_} {name}" for id_, name in zip(ids, names, strict=True)]
    return draw_boxes(canvas, scale * boxes, captions, [track_colour(id_) for id_ in ids], scale=1)


def track_colour(id_: int) -> Colour:
    """The colour of a track. Neighbouring ids look different."""
    return spread_colour(id_)


def _with_trails(canvas: Image.Image, trails: Mapping[int, Sequence[tuple[float, float]]], scale: float) -> Image.Image:
    """The image with the trails. Older parts are drawn first, so that newer ones cover them."""
    longest = max(1.0, _WIDTH * float(np.hypot(*canvas.size)))
    layer = Image.new("RGBA", canvas.size)
    draw = ImageDraw.Draw(layer)
    for part in range(_PARTS):
        share = (part + 1) / _PARTS
        for id_, centres in trails.items():
            start, end = (len(centres) - 1) * part // _PARTS, (len(centres) - 1) * (part + 1) // _PARTS
            if end > start:
                colour = (*track_colour(id_), round(255 * _OPACITY * share))
                places = [(scale * x, scale * y) for x, y in centres[start : end + 1]]
                draw.line(places, colour, max(1, round(longest * share)), joint="curve")
    return Image.alpha_composite(canvas.convert("RGBA"), layer).convert("RGB")
