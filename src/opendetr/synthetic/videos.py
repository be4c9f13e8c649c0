"""Draws videos: the objects of scenes that move, turn, hide each other, leave the image and return.

An object moves from waypoint to waypoint. Its outline, colours and texture stay the same. A video is a pure function of
``(seed, split, index, config)``, like a scene.

Shape letters: T frames, K waypoints, n objects; H, W height and width of the image in pixels (equal here). Positions
are in the frame of the world, whose origin is the top left corner of the image when the camera has not moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.ndimage import map_coordinates

from opendetr.data import DataError
from opendetr.synthetic.config import CATEGORY_NAMES, SceneConfig
from opendetr.synthetic.labels import stack_layers
from opendetr.synthetic.layout import lay_ground, pose
from opendetr.synthetic.outlines import OUTLINES, Outline
from opendetr.synthetic.painting import blend, finished, paint_ground, paint_object
from opendetr.synthetic.random_numbers import chance, integer, log_uniform, random_stream, shuffled, uniform
from opendetr.synthetic.shapes import PIXEL_UNITS, Layer, Shape, rasterise

Crossings = Literal["any", "alike", "distinct"]
"""Which objects cross each other: any, those that look the same, or those that differ in class, colour and texture."""

_WAYPOINT_EVERY = 10  # frames
_MIN_WAYPOINTS = 5
_PAN_PROBABILITY, _MAX_PAN = 0.5, 0.12  # of a video; fraction of the image size
_LEAVING_SHARE = 0.25  # fraction of the objects that leave the image and return
_MIN_TURN = math.radians(60)  # at one waypoint of every object, at least
_MEETING_PROBABILITY = 0.8  # of a pair of objects at a waypoint
_EVALUATED_VISIBILITY = 0.1  # an object of which less is visible is not evaluated


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Length and size of videos, and number, size and motion of their objects.

    Attributes:
        frames: number of frames, T.
        size: height and width of the image in pixels.
        min_objects, max_objects: number of objects of a video; log-uniform between the two.
        min_scale, max_scale: longer side of an object as a fraction of ``size``; log-uniform between the two.
        hard: sudden turns, and longer occlusions. In half of the videos, those with an even index, the objects that
            cross each other look the same; in the others they differ in class, colour and texture.
        frame_rate: frames per second.

    Raises:
        DataError: a setting is invalid.
    """

    frames: int = 40
    size: int = 256
    min_objects: int = 4
    max_objects: int = 12
    min_scale: float = 0.14
    max_scale: float = 0.32
    hard: bool = False
    frame_rate: int = 10

    def __post_init__(self) -> None:
        """Raise DataError for invalid settings."""
        for name, least in (("frames", 1), ("size", 32), ("min_objects", 2), ("frame_rate", 1)):
            if getattr(self, name) < least:
                raise DataError(f"VideoConfig: {name}={getattr(self, name)}: must be at least {least}")
        if not self.min_objects <= self.max_objects:
            raise DataError(f"VideoConfig: max_objects={self.max_objects}: must be at least {self.min_objects}")
        if not 0 < self.min_scale <= self.max_scale <= 0.5:
            raise DataError(
                f"VideoConfig: min_scale={self.min_scale}, max_scale={self.max_scale}: need 0 < min <= max <= 0.5"
            )

    def crossings(self, index: int) -> Crossings:
        """Which objects cross each other in the video with this index."""
        if not self.hard:
            return "any"
        return "distinct" if index % 2 else "alike"


@dataclass(frozen=True, kw_only=True)
class TrackedObject:
    """The label of an object in one frame.

    Attributes:
        id: number of the object in its video, from 1.
        category_id: id of its class.
        box: (x0, y0, x1, y1) in pixel edges, tight around all its pixels inside the image, hidden ones included.
        visibility: fraction of its pixels that are visible, in 0..1; pixels outside the image are not.
    """

    id: int
    category_id: int
    box: tuple[int, int, int, int]
    visibility: float

    @property
    def evaluated(self) -> bool:
        """Whether enough of the object is visible to evaluate it."""
        return self.visibility >= _EVALUATED_VISIBILITY


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame: the image (H, W, 3) uint8 RGB, and the objects inside it."""

    image: np.ndarray
    objects: tuple[TrackedObject, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Mover:
    """An object and its motion.

    Attributes:
        category_id: id of its class.
        outline: its loops around the origin, in pixels, unrotated.
        side: its longer side in pixels.
        look: number of its colours and texture; objects with the same number look the same.
        positions: (T, 2) x, y of its centre in the world.
        angles: (T,) rotation in radians.
    """

    category_id: int
    outline: Outline
    side: float
    look: int
    positions: np.ndarray
    angles: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layout:
    """The motion of a video: its objects from back to front, and the position of the camera, (T, 2) whole pixels."""

    movers: list[_Mover]
    pan: np.ndarray

    def place(self, frame: int, size: int) -> tuple[list[Layer], tuple[TrackedObject, ...]]:
        """The pixels of all objects in a frame, and the labels of those inside the image."""
        placed = [_place(mover, frame, self.pan[frame], size) for mover in self.movers]
        return [layer for layer, _ in placed], _label(placed, size)


def draw_video(
    index: int, *, split: str = "train", seed: int = 0, config: VideoConfig | None = None
) -> Iterator[Frame]:
    """Draw the frames of one video, one at a time.

    Args:
        index: index of the video in its split, from 0.
        split: name of the split. It is part of the random key, so splits do not share videos.
        seed: seed of the dataset.
        config: the configuration of the videos.
    """
    config = config or VideoConfig()
    layout, ground = _lay_out(index, split, seed, config)
    world = paint_ground(random_stream(seed, split, index, "video ground"), ground)
    sprites = [_Sprite(mover, random_stream(seed, split, index, f"video look {mover.look}")) for mover in layout.movers]
    margin = (len(ground) - config.size) // 2
    for frame in range(config.frames):
        x, y = layout.pan[frame] + margin
        canvas = world[:, y : y + config.size, x : x + config.size].copy()
        layers, objects = layout.place(frame, config.size)
        for sprite, layer in zip(sprites, layers, strict=True):
            if layer.coverage.any():
                blend(canvas, layer, sprite.paint(layer, frame, layout.pan[frame]))
        yield Frame(image=finished(canvas), objects=objects)


def label_video(
    index: int, *, split: str = "train", seed: int = 0, config: VideoConfig | None = None
) -> Iterator[tuple[TrackedObject, ...]]:
    """The objects of each frame of `draw_video`, without drawing it. The arguments are the same."""
    config = config or VideoConfig()
    layout, _ = _lay_out(index, split, seed, config)
    for frame in range(config.frames):
        yield layout.place(frame, config.size)[1]


def _lay_out(index: int, split: str, seed: int, config: VideoConfig) -> tuple[_Layout, np.ndarray]:
    """The motion of a video and its ground, which is larger than the image by the way of the camera."""
    rng = random_stream(seed, split, index, "video layout")
    movers = _move_objects(rng, config, config.crossings(index))
    layout = _Layout(movers=movers, pan=_pan(rng, config))
    return layout, lay_ground(rng, config.size + 2 * math.ceil(_MAX_PAN * config.size))


# --------------------------------------------------------------------------------------------------------------- motion


def _move_objects(rng: np.random.Generator, config: VideoConfig, crossings: Crossings) -> list[_Mover]:
    """The objects of a video from back to front. Those at 2i and 2i+1 of a random order are a pair."""
    count = int(log_uniform(rng, config.min_objects, config.max_objects + 1))
    sides = [config.size * log_uniform(rng, config.min_scale, config.max_scale) for _ in range(count)]
    waypoints = _waypoints(rng, config, sides)
    categories = _categories(rng, count, crossings)
    movers: list[_Mover] = []
    for number in range(count):
        partner = movers[number - 1] if number % 2 and crossings == "alike" else None
        if partner:
            outline, side, look = partner.outline, partner.side, partner.look
        else:
            aspect = log_uniform(rng, 0.7, 1.4)
            side, look = sides[number], number
            outline = pose(OUTLINES[CATEGORY_NAMES[categories[number]]](rng), aspect, 0.0, side)
        movers.append(
            _Mover(
                category_id=partner.category_id if partner else categories[number],
                outline=outline,
                side=side,
                look=look,
                positions=_along(waypoints[:, number], config),
                angles=_turning(rng, config),
            )
        )
    return [movers[number] for number in shuffled(rng, list(range(count)))]


def _categories(rng: np.random.Generator, count: int, crossings: Crossings) -> list[int]:
    """The classes of the objects. In videos with distinct crossings, the objects of a pair differ."""
    ids = SceneConfig().category_ids
    chosen: list[int] = []
    for number in range(count):
        free = [each for each in ids if not (crossings == "distinct" and number % 2 and each == chosen[-1])]
        chosen.append(free[integer(rng, 0, len(free) - 1)])
    return chosen


def _waypoints(rng: np.random.Generator, config: VideoConfig, sides: list[float]) -> np.ndarray:
    """(K, n, 2) waypoints: random places in the image, some shared by the objects of a pair, some outside."""
    num_points = max(_MIN_WAYPOINTS, math.ceil((config.frames - 1) / _WAYPOINT_EVERY) + 1)
    count, size = len(sides), config.size
    points = np.stack([_turning_points(rng, num_points) for _ in range(count)], axis=1) * size
    for first in range(0, count - 1, 2):
        kept = 0
        for point in range(1, num_points):
            starts = chance(rng, _MEETING_PROBABILITY)
            kept = 2 if starts and config.hard and not kept else max(kept - 1, 0)
            if starts or kept:
                # A small offset: one object hides most of the other, but not all of it.
                offset = (2 * rng.random(2) - 1) * 0.2 * min(sides[first], sides[first + 1])
                points[point, first + 1] = points[point, first] + offset
    num_leaving = max(1, round(_LEAVING_SHARE * count))
    for number in shuffled(rng, list(range(count)))[:num_leaving]:
        point, axis = integer(rng, 1, num_points - 2), integer(rng, 0, 1)
        # Beyond the image even if the camera follows.
        beyond = 1.5 * sides[number] + 2 * _MAX_PAN * size
        points[point, number, axis] = -beyond if chance(rng, 0.5) else size + beyond
    return points


def _turning_points(rng: np.random.Generator, num_points: int) -> np.ndarray:
    """(K, 2) random places in 0..1 of the image, with a turn of at least 60 degrees at one of them."""
    while True:
        points = 0.1 + 0.8 * rng.random((num_points, 2))
        steps = np.diff(points, axis=0)
        headings = np.arctan2(steps[:, 1], steps[:, 0])
        turns = np.abs((np.diff(headings) + math.pi) % (2 * math.pi) - math.pi)
        if turns.max() >= _MIN_TURN:
            return points


def _along(waypoints: np.ndarray, config: VideoConfig) -> np.ndarray:
    """(T, 2) positions along (K, 2) waypoints: straight lines with sudden turns if ``hard``, else a smooth curve."""
    last = len(waypoints) - 1
    time = np.linspace(0, last, config.frames)
    index = np.minimum(time.astype(int), last - 1)
    part = (time - index)[:, None]
    start, end = waypoints[index], waypoints[index + 1]
    if config.hard:
        return start + (end - start) * part
    # Catmull-Rom: the tangent at a waypoint is half the step between its neighbours.
    tangents = np.gradient(waypoints, axis=0)
    cubed, squared = part**3, part**2
    return (
        (2 * cubed - 3 * squared + 1) * start
        + (cubed - 2 * squared + part) * tangents[index]
        + (3 * squared - 2 * cubed) * end
        + (cubed - squared) * tangents[index + 1]
    )


def _turning(rng: np.random.Generator, config: VideoConfig) -> np.ndarray:
    """(T,) rotation of an object: a random start and speed, and a slow swing."""
    frames = np.arange(config.frames)
    speed = uniform(rng, -0.06, 0.06)
    swing = uniform(rng, 0, 0.6) * np.sin(frames * uniform(rng, 0.05, 0.2) + uniform(rng, 0, 2 * math.pi))
    return uniform(rng, 0, 2 * math.pi) + speed * frames + swing


def _pan(rng: np.random.Generator, config: VideoConfig) -> np.ndarray:
    """(T, 2) int64: the position of the camera in whole pixels, from 0 to a random place and back, or always 0."""
    goal = (2 * rng.random(2) - 1) * _MAX_PAN * config.size
    if not chance(rng, _PAN_PROBABILITY):
        return np.zeros((config.frames, 2), np.int64)
    phase = np.sin(np.linspace(0, math.pi * uniform(rng, 0.5, 1.5), config.frames))
    return np.rint(phase[:, None] * goal).astype(np.int64)


# --------------------------------------------------------------------------------------------------------------- pixels


def _place(mover: _Mover, frame: int, pan: np.ndarray, size: int) -> tuple[Layer, int]:
    """The pixels of an object inside the image, and the number of all its pixels."""
    angle, centre = float(mover.angles[frame]), mover.positions[frame] - pan
    cosine, sine = math.cos(angle), math.sin(angle)
    loops = []
    for loop in mover.outline:
        turned = np.stack([cosine * loop[:, 0] - sine * loop[:, 1], sine * loop[:, 0] + cosine * loop[:, 1]], axis=1)
        loops.append(np.rint((turned + centre) * PIXEL_UNITS).astype(np.int64))
    shape = Shape(category_id=mover.category_id, loops=loops, angle=angle, side=mover.side)
    # The whole object is drawn on a canvas that contains it, to count its pixels outside the image.
    corner = np.concatenate(loops).min(axis=0) // PIXEL_UNITS
    moved = replace(shape, loops=[loop - corner * PIXEL_UNITS for loop in loops])
    whole = rasterise(moved, 2 * math.ceil(mover.side) + 4)
    top, left = whole.top + int(corner[1]), whole.left + int(corner[0])
    rows = slice(min(max(-top, 0), whole.coverage.shape[0]), max(size - top, 0))
    columns = slice(min(max(-left, 0), whole.coverage.shape[1]), max(size - left, 0))
    inside = whole.coverage[rows, columns]
    layer = Layer(shape=shape, coverage=inside, top=max(top, 0), left=max(left, 0))
    return layer, int(np.count_nonzero(whole.mask))


class _Sprite:
    """The colours of an object, painted once and turned for every frame."""

    def __init__(self, mover: _Mover, rng: np.random.Generator) -> None:
        self._mover = mover
        half = math.ceil(max(np.abs(loop).max() for loop in mover.outline)) + 1
        loops = [np.rint((loop + half) * PIXEL_UNITS).astype(np.int64) for loop in mover.outline]
        shape = Shape(category_id=mover.category_id, loops=loops, angle=0.0, side=mover.side)
        layer = rasterise(shape, 2 * half)
        self._origin = half - layer.left, half - layer.top  # of the object frame in the painted window: x, y
        self._colours = paint_object(rng, layer)

    def paint(self, layer: Layer, frame: int, pan: np.ndarray) -> np.ndarray:
        """The colours (3, h, w) over the window of the layer."""
        height, width = layer.coverage.shape
        centre_x, centre_y = self._mover.positions[frame] - pan
        x = np.arange(width) + layer.left + 0.5 - centre_x
        y = (np.arange(height) + layer.top + 0.5 - centre_y)[:, None]
        cosine, sine = math.cos(layer.shape.angle), math.sin(layer.shape.angle)
        across, along = cosine * x + sine * y, cosine * y - sine * x
        places = np.stack([along + self._origin[1] - 0.5, across + self._origin[0] - 0.5])
        return np.stack([map_coordinates(plane, places, order=1, mode="nearest") for plane in self._colours])


def _label(placed: list[tuple[Layer, int]], size: int) -> tuple[TrackedObject, ...]:
    """The labels of the objects with a pixel inside the image. The ids are the numbers of the layers, from 1.

    Args:
        placed: the layer of each object, and the number of its pixels inside and outside the image.
        size: height and width of the image.
    """
    owners = stack_layers([layer for layer, _ in placed], size)
    objects = []
    for number, (layer, full_area) in enumerate(placed, start=1):
        mask = layer.mask
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x0, y0 = layer.left + int(columns[0]), layer.top + int(rows[0])
        x1, y1 = layer.left + int(columns[-1]) + 1, layer.top + int(rows[-1]) + 1
        visibility = int(np.count_nonzero(owners[layer.window] == number)) / full_area
        category_id = layer.shape.category_id
        objects.append(TrackedObject(id=number, category_id=category_id, box=(x0, y0, x1, y1), visibility=visibility))
    return tuple(objects)
