"""Scenes whose objects a text can refer to: named colours, textures and sizes, and all objects clearly visible.

Every scene has a target, an object with its shape but another colour, and an object with its colour but another shape.
So neither shape nor colour alone identifies the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from opendetr.synthetic.config import CATEGORY_NAMES, THING_NAMES, SceneConfig, require
from opendetr.synthetic.drawing import Scene
from opendetr.synthetic.labels import label_visible, stack_layers
from opendetr.synthetic.language import (
    QUESTION_TYPES,
    SIZES,
    Caption,
    Expression,
    Question,
    Thing,
    ask,
    describe,
    refer,
)
from opendetr.synthetic.layout import lay_ground, pose
from opendetr.synthetic.looks import COLOURS, Look
from opendetr.synthetic.outlines import OUTLINES
from opendetr.synthetic.painting import paint_scene
from opendetr.synthetic.random_numbers import chance, integer, log_uniform, random_stream, uniform
from opendetr.synthetic.shapes import PIXEL_UNITS, Shape, rasterise
from opendetr.synthetic.textures import NAMED_TEXTURES

_IDS = {name: category_id for category_id, name in CATEGORY_NAMES.items()}
# Longer side of the objects, as a fraction of the image. There is a gap between small and large.
_SIDES = {"small": (0.12, 0.18), "large": (0.26, 0.38)}
_SHARED = 0.3  # probability that another object has an attribute of the target
_MIN_VISIBLE = 0.8  # of every object
_PLACES = 40  # tried for an object


@dataclass(frozen=True, kw_only=True)
class DescribedConfig:
    """Size of described scenes, number of their objects, and kinds of their expressions.

    Attributes:
        size: height and width of the image in pixels.
        min_objects: minimum number of objects, at least 3.
        max_objects: maximum number of objects, at most 8. The number is uniform between the two.
        relational: fraction of the scenes whose expression needs a relation between objects.

    Raises:
        DataError: a setting is invalid.
    """

    size: int = 256
    min_objects: int = 3
    max_objects: int = 8
    relational: float = 0.4

    def __post_init__(self) -> None:
        """Raise DataError for invalid settings."""
        SceneConfig(size=self.size)
        require(
            3 <= self.min_objects <= self.max_objects <= 8,
            f"min_objects={self.min_objects}, max_objects={self.max_objects}: need 3 <= min <= max <= 8",
        )
        require(0 <= self.relational <= 1, f"relational={self.relational}: must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True, eq=False)
class DescribedScene:
    """A scene with texts about it.

    Attributes:
        scene: the image and its labels.
        things: the words that describe each of `scene.objects`, in their order.
        expression: refers to one object.
        caption: names several objects.
        question: a question with its answer.
    """

    scene: Scene
    things: tuple[Thing, ...]
    expression: Expression
    caption: Caption
    question: Question


def draw_described_scene(
    index: int, *, split: str = "train", seed: int = 0, config: DescribedConfig | None = None
) -> DescribedScene:
    """Draw one scene with texts about it. The arguments are those of `draw_scene`; so is the result's determinism."""
    config = config or DescribedConfig()
    rng = random_stream(seed, split, index, "described")
    ground = lay_ground(rng, config.size)
    # Exactly this fraction of the scenes, evenly distributed over the indices.
    relational = math.floor((index + 1) * config.relational) > math.floor(index * config.relational)
    while True:  # most layouts allow an expression of the kind
        words = _choose_attributes(rng, integer(rng, config.min_objects, config.max_objects))
        shapes = _place(rng, words, config.size)
        if shapes is None:
            continue
        order = sorted(range(len(shapes)), key=lambda number: -shapes[number].side)
        layers = [rasterise(shapes[number], config.size) for number in order]
        owners = stack_layers(layers, config.size)
        segments, objects, stuff = label_visible(ground, layers, owners, SceneConfig(size=config.size))
        if len(objects) < len(layers) or max(label.occlusion for label in objects) > 1 - _MIN_VISIBLE:
            continue
        things = tuple(
            Thing(**words[number], centre=_centre(label.box, config.size))
            for number, label in zip(order, objects, strict=True)
        )
        expression = refer(rng, things, order.index(0), "relational" if relational else "attribute")
        question = ask(rng, things, QUESTION_TYPES[integer(rng, 0, len(QUESTION_TYPES) - 1)])
        if expression and question:
            break
    looks = [Look(colour=thing.colour, texture=thing.texture) for thing in things]
    image = paint_scene(random_stream(seed, split, index, "described look"), ground, layers, looks)
    scene = Scene(image=image, segments=segments, objects=objects, stuff=stuff)
    caption = describe(rng, things)
    return DescribedScene(scene=scene, things=things, expression=expression, caption=caption, question=question)


def _choose_attributes(rng: np.random.Generator, count: int) -> list[dict[str, str]]:
    """The attributes of the objects: the target, one of its shape, one of its colour, and the others."""
    values = {"shape": THING_NAMES, "colour": COLOURS, "texture": tuple(NAMED_TEXTURES), "size": SIZES}

    def draw(name: str, other_than: str | None = None) -> str:
        free = [value for value in values[name] if value != other_than]
        return free[integer(rng, 0, len(free) - 1)]

    target = {name: draw(name) for name in values}
    chosen = [target]
    for number in range(1, count):
        words = {name: target[name] if chance(rng, _SHARED) else draw(name) for name in values}
        if number == 1:
            words |= {"shape": target["shape"], "colour": draw("colour", target["colour"])}
        elif number == 2:
            words |= {"colour": target["colour"], "shape": draw("shape", target["shape"])}
        chosen.append(words)
    return chosen


def _place(rng: np.random.Generator, words: list[dict[str, str]], size: int) -> list[Shape] | None:
    """The objects at random places inside the image, nearly without overlap; None if one does not fit."""
    shapes: list[Shape] = []
    boxes = np.zeros((0, 4))
    for each in words:
        side = size * log_uniform(rng, *_SIDES[each["size"]])
        angle = uniform(rng, 0, 2 * math.pi)
        outline = pose(OUTLINES[each["shape"]](rng), log_uniform(rng, 0.75, 1.33), angle, side)
        extent = outline[0].max(axis=0)
        for _ in range(_PLACES):
            centre = extent + (size - 2 * extent) * rng.random(2)
            box = np.concatenate([centre - extent, centre + extent])
            if _overlap(boxes, box) < 0.1:
                break
        else:
            return None
        boxes = np.concatenate([boxes, box[None]])
        loops = [np.rint((loop + centre) * PIXEL_UNITS).astype(np.int64) for loop in outline]
        shapes.append(Shape(category_id=_IDS[each["shape"]], loops=loops, angle=angle, side=side))
    return shapes


def _overlap(boxes: np.ndarray, box: np.ndarray) -> float:
    """The largest intersection of a box (4,) with one of the boxes (N, 4), as a fraction of the smaller one."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return float((shared / np.minimum(areas, (box[2:] - box[:2]).prod())).max(initial=0.0))


def _centre(box: tuple[int, int, int, int], size: int) -> tuple[float, float]:
    return (box[0] + box[2]) / (2 * size), (box[1] + box[3]) / (2 * size)
