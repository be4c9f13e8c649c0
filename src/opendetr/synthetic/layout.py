"""Places the things and the stuff of a scene."""

from __future__ import annotations

import math

import numpy as np

from opendetr.synthetic.config import CATEGORY_NAMES, STUFF_IDS, SceneConfig
from opendetr.synthetic.outlines import OUTLINES, Outline, polar
from opendetr.synthetic.random_numbers import chance, integer, log_uniform, shuffled, uniform
from opendetr.synthetic.shapes import PIXEL_UNITS, Shape, rasterise


def place_shapes(rng: np.random.Generator, config: SceneConfig) -> list[Shape]:
    """The objects of a scene from back to front. Large objects tend to be behind small ones."""
    count = int(log_uniform(rng, config.min_objects, config.max_objects + 1))
    placed: list[tuple[float, Shape]] = []
    boxes: list[np.ndarray] = []
    for category_id in _choose_categories(rng, count, config):
        side = config.size * log_uniform(rng, config.min_scale, config.max_scale)
        angle = uniform(rng, 0, 2 * math.pi)
        outline = pose(OUTLINES[CATEGORY_NAMES[category_id]](rng), log_uniform(rng, 0.6, 1.67), angle, side)
        extent = outline[0].max(axis=0)
        centre = _choose_centre(rng, extent, boxes, config)
        boxes.append(np.stack([centre, extent]))
        loops = [np.rint((loop + centre) * PIXEL_UNITS).astype(np.int64) for loop in outline]
        depth = math.log(side) + uniform(rng, -0.8, 0.8)
        placed.append((depth, Shape(category_id=category_id, loops=loops, angle=angle, side=side)))
    return [shape for _, shape in sorted(placed, key=lambda pair: -pair[0])]


def _choose_categories(rng: np.random.Generator, count: int, config: SceneConfig) -> list[int]:
    """The classes of a scene's objects. In a quarter of the scenes, most objects have the same class."""
    category_ids = config.category_ids
    prevailing = category_ids[integer(rng, 0, len(category_ids) - 1)]
    share = 0.75 if chance(rng, 0.25) else 0.0
    chosen: list[int] = []
    for _ in range(count):
        free = [category_id for category_id in category_ids if chosen.count(category_id) < config.max_per_category]
        category_id = free[integer(rng, 0, len(free) - 1)]
        if chance(rng, share) and prevailing in free:
            category_id = prevailing
        chosen.append(category_id)
    return chosen


def pose(outline: Outline, aspect: float, angle: float, side: float) -> Outline:
    """Stretch, rotate and scale an outline. Its box is then centred on 0, with a longer side of ``side`` pixels."""
    cosine, sine = math.cos(angle), math.sin(angle)
    stretch = np.array([math.sqrt(aspect), 1 / math.sqrt(aspect)])
    # Written out instead of a matrix product, whose rounding depends on the BLAS library.
    stretched = [loop * stretch for loop in outline]
    turned = [
        np.stack([cosine * loop[:, 0] - sine * loop[:, 1], sine * loop[:, 0] + cosine * loop[:, 1]], axis=1)
        for loop in stretched
    ]
    low, high = turned[0].min(axis=0), turned[0].max(axis=0)
    return [(loop - (low + high) / 2) * (side / float((high - low).max())) for loop in turned]


def _choose_centre(
    rng: np.random.Generator, extent: np.ndarray, boxes: list[np.ndarray], config: SceneConfig
) -> np.ndarray:
    """The centre (x, y) of an object in pixels, at which at most an eighth of it is outside each side of the image.

    ``extent`` is half the width and height of the object. ``boxes`` contains the (2, 2) centre and extent of each
    earlier object: some objects are placed next to one of them.
    """
    low, high = 0.75 * extent, config.size - 0.75 * extent
    centre = low + (high - low) * rng.random(2)
    if boxes and chance(rng, config.clustering):
        neighbour, reach = boxes[integer(rng, 0, len(boxes) - 1)]
        centre = neighbour + (2 * rng.random(2) - 1) * (0.8 * reach + 0.6 * extent)
    return np.clip(centre, low, high)


def lay_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W) uint8 category ids of the stuff: layers with wavy borders, sky on top, and sometimes a patch."""
    order = shuffled(rng, STUFF_IDS)[: integer(rng, 1, len(STUFF_IDS))]
    order.sort(key=lambda category_id: CATEGORY_NAMES[category_id] != "sky")
    ground = np.full((size, size), order[-1], np.uint8)
    rows = (2 * np.arange(size) + 1) * (PIXEL_UNITS // 2)
    for layer in range(len(order) - 2, -1, -1):
        level = (layer + 1 + uniform(rng, -0.3, 0.3)) / len(order)
        border = size * (level + _wave(rng, np.arange(size) / size, uniform(rng, 0.01, 0.06)))
        above = rows[:, None] < np.rint(border * PIXEL_UNITS).astype(np.int64)
        ground[above] = order[layer]
    if chance(rng, 0.5):
        _lay_patch(rng, ground)
    return ground


def _wave(rng: np.random.Generator, position: np.ndarray, amplitude: float) -> np.ndarray:
    """A random wavy line over ``position`` (N,) in [0, 1]: a slope plus sines of increasing frequency."""
    line = (position - 0.5) * uniform(rng, -2, 2) * amplitude
    for frequency in (1.0, 2.3, 5.1, 11.7, 29.0):
        phase = uniform(rng, 0, 2 * math.pi)
        line = line + amplitude * frequency**-0.8 * np.sin(2 * math.pi * frequency * position + phase)
    return line


def _lay_patch(rng: np.random.Generator, ground: np.ndarray) -> None:
    """Add a patch of grass, water or sand with an irregular border to the lower part of the ground, in place."""
    size = len(ground)
    category_id = STUFF_IDS[integer(rng, 1, len(STUFF_IDS) - 1)]
    turns = np.arange(96) / 96
    radii = np.ones(len(turns))
    for lobes in (1, 2, 3, 5, 8, 13):
        radii += 0.35 / lobes * np.sin(2 * math.pi * (lobes * turns + uniform(rng, 0, 1)))
    reach = size * np.array([uniform(rng, 0.15, 0.4), uniform(rng, 0.08, 0.22)])
    centre = size * np.array([uniform(rng, 0.1, 0.9), uniform(rng, 0.55, 0.9)])
    loop = np.rint((polar(radii) * reach + centre) * PIXEL_UNITS).astype(np.int64)
    patch = rasterise(Shape(category_id=category_id, loops=[loop], angle=0.0, side=0.0), size)
    ground[patch.window][patch.mask] = category_id
