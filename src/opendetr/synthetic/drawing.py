"""Draws a scene: the image and its labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opendetr.synthetic.config import DEFAULT_CONFIG, SceneConfig
from opendetr.synthetic.labels import Segment, label_visible, stack_layers
from opendetr.synthetic.layout import lay_ground, place_shapes
from opendetr.synthetic.painting import paint_scene
from opendetr.synthetic.random_numbers import random_stream
from opendetr.synthetic.shapes import rasterise


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The image and the labels of a scene.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        segments: (H, W) int32, segment id of every pixel.
        objects: the visible things, from back to front.
        stuff: the visible stuff, one segment per class.
    """

    image: np.ndarray
    segments: np.ndarray
    objects: tuple[Segment, ...]
    stuff: tuple[Segment, ...]


def draw_scene(index: int, *, split: str = "train", seed: int = 0, config: SceneConfig = DEFAULT_CONFIG) -> Scene:
    """Draw one scene.

    Args:
        index: index of the scene in its split, from 0.
        split: name of the split. It is part of the random key, so splits do not share scenes.
        seed: seed of the dataset.
        config: the configuration of the scenes.

    Returns:
        The image and its labels, identical for the same arguments.
    """
    layout = random_stream(seed, split, index, "layout")
    ground = lay_ground(layout, config.size)
    layers = [rasterise(shape, config.size) for shape in place_shapes(layout, config)]
    owners = stack_layers(layers, config.size)
    segments, objects, stuff = label_visible(ground, layers, owners, config)
    image = paint_scene(random_stream(seed, split, index, "look"), ground, layers)
    return Scene(image=image, segments=segments, objects=objects, stuff=stuff)
