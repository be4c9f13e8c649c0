"""Scenes: the embedded dataset, a seeded generator of drawn images with exact COCO labels.

A scene shows 1 to 16 *things* (discs, stars, gears, ...) that occlude each other on a ground of *stuff* (sky, grass,
water, sand). Boxes, polygons and panoptic segments are those of the visible pixels, exactly. A class is a shape:
colour, texture, aspect and rotation are drawn independently of it.

Everything about a scene is a pure function of ``(seed, split, index, config)``. Its layout, hence its labels, and its
look come from two separate random streams. Layout geometry is rounded to integers before it is rasterised, and the
rasteriser knows integers only, so the labels do not depend on the machine.

Shape letters: H, W image height and width in pixels (equal here); h, w those of a window of the image; N points.
Image frame: x to the right, y downwards, origin at the top left corner of the top left pixel; the pixel in row i and
column j covers [j, j + 1) x [i, i + 1).
"""

from opendetr.synthetic.config import CATEGORIES, SceneConfig
from opendetr.synthetic.drawing import Scene, draw_scene
from opendetr.synthetic.labels import Segment
from opendetr.synthetic.polygons import mask_to_polygons, mask_to_rle
from opendetr.synthetic.writing import DEFAULT_COUNTS, write_scenes

__all__ = [
    "CATEGORIES",
    "DEFAULT_COUNTS",
    "Scene",
    "SceneConfig",
    "Segment",
    "draw_scene",
    "mask_to_polygons",
    "mask_to_rle",
    "write_scenes",
]
