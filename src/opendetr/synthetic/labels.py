"""Labels of the visible pixels of a scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from opendetr.synthetic.config import STUFF_IDS, SceneConfig
from opendetr.synthetic.shapes import Layer


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The label of one object or one stuff region.

    Attributes:
        id: value of the segment's pixels in ``Scene.segments``, from 1.
        category_id: one of the ids in ``CATEGORIES``.
        box: (x0, y0, x1, y1), tight around the visible pixels, in pixel edges.
        area: number of visible pixels.
        iscrowd: whether too little of the object is visible to evaluate it; always False for stuff.
        occlusion: fraction of the pixels inside the image that other objects hide, in [0, 1).
    """

    id: int
    category_id: int
    box: tuple[int, int, int, int]
    area: int
    iscrowd: bool
    occlusion: float


def stack_layers(layers: list[Layer], size: int) -> np.ndarray:
    """(H, W) int32: number of the topmost layer at each pixel, from 1; 0 where the ground is visible."""
    owners = np.zeros((size, size), np.int32)
    for number, layer in enumerate(layers, start=1):
        owners[layer.window][layer.mask] = number
    return owners


def label_visible(
    ground: np.ndarray, layers: list[Layer], owners: np.ndarray, config: SceneConfig
) -> tuple[np.ndarray, tuple[Segment, ...], tuple[Segment, ...]]:
    """The segment map, (H, W) int32, the labels of the visible objects, and those of the visible stuff."""
    segments = np.zeros(ground.shape, np.int32)
    objects: list[Segment] = []
    for number, layer in enumerate(layers, start=1):
        visible = owners[layer.window] == number
        if visible.any():
            full_area, origin = int(np.count_nonzero(layer.mask)), (layer.left, layer.top)
            label = _measure(visible, len(objects) + 1, layer.shape.category_id, full_area, origin)
            objects.append(replace(label, iscrowd=label.area < config.crowd_visibility * full_area))
            segments[layer.window][visible] = label.id
    stuff: list[Segment] = []
    for category_id in STUFF_IDS:
        region = ground == category_id
        visible = region & (owners == 0)
        if visible.any():
            full_area, segment_id = int(np.count_nonzero(region)), len(objects) + len(stuff) + 1
            stuff.append(_measure(visible, segment_id, category_id, full_area, (0, 0)))
            segments[visible] = segment_id
    return segments, tuple(objects), tuple(stuff)


def _measure(
    visible: np.ndarray, segment_id: int, category_id: int, full_area: int, origin: tuple[int, int]
) -> Segment:
    """The label for the ``visible`` pixels (h, w) of a window with the top left corner ``origin`` (x, y)."""
    columns, rows = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
    x, y = origin
    area = int(np.count_nonzero(visible))
    return Segment(
        id=segment_id,
        category_id=category_id,
        box=(x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1),
        area=area,
        iscrowd=False,
        occlusion=1 - area / full_area,
    )
