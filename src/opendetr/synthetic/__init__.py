"""Scenes: a synthetic dataset, generated from a seed, with exact COCO annotations.

A scene shows 1 to 16 *things* (discs, stars, gears, ...) that occlude each other, in front of *stuff* (sky, grass,
water, sand). Boxes, polygons and panoptic segments match the visible pixels exactly. A class is a shape: colour,
texture, aspect ratio and rotation are independent of it.

A *described* scene shows 3 to 8 things with named colours, textures and sizes. It has a referring expression whose
target is unique, a caption that names several things, and a question with its answer.

A *video* shows 4 to 12 things that move, turn, hide each other, leave the image and return.

A scene is a pure function of ``(seed, split, index, config)``. Its layout, which determines the labels, and its look
come from two separate random streams. The layout is rounded to integers before it is rasterised, and the rasteriser
uses integers only, so the labels are the same on every machine.

Shape letters: H, W height and width of the image in pixels (equal here); h, w those of a window of the image; N points.
Image frame: x points right and y points down, from the top left corner of the image. The pixel in row i and column j
covers [j, j + 1) x [i, i + 1).
"""

from opendetr.synthetic.config import CATEGORIES, EASY_SCENES, SceneConfig
from opendetr.synthetic.described import DescribedConfig, DescribedScene, draw_described_scene
from opendetr.synthetic.drawing import Scene, draw_scene
from opendetr.synthetic.labels import Segment
from opendetr.synthetic.language import ANSWERS, QUESTION_TYPES, vocabulary
from opendetr.synthetic.polygons import mask_to_polygons, mask_to_rle
from opendetr.synthetic.video_writing import write_videos
from opendetr.synthetic.videos import Frame, TrackedObject, VideoConfig, draw_video, label_video
from opendetr.synthetic.writing import DEFAULT_COUNTS, write_captioned_scenes, write_scenes

__all__ = [
    "ANSWERS",
    "CATEGORIES",
    "DEFAULT_COUNTS",
    "EASY_SCENES",
    "QUESTION_TYPES",
    "DescribedConfig",
    "DescribedScene",
    "Frame",
    "Scene",
    "SceneConfig",
    "Segment",
    "TrackedObject",
    "VideoConfig",
    "draw_described_scene",
    "draw_scene",
    "draw_video",
    "label_video",
    "mask_to_polygons",
    "mask_to_rle",
    "vocabulary",
    "write_captioned_scenes",
    "write_scenes",
    "write_videos",
]
