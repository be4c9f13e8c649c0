"""Paints a scene: ground, shadows and objects, from back to front, with soft edges.

A canvas is (3, H, W) float32 RGB in [0, 255].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opendetr.synthetic.config import CATEGORY_NAMES, STUFF_IDS
from opendetr.synthetic.looks import Look, rgb
from opendetr.synthetic.random_numbers import integer, uniform
from opendetr.synthetic.shapes import SAMPLES, Layer
from opendetr.synthetic.textures import GROUNDS, TEXTURES

_SHADES = 64


def paint_scene(
    rng: np.random.Generator, ground: np.ndarray, layers: list[Layer], looks: Sequence[Look] | None = None
) -> np.ndarray:
    """Paint the ground and the objects from back to front, with soft edges and shadows; returns (H, W, 3) uint8.

    Args:
        rng: the stream of random numbers.
        ground: (H, W) category ids of the stuff.
        layers: the objects, from back to front.
        looks: the colour and texture of each object; random ones by default.
    """
    canvas = paint_ground(rng, ground)
    for index, layer in enumerate(layers):
        blend(canvas, layer, paint_object(rng, layer, looks[index] if looks else None))
    return finished(canvas)


def finished(canvas: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 of a canvas, which is changed."""
    return np.ascontiguousarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0))


def paint_ground(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Paint every stuff class with its own texture and two colours, under the same light for the whole scene.

    Returns:
        (3, H, W) float32 canvas. The palette has a few shades per class, which keeps the files small.
    """
    grain = rng.random(ground.shape, dtype=np.float32)
    palette = np.zeros((3, 256, _SHADES), np.float32)
    shade = np.zeros(ground.shape, np.intp)
    light = uniform(rng, 0.75, 1.15) * (0.92 + 0.16 * rng.random(3))
    for category_id in STUFF_IDS:
        region = ground == category_id
        if region.any():
            texture, colours = GROUNDS[CATEGORY_NAMES[category_id]]
            weight = np.clip(texture(rng, grain), 0, 1) * (_SHADES - 1)
            np.copyto(shade, weight + category_id * _SHADES, where=region, casting="unsafe")
            dark, bright = np.array(colours) * (light * (0.92 + 0.16 * rng.random(3)))
            palette[:, category_id] = dark[:, None] + (bright - dark)[:, None] * np.linspace(0, 1, _SHADES)
    return palette.reshape(3, -1).take(shade, axis=1)


def paint_object(rng: np.random.Generator, layer: Layer, look: Look | None = None) -> np.ndarray:
    """The colours (3, h, w) of a textured and shaded object over its window. No look: a random one."""
    first, second = look.colours(rng) if look else _choose_colours(rng)
    across, along = _object_frame(rng, layer)
    texture = look.paint if look else TEXTURES[integer(rng, 0, len(TEXTURES) - 1)]
    paint = texture(rng, across, along, layer) * (second - first)[:, None, None]
    paint += first[:, None, None]
    paint *= 1 + np.float32(uniform(rng, -0.25, 0.25)) * across
    return paint


def blend(canvas: np.ndarray, layer: Layer, paint: np.ndarray) -> None:
    """Blend an object with the colours ``paint`` (3, h, w) and its shadow into the canvas, in place."""
    _cast_shadow(canvas, layer)
    region = canvas[:, *layer.window]
    region += (paint - region) * (layer.coverage * np.float32(1 / SAMPLES**2))


def _cast_shadow(canvas: np.ndarray, layer: Layer) -> None:
    """Darken the canvas to the lower right of the object, in place."""
    shift = max(1, round(0.02 * layer.shape.side))
    rows, columns = layer.window
    behind = canvas[:, rows.start + shift : rows.stop + shift, columns.start + shift : columns.stop + shift]
    height, width = behind.shape[1:]
    behind *= 1 - layer.coverage[:height, :width] * np.float32(0.35 / SAMPLES**2)


def _choose_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two random RGB colours (3,) of clearly different brightness, independent of the class."""
    hue, saturation, value = rng.random(), 0.95 * math.sqrt(rng.random()), uniform(rng, 0.25, 1)
    first = rgb(hue, saturation, value)
    dark = 0.45 * rng.random(3)
    second = dark if 2 * first.mean() > 1 else 1 - dark
    return (255 * first).astype(np.float32), (255 * second).astype(np.float32)


def _object_frame(rng: np.random.Generator, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 pixel coordinates in the rotated frame of the object, about -1 to 1 over the window."""
    height, width = layer.coverage.shape
    scale = np.float32(2 / max(height, width))
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) * scale
    x = (np.arange(width, dtype=np.float32) - width / 2) * scale
    angle = layer.shape.angle + uniform(rng, -0.5, 0.5)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x
