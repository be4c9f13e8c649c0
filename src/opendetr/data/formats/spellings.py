"""Numbers, boxes and outlines in the spellings of annotation tools and scripts.

The functions read what has one meaning only. For everything else they return None, and the reader reports it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opendetr.data.text import pixels

Box = tuple[float, float, float, float]

# The names of four numbers of a box: two corners, or a corner and the sides.
CORNER_NAMES = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
SIDE_NAMES = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "width", "height"),
)
ANGLE_NAMES = ("angle", "theta", "rotation", "rot", "orientation")
CONFIDENCE_NAMES = ("confidence", "conf", "score", "probability")
_LARGEST = 2**63
_CORNERS_OF_QUAD, _FEWEST_NUMBERS = 8, 6
_PARALLEL = 0.02  # of the diagonal: by how much the sides of a rotated box may differ from parallel ones


def plain(name: str) -> str:
    """A name without capitals, blanks and punctuation."""
    return re.sub(r"[\W_]+", "", name.lower())


def number(value: Any) -> float | None:
    """A number, or the number that a text contains; None for everything else."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) >= _LARGEST):
        return None
    if isinstance(value, int | float):
        return float(value)
    try:
        return float(value) if isinstance(value, str) and "_" not in value else None
    except ValueError:
        return None


def whole_number(value: Any) -> int | None:
    """A whole number, or that which a text contains; None for everything else."""
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.removeprefix("-").isdigit() and len(text) < len(str(_LARGEST)):
            return int(text)
    as_number = number(value)
    if as_number is None or not as_number.is_integer() or abs(as_number) >= _LARGEST:
        return None
    return int(value) if isinstance(value, int) else int(as_number)


def numbers(value: Any) -> list[float] | None:
    """The numbers of a list, or of a text such as "[10, 20, 30, 40]"; None if something else is in it."""
    if isinstance(value, str):
        value = re.split(r"[\s,;]+", value.strip().strip("[](){}").strip())
    if not isinstance(value, Sequence):
        return None
    found = [number(item) for item in value]
    return None if None in found else [item for item in found if item is not None]


def named_box(value: Mapping[str, Any]) -> Box | None:
    """The box x, y, width, height of numbers with names, such as {"xmin": 1, "ymin": 2, "xmax": 5, "ymax": 8}."""
    by_name = {plain(name): item for name, item in value.items()}
    for names in (*CORNER_NAMES, *SIDE_NAMES):
        if set(names) <= by_name.keys():
            found = numbers([by_name[name] for name in names])
            if found is None:
                return None
            x, y, third, fourth = found
            return (x, y, pixels(third - x), pixels(fourth - y)) if names in CORNER_NAMES else (x, y, third, fourth)
    return None


def named_number(value: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """The first number with one of these names, without regard to capitals; None if there is none."""
    found = (number(item) for name, item in value.items() if plain(str(name)) in names)
    return next((item for item in found if item is not None), None)


def rotated_box(box: Box, degrees: float) -> Box:
    """The axis-aligned box around a box x, y, width, height that is rotated about its centre, in any direction."""
    x, y, w, h = box
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    width, height = pixels(w * cosine + h * sine), pixels(w * sine + h * cosine)
    return pixels(x + (w - width) / 2), pixels(y + (h - height) / 2), width, height


def is_rotation(degrees: float) -> bool:
    """Whether a rotation changes the axis-aligned box."""
    return math.isfinite(degrees) and abs(math.remainder(degrees, 180)) > 1e-3


def hull(points: Sequence[float]) -> Box | None:
    """The box x, y, width, height around points x1, y1, x2, y2, ...; None without a finite point."""
    if len(points) < 2 or not all(map(math.isfinite, points)):
        return None
    xs, ys = points[0::2], points[1::2]
    return min(xs), min(ys), pixels(max(xs) - min(xs)), pixels(max(ys) - min(ys))


def is_rotated_quad(points: Sequence[float]) -> bool:
    """Whether four points are the corners of a box that is not axis-aligned.

    They are a parallelogram, for in fractions of an image that is not square, the corners of a rotated box are one.
    """
    if len(points) != _CORNERS_OF_QUAD:
        return False
    (ax, bx, cx, dx), (ay, by, cy, dy) = points[0::2], points[1::2]
    limit = _PARALLEL * max(math.hypot(ax - cx, ay - cy), math.hypot(bx - dx, by - dy))
    if math.hypot(ax + cx - bx - dx, ay + cy - by - dy) > limit:
        return False
    sides = ((bx - ax, by - ay), (cx - bx, cy - by))
    return not all(min(abs(x), abs(y)) <= limit for x, y in sides)


def outline(value: Any) -> Any:
    """An outline as COCO has it: a list of polygons x1, y1, x2, y2, ..., or RLE.

    One polygon may be given without the list around it, as a list of points, or with texts that are numbers. Other
    values are returned unchanged.
    """
    if not isinstance(value, list) or not value:
        return value or None
    first = value[0]
    if isinstance(first, list) and first and type(first[0]) in (int, float):
        is_points = all(isinstance(item, list) and len(item) == 2 for item in value) and len(value) > 2
        return [_polygon(value)] if is_points else value
    if isinstance(first, list):
        polygons = [_polygon(polygon) for polygon in value]
        return value if None in polygons else polygons
    polygon = _polygon(value)
    return value if polygon is None else [polygon]


def _polygon(value: Any) -> list[float] | None:
    """The numbers of one polygon: a list of numbers, of pairs, or of {"x": ..., "y": ...}; None for everything else."""
    if not isinstance(value, list):
        return None
    flat: list[Any] = []
    for item in value:
        if isinstance(item, Mapping):
            flat += [item.get("x"), item.get("y")]
        elif isinstance(item, list) and len(item) == 2:
            flat += item
        else:
            flat.append(item)
    if all(type(item) in (int, float) for item in flat):
        return flat
    return numbers(flat)


def polygons_hull(value: Any) -> Box | None:
    """The box around all polygons of an outline; None if it has no valid one."""
    if not isinstance(value, list):
        return None
    points: list[float] = []
    for polygon in value:
        found = numbers(polygon) if isinstance(polygon, list) else None
        if found is None or len(found) < _FEWEST_NUMBERS or len(found) % 2:
            return None
        points += found
    return hull(points)
