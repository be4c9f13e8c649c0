"""Scenes: the embedded data set, a seeded generator of drawn pictures with exact COCO labels.

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

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from opendetr.data.records import DataError

_THINGS = {
    "round": ("disc", "ring", "crescent", "drop"),
    "polygon": ("triangle", "square", "hexagon", "cross"),
    "symbol": ("star", "heart", "arrow", "gear"),
}
_STUFF = {"above": ("sky",), "ground": ("grass", "water", "sand")}
_FIRST_STUFF_ID = 20


def _number_categories(names: Mapping[str, tuple[str, ...]], first_id: int, isthing: int) -> list[dict[str, Any]]:
    """COCO category records with consecutive ids, in the order of ``names`` (supercategory to names)."""
    pairs = [(name, supercategory) for supercategory, members in names.items() for name in members]
    return [
        {"id": category_id, "name": name, "supercategory": supercategory, "isthing": isthing}
        for category_id, (name, supercategory) in enumerate(pairs, start=first_id)
    ]


CATEGORIES: list[dict[str, Any]] = _number_categories(_THINGS, 1, 1) + _number_categories(_STUFF, _FIRST_STUFF_ID, 0)
"""COCO category records: things have the ids 1 to 12, stuff 20 to 23."""

DEFAULT_COUNTS: Mapping[str, int] = MappingProxyType({"train": 2000, "val": 300})
"""Scenes per split that :func:`write_scenes` draws unless told otherwise."""

_CATEGORY_NAMES = {category["id"]: category["name"] for category in CATEGORIES}
_THING_NAMES = tuple(name for members in _THINGS.values() for name in members)
_THING_IDS = [category["id"] for category in CATEGORIES if category["isthing"]]
_STUFF_IDS = [category["id"] for category in CATEGORIES if not category["isthing"]]
_GENERATOR = "OpenDETR scenes 1"
_MARKER = "scenes.json"
_SMALLEST_SIZE = 32
_PNG_FILTER_UP = 2

# Geometry is in fixed point: a pixel is SAMPLES x SAMPLES samples, a sample is SAMPLE_UNITS x SAMPLE_UNITS units.
_SAMPLES = 3
_SAMPLE_UNITS = 64
_PIXEL_UNITS = _SAMPLES * _SAMPLE_UNITS
_MAJORITY = _SAMPLES * _SAMPLES // 2 + 1


def _require(satisfied: bool, complaint: str) -> None:
    """Raise the complaint about a setting unless it is satisfied."""
    if not satisfied:
        raise DataError(f"SceneConfig: {complaint}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What scenes look like.

    Attributes:
        size: height and width of the image in pixels.
        min_objects: fewest objects drawn in a scene.
        max_objects: most objects drawn in a scene; the number is log-uniform between the two.
        min_scale: smallest longer side of an object, as a fraction of ``size``.
        max_scale: largest longer side of an object; the longer side is log-uniform between the two.
        max_per_category: most objects of one class in a scene.
        clustering: probability that an object is placed next to an earlier one and not just anywhere.
        crowd_visibility: an object of which a smaller fraction is visible is marked crowd.
        classes: names of the things that are drawn, all of them by default; fewer are easier to tell apart.
    """

    size: int = 256
    min_objects: int = 1
    max_objects: int = 16
    min_scale: float = 0.06
    max_scale: float = 0.70
    max_per_category: int = 13
    clustering: float = 0.4
    crowd_visibility: float = 0.2
    classes: tuple[str, ...] = _THING_NAMES

    def __post_init__(self) -> None:
        """Refuse settings that cannot be drawn."""
        unknown = [name for name in self.classes if name not in _THING_NAMES]
        _require(not unknown, f"classes: {', '.join(unknown)} cannot be drawn; choose of {', '.join(_THING_NAMES)}")
        _require(len(set(self.classes)) == len(self.classes) > 0, f"classes={self.classes}: name some, each once")
        most = self.max_per_category * len(self.classes)
        _require(self.size >= _SMALLEST_SIZE, f"size={self.size}: must be at least {_SMALLEST_SIZE} pixels")
        _require(
            1 <= self.min_objects <= self.max_objects <= most,
            f"min_objects={self.min_objects}, max_objects={self.max_objects}: need 1 <= min <= max <= {most}, "
            f"which is {len(self.classes)} classes times max_per_category={self.max_per_category}",
        )
        _require(
            0 < self.min_scale <= self.max_scale <= 1,
            f"min_scale={self.min_scale}, max_scale={self.max_scale}: need 0 < min <= max <= 1",
        )
        for name in ("clustering", "crowd_visibility"):
            _require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)}: must lie in [0, 1]")

    @property
    def category_ids(self) -> list[int]:
        """The ids of `classes`, ascending."""
        return [category_id for category_id in _THING_IDS if _CATEGORY_NAMES[category_id] in self.classes]

    @classmethod
    def hard(cls) -> "SceneConfig":
        """Up to 40 objects from 3 % of the image side."""
        return cls(max_objects=40, min_scale=0.03)


_DEFAULT_CONFIG = SceneConfig()


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Label of one object or of one stuff region.

    Attributes:
        id: value of the segment's pixels in ``Scene.segments``, from 1.
        category_id: one of the ids in ``CATEGORIES``.
        box: (x0, y0, x1, y1), tight around the visible pixels, in pixel edges.
        area: number of visible pixels.
        iscrowd: whether the object is too hidden to count as one (always False for stuff).
        occlusion: fraction of the object's pixels inside the image that others hide, in [0, 1).
    """

    id: int
    category_id: int
    box: tuple[int, int, int, int]
    area: int
    iscrowd: bool
    occlusion: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A drawn picture and its labels.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        segments: (H, W) int32, segment id of every pixel.
        objects: visible things from back to front.
        stuff: visible stuff, one segment per class.
    """

    image: np.ndarray
    segments: np.ndarray
    objects: tuple[Segment, ...]
    stuff: tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shape:
    """A placed object: loops of (N, 2) int64 (x, y) in fixed-point units, ``angle`` in radians, ``side`` in pixels."""

    category_id: int
    loops: list[np.ndarray]
    angle: float
    side: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """A rasterised object: ``coverage`` (h, w) uint8 in samples, in the window at row ``top`` and column ``left``."""

    shape: _Shape
    coverage: np.ndarray
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices that cut the layer's window out of an (H, W) array."""
        height, width = self.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool: the object owns a pixel if it covers the majority of its samples."""
        return self.coverage >= _MAJORITY


def draw_scene(index: int, *, split: str = "train", seed: int = 0, config: SceneConfig = _DEFAULT_CONFIG) -> Scene:
    """Draw one scene.

    Args:
        index: number of the scene in its split, from 0.
        split: name of the split; it is part of the random key, so no two splits share a scene.
        seed: seed of the data set.
        config: what scenes look like.

    Returns:
        The picture and its labels; the same arguments give the same bytes.
    """
    layout = _generator(seed, split, index, "layout")
    ground = _lay_ground(layout, config.size)
    layers = [_rasterise(shape, config.size) for shape in _place_shapes(layout, config)]
    owners = _stack(layers, config.size)
    segments, objects, stuff = _label(ground, layers, owners, config)
    image = _paint(_generator(seed, split, index, "look"), ground, layers)
    return Scene(image=image, segments=segments, objects=objects, stuff=stuff)


def write_scenes(
    folder: str | Path,
    *,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    config: SceneConfig = _DEFAULT_CONFIG,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a data set in the COCO layout, instances and panoptic.

    Writes ``folder/train/000000.png`` ..., ``folder/annotations/instances_train.json``,
    ``folder/annotations/panoptic_train.json`` and ``folder/annotations/panoptic_train/000000.png`` ..., and the same
    for every other split. The JSON files come last: while they are missing, the set is not finished. Image ids are the
    scenes' indices; a crowd is annotated by run lengths, any other object by polygons.

    Args:
        folder: where to; is made if missing. Splits of the same name that an earlier call wrote there are replaced.
        counts: number of scenes per split.
        seed: seed of the data set.
        config: what scenes look like.
        progress: called after every scene with the number of scenes done and the number of all scenes.

    Raises:
        DataError: the folder holds something else, or a split has a bad name or count.
    """
    folder = Path(folder)
    _check_counts(counts)
    _claim(folder)
    info = {"description": _GENERATOR, "seed": seed, "config": asdict(config)}
    writers = {split: _SplitWriter(folder, split, info | {"split": split}, config) for split in counts}
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        for index in range(count):
            writers[split].add(index, draw_scene(index, split=split, seed=seed, config=config))
            done += 1
            if progress is not None:
                progress(done, total)
    for writer in writers.values():
        writer.finish()


# ------------------------------------------------------------------------------------------------------- random numbers


def _generator(seed: int, split: str, index: int, stream: str) -> np.random.Generator:
    """Random stream of one scene. The key is hashed so that no two different keys can run into each other."""
    digest = hashlib.sha256(f"{seed}/{index}/{stream}/{split}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big"))))


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high). Only ``rng.random`` is used for layouts: its stream is the same in every NumPy."""
    return low + (high - low) * float(rng.random())


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high), uniform in its logarithm."""
    return math.exp(_uniform(rng, math.log(low), math.log(high)))


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer in [low, high]."""
    return low + int(rng.random() * (high - low + 1))


def _chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return float(rng.random()) < probability


def _shuffled(rng: np.random.Generator, items: list[int]) -> list[int]:
    """The items in random order."""
    return [items[i] for i in np.argsort(rng.random(len(items)), kind="stable")]


# --------------------------------------------------------------------------------------------------------------- shapes
# An outline is a list of closed loops of (N, 2) float64 (x, y) points, filled by the even-odd rule, in any unit.

_Outline = list[np.ndarray]


def _polar(radii: np.ndarray, start: float = 0.0) -> np.ndarray:
    """Points at equally spaced angles from ``start`` at the given radii (N,)."""
    angles = start + np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _disc(rng: np.random.Generator) -> _Outline:
    return [_polar(np.ones(56))]


def _ring(rng: np.random.Generator) -> _Outline:
    return [_polar(np.ones(56)), _polar(np.full(48, _uniform(rng, 0.45, 0.74)))]


def _crescent(rng: np.random.Generator) -> _Outline:
    tip, depth = _uniform(rng, 0.5, 1.1), _uniform(rng, 0.1, 0.5)
    outer = np.linspace(tip, 2 * math.pi - tip, 44)
    inner = np.linspace(0, math.pi, 28)[1:-1]
    back = math.cos(tip) - (math.cos(tip) + depth) * np.sin(inner), -math.sin(tip) * np.cos(inner)
    return [np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), np.stack(back, axis=1)])]


def _drop(rng: np.random.Generator) -> _Outline:
    angles = np.arange(56) * (2 * math.pi / 56)
    taper = np.sin(angles / 2) ** _uniform(rng, 1.2, 2.2)
    return [np.stack([0.8 * np.sin(angles) * taper, -np.cos(angles)], axis=1)]


def _triangle(rng: np.random.Generator) -> _Outline:
    return [np.array([(_uniform(rng, -0.5, 0.5), -0.9), (1.0, 0.8), (-1.0, 0.8)])]


def _square(rng: np.random.Generator) -> _Outline:
    return [_polar(np.ones(4), start=math.pi / 4)]


def _hexagon(rng: np.random.Generator) -> _Outline:
    return [_polar(np.ones(6))]


def _cross(rng: np.random.Generator) -> _Outline:
    arm = _uniform(rng, 0.24, 0.42)
    corner = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
    turns = [corner, corner[:, ::-1] * (-1, 1), -corner, corner[:, ::-1] * (1, -1)]
    return [np.concatenate(turns)]


def _star(rng: np.random.Generator) -> _Outline:
    tips, inner = _integer(rng, 5, 7), _uniform(rng, 0.4, 0.58)
    return [_polar(np.tile([1.0, inner], tips))]


def _heart(rng: np.random.Generator) -> _Outline:
    angles = np.arange(60) * (2 * math.pi / 60)
    notch = _uniform(rng, 4.0, 6.0)
    height = 13 * np.cos(angles) - notch * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    return [np.stack([16 * np.sin(angles) ** 3, -height], axis=1)]


def _arrow(rng: np.random.Generator) -> _Outline:
    shaft, neck, barb = _uniform(rng, 0.14, 0.34), _uniform(rng, -0.2, 0.3), _uniform(rng, 0.0, 0.15)
    upper = np.array([(-1.0, shaft), (neck, shaft), (neck - barb, 0.75), (1.0, 0.0)])
    return [np.concatenate([upper, upper[-2::-1] * (1, -1)])]


def _gear(rng: np.random.Generator) -> _Outline:
    teeth, root, bore = _integer(rng, 8, 12), _uniform(rng, 0.7, 0.8), _uniform(rng, 0.22, 0.42)
    return [_polar(np.tile([1.0, 1.0, root, root], teeth)), _polar(np.full(32, bore))]


_OUTLINES: dict[str, Callable[[np.random.Generator], _Outline]] = {
    "disc": _disc,
    "ring": _ring,
    "crescent": _crescent,
    "drop": _drop,
    "triangle": _triangle,
    "square": _square,
    "hexagon": _hexagon,
    "cross": _cross,
    "star": _star,
    "heart": _heart,
    "arrow": _arrow,
    "gear": _gear,
}


# --------------------------------------------------------------------------------------------------------------- layout


def _place_shapes(rng: np.random.Generator, config: SceneConfig) -> list[_Shape]:
    """Objects of a scene from back to front: large ones tend to lie behind small ones."""
    count = int(_log_uniform(rng, config.min_objects, config.max_objects + 1))
    placed: list[tuple[float, _Shape]] = []
    boxes: list[np.ndarray] = []
    for category_id in _choose_categories(rng, count, config):
        side = config.size * _log_uniform(rng, config.min_scale, config.max_scale)
        angle = _uniform(rng, 0, 2 * math.pi)
        outline = _pose(_OUTLINES[_CATEGORY_NAMES[category_id]](rng), _log_uniform(rng, 0.6, 1.67), angle, side)
        extent = outline[0].max(axis=0)
        centre = _choose_centre(rng, extent, boxes, config)
        boxes.append(np.stack([centre, extent]))
        loops = [np.rint((loop + centre) * _PIXEL_UNITS).astype(np.int64) for loop in outline]
        depth = math.log(side) + _uniform(rng, -0.8, 0.8)
        placed.append((depth, _Shape(category_id=category_id, loops=loops, angle=angle, side=side)))
    return [shape for _, shape in sorted(placed, key=lambda pair: -pair[0])]


def _choose_categories(rng: np.random.Generator, count: int, config: SceneConfig) -> list[int]:
    """Classes of a scene's objects; in one scene of four a single class prevails, as in a herd."""
    known = config.category_ids
    prevailing = known[_integer(rng, 0, len(known) - 1)]
    share = 0.75 if _chance(rng, 0.25) else 0.0
    chosen: list[int] = []
    for _ in range(count):
        free = [category_id for category_id in known if chosen.count(category_id) < config.max_per_category]
        category_id = free[_integer(rng, 0, len(free) - 1)]
        if _chance(rng, share) and prevailing in free:
            category_id = prevailing
        chosen.append(category_id)
    return chosen


def _pose(outline: _Outline, aspect: float, angle: float, side: float) -> _Outline:
    """Stretch, rotate and scale an outline so that its box is centred on 0 with ``side`` pixels as its longer side."""
    cosine, sine = math.cos(angle), math.sin(angle)
    stretch = np.array([math.sqrt(aspect), 1 / math.sqrt(aspect)])
    # Spelled out and not a matrix product, whose rounding depends on the BLAS.
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
    """Centre (x, y) in pixels of an object of half width and height ``extent``; at most an eighth of it leaves a side.

    ``boxes`` holds (2, 2) centres and extents of the objects placed so far: some objects go next to one of them.
    """
    low, high = 0.75 * extent, config.size - 0.75 * extent
    centre = low + (high - low) * rng.random(2)
    if boxes and _chance(rng, config.clustering):
        neighbour, reach = boxes[_integer(rng, 0, len(boxes) - 1)]
        centre = neighbour + (2 * rng.random(2) - 1) * (0.8 * reach + 0.6 * extent)
    return np.clip(centre, low, high)


def _lay_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """(H, W) uint8 stuff category ids: layers with wavy borders, sky on top, and now and then a patch on them."""
    order = _shuffled(rng, _STUFF_IDS)[: _integer(rng, 1, len(_STUFF_IDS))]
    order.sort(key=lambda category_id: _CATEGORY_NAMES[category_id] != "sky")
    ground = np.full((size, size), order[-1], np.uint8)
    rows = (2 * np.arange(size) + 1) * (_PIXEL_UNITS // 2)
    for layer in range(len(order) - 2, -1, -1):
        level = (layer + 1 + _uniform(rng, -0.3, 0.3)) / len(order)
        border = size * (level + _wave(rng, np.arange(size) / size, _uniform(rng, 0.01, 0.06)))
        above = rows[:, None] < np.rint(border * _PIXEL_UNITS).astype(np.int64)
        ground[above] = order[layer]
    if _chance(rng, 0.5):
        _lay_patch(rng, ground)
    return ground


def _wave(rng: np.random.Generator, position: np.ndarray, amplitude: float) -> np.ndarray:
    """A random wavy line over ``position`` (N,) in [0, 1]: a slope and ever finer sines."""
    line = (position - 0.5) * _uniform(rng, -2, 2) * amplitude
    for frequency in (1.0, 2.3, 5.1, 11.7, 29.0):
        phase = _uniform(rng, 0, 2 * math.pi)
        line = line + amplitude * frequency**-0.8 * np.sin(2 * math.pi * frequency * position + phase)
    return line


def _lay_patch(rng: np.random.Generator, ground: np.ndarray) -> None:
    """Lay a patch of grass, water or sand with an irregular border on the lower part of the ground, in place."""
    size = len(ground)
    category_id = _STUFF_IDS[_integer(rng, 1, len(_STUFF_IDS) - 1)]
    turns = np.arange(96) / 96
    radii = np.ones(len(turns))
    for lobes in (1, 2, 3, 5, 8, 13):
        radii += 0.35 / lobes * np.sin(2 * math.pi * (lobes * turns + _uniform(rng, 0, 1)))
    reach = size * np.array([_uniform(rng, 0.15, 0.4), _uniform(rng, 0.08, 0.22)])
    centre = size * np.array([_uniform(rng, 0.1, 0.9), _uniform(rng, 0.55, 0.9)])
    loop = np.rint((_polar(radii) * reach + centre) * _PIXEL_UNITS).astype(np.int64)
    patch = _rasterise(_Shape(category_id=category_id, loops=[loop], angle=0.0, side=0.0), size)
    ground[patch.window][patch.mask] = category_id


# ------------------------------------------------------------------------------------------------------------ rasterise


def _rasterise(shape: _Shape, size: int) -> _Layer:
    """Scan-convert a shape by the even-odd rule, in integers, in the part of its box that lies in the image."""
    points = np.concatenate(shape.loops)
    left, top = np.clip(points.min(axis=0) // _PIXEL_UNITS, 0, size - 1)
    right, bottom = np.clip(-(-points.max(axis=0) // _PIXEL_UNITS), (left + 1, top + 1), size)
    rows, columns = _crossings(shape.loops, top * _SAMPLES, bottom * _SAMPLES)
    height, width = (bottom - top) * _SAMPLES, (right - left) * _SAMPLES
    flips = np.zeros((height, width + 1), np.uint8)
    places = (rows - top * _SAMPLES) * (width + 1) + np.clip(columns - left * _SAMPLES, 0, width)
    np.add.at(flips.reshape(-1), places, np.uint8(1))
    inside = np.cumsum(flips[:, :-1], axis=1, dtype=np.uint8) & 1
    blocks = [inside[row::_SAMPLES, column::_SAMPLES] for row in range(_SAMPLES) for column in range(_SAMPLES)]
    coverage = np.add.reduce(blocks, dtype=np.uint8)
    return _Layer(shape=shape, coverage=coverage, top=int(top), left=int(left))


def _crossings(loops: list[np.ndarray], top: int, bottom: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the loops cross the centre lines of the sample rows in [top, bottom).

    Returns:
        (N,) sample rows and (N,) columns of the first sample to the right of each crossing.
    """
    starts = np.concatenate(loops)
    ends = np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    falling = (starts[:, 1] <= ends[:, 1])[:, None]
    upper, lower = np.where(falling, starts, ends), np.where(falling, ends, starts)
    half = _SAMPLE_UNITS // 2
    first = np.clip((upper[:, 1] + half - 1) // _SAMPLE_UNITS, top, bottom)
    last = np.clip((lower[:, 1] + half - 1) // _SAMPLE_UNITS, top, bottom)
    edges = np.repeat(np.arange(len(starts)), last - first)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(last - first) - last, last - first)
    (x, y), (run, drop) = upper[edges].T, (lower - upper)[edges].T
    crossing = x + (rows * _SAMPLE_UNITS + half - y) * run // drop
    return rows, (crossing + half) // _SAMPLE_UNITS


# --------------------------------------------------------------------------------------------------------------- labels


def _stack(layers: list[_Layer], size: int) -> np.ndarray:
    """(H, W) int32: number of the topmost layer that owns each pixel, from 1; 0 where the ground shows."""
    owners = np.zeros((size, size), np.int32)
    for number, layer in enumerate(layers, start=1):
        owners[layer.window][layer.mask] = number
    return owners


def _label(
    ground: np.ndarray, layers: list[_Layer], owners: np.ndarray, config: SceneConfig
) -> tuple[np.ndarray, tuple[Segment, ...], tuple[Segment, ...]]:
    """Segment map (H, W) int32, labels of the visible objects and labels of the visible stuff."""
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
    for category_id in _STUFF_IDS:
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
    """Label of the visible pixels (h, w) of a window whose top left corner is ``origin`` (x, y)."""
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


# ---------------------------------------------------------------------------------------------------------------- paint
# A canvas is (3, H, W) float32 RGB in [0, 255]. A texture is a (h, w) float32 weight in [0, 1] between two colours.

_SHADES = 64


def _paint(rng: np.random.Generator, ground: np.ndarray, layers: list[_Layer]) -> np.ndarray:
    """Paint ground and objects, back to front, with soft edges and shadows: (H, W, 3) uint8."""
    canvas = _paint_ground(rng, ground)
    for layer in layers:
        _cast_shadow(canvas, layer)
        _paint_object(rng, canvas, layer)
    return np.ascontiguousarray(np.clip(canvas, 0, 255, out=canvas).astype(np.uint8).transpose(1, 2, 0))


def _paint_ground(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Each stuff class in its own texture, between two colours of its own, under one light for the whole scene.

    Returns:
        (3, H, W) float32 canvas. Colours come from a palette of a few shades per class, which keeps the files small.
    """
    grain = rng.random(ground.shape, dtype=np.float32)
    palette = np.zeros((3, 256, _SHADES), np.float32)
    shade = np.zeros(ground.shape, np.intp)
    light = _uniform(rng, 0.75, 1.15) * (0.92 + 0.16 * rng.random(3))
    for category_id in _STUFF_IDS:
        region = ground == category_id
        if region.any():
            texture, colours = _GROUNDS[_CATEGORY_NAMES[category_id]]
            weight = np.clip(texture(rng, grain), 0, 1) * (_SHADES - 1)
            np.copyto(shade, weight + category_id * _SHADES, where=region, casting="unsafe")
            dark, bright = np.array(colours) * (light * (0.92 + 0.16 * rng.random(3)))
            palette[:, category_id] = dark[:, None] + (bright - dark)[:, None] * np.linspace(0, 1, _SHADES)
    return palette.reshape(3, -1).take(shade, axis=1)


_CLOUDS = ((0.8, 6), (0.45, 13), (0.22, 29), (0.1, 61))  # weights and rows of knots of ever finer noise


def _sky(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Brighter towards the horizon, with clouds."""
    size = len(grain)
    clouds = np.zeros_like(grain)
    for weight, rows in _CLOUDS:
        clouds += weight * _smooth_noise(rng, grain.shape, (rows, rows - 2))
    height = np.linspace(0, 0.45, size, dtype=np.float32)[:, None]
    return height + np.clip(clouds * 2.2 - 1.6, 0, 0.6) + 0.03 * grain


def _grass(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Upright blades on patches of light and dark."""
    blades = np.repeat(grain[::4], 4, axis=0)[: len(grain)]
    return 0.6 * _smooth_noise(rng, grain.shape, (9, 9)) + 0.4 * blades


def _water(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Ripples that run across and drift."""
    size = len(grain)
    rows = np.arange(size, dtype=np.float32)[:, None]
    phase = rows * np.float32(_uniform(rng, 0.25, 0.7)) + 14 * _smooth_noise(rng, grain.shape, (9, 5))
    return 0.45 + 0.3 * np.sin(phase) + 0.12 * grain


def _sand(rng: np.random.Generator, grain: np.ndarray) -> np.ndarray:
    """Fine grain on low dunes."""
    return 0.55 * _smooth_noise(rng, grain.shape, (5, 4)) + 0.45 * grain


_GROUNDS: dict[str, tuple[Callable[[np.random.Generator, np.ndarray], np.ndarray], tuple[tuple[int, ...], ...]]] = {
    "sky": (_sky, ((90, 140, 205), (235, 240, 248))),
    "grass": (_grass, ((38, 78, 30), (128, 168, 72))),
    "water": (_water, ((22, 70, 104), (104, 170, 190))),
    "sand": (_sand, ((170, 144, 106), (234, 216, 180))),
}


@lru_cache(maxsize=256)
def _interpolation(length: int, knots: int) -> np.ndarray:
    """(length, knots) float32: smooth interpolation from equally spaced knots to pixels."""
    position = np.linspace(0, knots - 1, length)
    knot = np.minimum(position.astype(int), knots - 2)
    fraction = position - knot
    fraction = fraction * fraction * (3 - 2 * fraction)
    matrix = np.zeros((length, knots), np.float32)
    matrix[np.arange(length), knot] = 1 - fraction
    matrix[np.arange(length), knot + 1] = fraction
    return matrix


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], knots: tuple[int, int]) -> np.ndarray:
    """Float32 noise of the given shape (h, w) in [0, 1], interpolated from a random grid of rows x columns knots."""
    grid = rng.random(knots, dtype=np.float32)
    return _interpolation(shape[0], knots[0]) @ grid @ _interpolation(shape[1], knots[1]).T


def _cast_shadow(canvas: np.ndarray, layer: _Layer) -> None:
    """Darken what lies to the lower right of the object, in place."""
    shift = max(1, round(0.02 * layer.shape.side))
    rows, columns = layer.window
    behind = canvas[:, rows.start + shift : rows.stop + shift, columns.start + shift : columns.stop + shift]
    height, width = behind.shape[1:]
    behind *= 1 - layer.coverage[:height, :width] * np.float32(0.35 / _SAMPLES**2)


def _paint_object(rng: np.random.Generator, canvas: np.ndarray, layer: _Layer) -> None:
    """Blend the textured and shaded object into the canvas, in place, by its coverage."""
    first, second = _choose_colours(rng)
    across, along = _object_frame(rng, layer)
    texture = _TEXTURES[_integer(rng, 0, len(_TEXTURES) - 1)]
    paint = texture(rng, across, along, layer) * (second - first)[:, None, None]
    paint += first[:, None, None]
    paint *= 1 + np.float32(_uniform(rng, -0.25, 0.25)) * across
    region = canvas[:, *layer.window]
    paint -= region
    paint *= layer.coverage * np.float32(1 / _SAMPLES**2)
    region += paint


def _choose_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours (3,) of clearly different brightness, drawn with no regard to the class."""
    hue, saturation, value = rng.random(), 0.95 * math.sqrt(rng.random()), _uniform(rng, 0.25, 1)
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    first = value * (1 - saturation * (1 - wheel))
    dark = 0.45 * rng.random(3)
    second = dark if 2 * first.mean() > 1 else 1 - dark
    return (255 * first).astype(np.float32), (255 * second).astype(np.float32)


def _object_frame(rng: np.random.Generator, layer: _Layer) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 pixel coordinates in the turned frame of the object, about -1 to 1 over the window."""
    height, width = layer.coverage.shape
    scale = np.float32(2 / max(height, width))
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) * scale
    x = (np.arange(width, dtype=np.float32) - width / 2) * scale
    angle = layer.shape.angle + _uniform(rng, -0.5, 0.5)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


_Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray, _Layer], np.ndarray]


def _frequency(rng: np.random.Generator, layer: _Layer) -> float:
    """Radians per unit of the object frame: 2 to 12 periods over the window, of 5 pixels or more if it is large."""
    finest = max(2.5, max(layer.coverage.shape) / 5)
    return math.pi * _log_uniform(rng, 2.0, min(12.0, finest))


def _sharpen(wave: np.ndarray, layer: _Layer, frequency: float) -> np.ndarray:
    """Turn a wave in [-1, 1] into bands whose edges are about a pixel wide."""
    slope = max(layer.coverage.shape) / (2 * frequency)
    return np.clip(wave * slope + 0.5, 0, 1)


def _plain(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    return np.zeros_like(across)


def _stripes(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    frequency = _frequency(rng, layer)
    return _sharpen(np.sin(across * frequency), layer, frequency)


def _checker(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    frequency = _frequency(rng, layer)
    return _sharpen(np.sin(across * frequency) * np.sin(along * frequency), layer, frequency)


def _dots(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    frequency = _frequency(rng, layer)
    return _sharpen(np.cos(across * frequency) + np.cos(along * frequency) - 0.8, layer, frequency)


def _gradient(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    return np.clip(0.5 + 0.6 * along, 0, 1)


def _marble(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    warp = _smooth_noise(rng, across.shape, (6, 6))
    return 0.5 + 0.5 * np.sin(np.float32(_uniform(rng, 3, 9)) * across + 9 * warp)


def _speckle(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    return rng.random(across.shape, dtype=np.float32) * np.float32(0.7)


def _outline(rng: np.random.Generator, across: np.ndarray, along: np.ndarray, layer: _Layer) -> np.ndarray:
    """The first colour inside, the second along the rim."""
    rim = max(1, round(_uniform(rng, 0.02, 0.05) * layer.shape.side))
    padded = np.pad(layer.coverage, rim)
    height, width = layer.coverage.shape
    diagonal = round(0.7 * rim)
    steps = [(0, rim), (rim, 0), (diagonal, diagonal), (diagonal, -diagonal)]
    inner = layer.coverage
    for dy, dx in steps + [(-dy, -dx) for dy, dx in steps]:
        inner = np.minimum(inner, padded[rim + dy : rim + dy + height, rim + dx : rim + dx + width])
    return 1 - inner * np.float32(1 / _SAMPLES**2)


_TEXTURES: tuple[_Texture, ...] = (_plain, _stripes, _checker, _dots, _gradient, _marble, _speckle, _outline)


# ----------------------------------------------------------------------------------------------------------- COCO files


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed COCO run-length encoding.

    Args:
        mask: (H, W) bool.

    Returns:
        ``{"size": [H, W], "counts": [...]}``: lengths of runs of 0, 1, 0, ... down the columns, from the left.
    """
    pixels = np.asarray(mask, bool).reshape(-1, order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate([[0], changes, [pixels.size]])
    leading = [0] if pixels[0] else []
    return {"size": [*mask.shape], "counts": leading + np.diff(bounds).tolist()}


def mask_to_polygons(mask: np.ndarray, *, origin: tuple[int, int] = (0, 0)) -> list[list[int]]:
    """Polygons along the pixel edges of a mask; rasterised with pycocotools they give back exactly the mask.

    There is a polygon for each part that is connected through pixel sides; a part with a hole is cut through the hole
    into parts without.

    Args:
        mask: (h, w) bool.
        origin: (x, y) of the mask's top left corner, added to the polygons.

    Returns:
        COCO polygons ``[x0, y0, x1, y1, ...]`` in pixel edges; no polygon has a hole.
    """
    x, y, filled = _corners(mask)
    polygons: list[list[int]] = []
    for loop in _trace(x, y, filled):
        columns = x[loop]
        if not filled[loop[0]]:
            # The loop runs around a hole: both sides of a cut through it have one hole less.
            cut = int(columns.min() + columns.max()) // 2
            right = mask_to_polygons(mask[:, cut:], origin=(origin[0] + cut, origin[1]))
            return mask_to_polygons(mask[:, :cut], origin=origin) + right
        polygons.append(np.stack([columns + origin[0], y[loop] + origin[1]], axis=1).reshape(-1).tolist())
    return polygons


def _corners(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corners of the outlines of a mask (h, w), row by row.

    Where two pixels touch only diagonally, two outlines touch and the corner is listed once for each.

    Returns:
        (N,) x and (N,) y in pixel edges, and (N,) bool: whether the pixel to the lower right is in the mask.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    above, below = padded[:-1], padded[1:]
    turns = above[:, :-1] ^ above[:, 1:] ^ below[:, :-1] ^ below[:, 1:]
    touches = (above[:, :-1] == below[:, 1:]) & (above[:, 1:] == below[:, :-1]) & (above[:, :-1] != above[:, 1:])
    y, x = np.nonzero(turns | touches)
    times = 1 + touches[y, x]
    y, x = np.repeat(y, times), np.repeat(x, times)
    return x, y, below[y, x + 1]


def _trace(x: np.ndarray, y: np.ndarray, filled: np.ndarray) -> list[list[int]]:
    """Link corners, as :func:`_corners` lists them, to closed loops that start with a step to the right.

    Along a row the corners pair up to horizontal edges, along a column to vertical ones. Corners listed twice are taken
    in the order that keeps the two diagonal pixels apart, so every loop bounds a part connected through pixel sides.
    """
    number = np.arange(len(x))
    below = np.lexsort((np.where(filled, number, -number), y, x))
    vertical = np.empty_like(number)
    vertical[below[0::2]], vertical[below[1::2]] = below[1::2], below[0::2]
    following = vertical.tolist()
    loops: list[list[int]] = []
    seen = [False] * len(following)
    for start in range(0, len(following), 2):
        loop: list[int] = []
        corner = start
        while not seen[corner]:
            loop += (corner, corner ^ 1)
            seen[corner] = seen[corner ^ 1] = True
            corner = following[corner ^ 1]
        if loop:
            loops.append(loop)
    return loops


def _instance_record(scene: Scene, label: Segment) -> dict[str, Any]:
    """COCO instance annotation of a thing, without ids: polygons, or run lengths if it is a crowd."""
    x0, y0, x1, y1 = label.box
    visible = scene.segments[y0:y1, x0:x1] == label.id
    return {
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
        "segmentation": mask_to_rle(scene.segments == label.id)
        if label.iscrowd
        else mask_to_polygons(visible, origin=(x0, y0)),
    }


def _segment_record(label: Segment) -> dict[str, Any]:
    """COCO panoptic ``segments_info`` entry."""
    x0, y0, x1, y1 = label.box
    return {
        "id": label.id,
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
    }


def _encode_png(pixels: np.ndarray) -> bytes:
    """PNG file of an (H, W, 3) uint8 picture: every row as its difference to the one above, lightly compressed.

    General encoders try all filters on each row and take several times as long.
    """
    height, width = pixels.shape[:2]
    rows = np.full((height, 1 + 3 * width), _PNG_FILTER_UP, np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    rows[1:, 1:] -= pixels[:-1].reshape(height - 1, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _segments_to_rgb(segments: np.ndarray) -> np.ndarray:
    """COCO panoptic colours (H, W, 3) uint8 of segment ids (H, W): id = R + 256 G + 65536 B."""
    return np.stack([(segments >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)], axis=2)


def _check_counts(counts: Mapping[str, int]) -> None:
    """Refuse splits that cannot be written."""
    for split, count in counts.items():
        if not split.isidentifier() or split == "annotations":
            raise DataError(f"counts: split {split!r} names files: use letters, digits and _, and not 'annotations'")
        if count < 0:
            raise DataError(f"counts[{split!r}]={count}: must be 0 or more")


def _claim(folder: Path) -> None:
    """Make and mark the folder, or refuse one that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder that is empty or does not exist")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise DataError(f"{folder} holds files that are not scenes: name a folder that is empty or does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text(json.dumps({"description": _GENERATOR}) + "\n")


class _SplitWriter:
    """Writes the pictures of a split one by one and its COCO files at the end."""

    def __init__(self, folder: Path, split: str, info: dict[str, Any], config: SceneConfig) -> None:
        self._pictures = folder / split
        self._annotations = folder / "annotations"
        self._split = split
        images: list[dict[str, Any]] = []
        categories = [each for each in CATEGORIES if not each["isthing"] or each["name"] in config.classes]
        of_things = [each for each in categories if each["isthing"]]
        things = [{key: record[key] for key in ("id", "name", "supercategory")} for record in of_things]
        self._instances: dict[str, Any] = {"info": info, "images": images, "annotations": [], "categories": things}
        self._panoptic: dict[str, Any] = {"info": info, "images": images, "annotations": [], "categories": categories}
        self._clear()

    def _clear(self) -> None:
        """Make the folders and empty them, JSON first, so that an interrupted write never looks finished."""
        for name in self._files():
            (self._annotations / name).unlink(missing_ok=True)
        for folder in (self._pictures, self._annotations / f"panoptic_{self._split}"):
            folder.mkdir(parents=True, exist_ok=True)
            for picture in folder.glob("*.png"):
                picture.unlink()

    def _files(self) -> dict[str, dict[str, Any]]:
        """Names and contents of the COCO files."""
        return {f"instances_{self._split}.json": self._instances, f"panoptic_{self._split}.json": self._panoptic}

    def add(self, index: int, scene: Scene) -> None:
        """Write both pictures of a scene and note its labels."""
        name = f"{index:06d}.png"
        (self._pictures / name).write_bytes(_encode_png(scene.image))
        panoptic_png = _encode_png(_segments_to_rgb(scene.segments))
        (self._annotations / f"panoptic_{self._split}" / name).write_bytes(panoptic_png)
        height, width = scene.segments.shape
        self._instances["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        annotations = self._instances["annotations"]
        for label in scene.objects:
            # Ids start from 1: the COCO evaluation takes a match with id 0 for no match.
            ids = {"id": len(annotations) + 1, "image_id": index}
            annotations.append(ids | _instance_record(scene, label))
        segments_info = [_segment_record(label) for label in scene.objects + scene.stuff]
        self._panoptic["annotations"].append({"image_id": index, "file_name": name, "segments_info": segments_info})

    def finish(self) -> None:
        """Write the COCO files, each of them whole or not at all."""
        for name, content in self._files().items():
            partial = self._annotations / f"{name}.partial"
            partial.write_text(json.dumps(content, separators=(",", ":")))
            partial.replace(self._annotations / name)
