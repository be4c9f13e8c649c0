"""The rows of YOLO's label files: boxes, polygons, and rows of other programs that contain more than a box."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from opendetr.data.faults import FaultKind
from opendetr.data.formats.annotated import points_box, polygon_area
from opendetr.data.records import DataFault, ObjectRecord
from opendetr.data.text import pixels

FEWEST_POLYGON_NUMBERS = 6
_BOX_NUMBERS, _QUAD_NUMBERS = 4, 8
_LARGEST_FRACTION = 2.0  # a larger value must be in pixels
# Rows with a confidence have one number more than a box, and rows of a tracker two.
_WITH_ONE, _WITH_TWO = 5, 6
_FEWEST_ROWS = 4  # that all look like boxes with keypoints, or with the number of a track
_NEARLY_ALL, _MANY = 0.9, 0.5
_MARGIN = 0.1  # of the sides of a box, by which keypoints may lie outside


class YoloRow(NamedTuple):
    """One row of a label file: its line number from 1, its class number, and 4 numbers of a box or 2n of a polygon."""

    line: int
    label: int
    values: tuple[float, ...]

    @property
    def text(self) -> str:
        """The row in the normalised form that the digest of `data.formats.sidecar` is computed from."""
        return " ".join(map(repr, (self.label, *self.values)))

    def record(self, id_: int, category_id: int, height: int, width: int) -> ObjectRecord:
        """The record of the object, in pixels of an image of `height` x `width`."""
        at = f"line {self.line}"
        if len(self.values) == _BOX_NUMBERS:
            cx, cy, w, h = self.values
            sides = pixels(w * width), pixels(h * height)
            box = (pixels((cx - w / 2) * width), pixels((cy - h / 2) * height), *sides)
            return ObjectRecord(id=id_, category_id=category_id, box=box, area=math.prod(sides), at=at)
        xs = [pixels(x * width) for x in self.values[0::2]]
        ys = [pixels(y * height) for y in self.values[1::2]]
        box = points_box(xs, ys)
        polygon = [coordinate for point in zip(xs, ys, strict=True) for coordinate in point]
        area = polygon_area(polygon) or math.prod(box[2:])
        return ObjectRecord(id=id_, category_id=category_id, box=box, area=area, segmentation=[polygon], at=at)


@dataclass(frozen=True)
class RowLengths:
    """What the rows of a dataset mean, by the number of their values.

    Attributes:
        boxes: the numbers of values of rows that begin with a box and contain further values, which are not read.
        keypoints: the number of keypoints of each row; 0 if the description of the dataset states none.
        has_quads: whether all rows that are not boxes have four points, so that they may be rotated boxes.
        doubt: why the values after the boxes are only guessed; empty if they are known or if there are none.
    """

    boxes: frozenset[int]
    keypoints: int = 0
    has_quads: bool = False
    doubt: str = ""

    def understood(self, row: YoloRow) -> YoloRow | tuple[FaultKind, str]:
        """The row as a box or polygon; for an invalid row, the kind of fault and a message."""
        count = len(row.values)
        if count in self.boxes:
            return box_or_polygon(row._replace(values=row.values[:_BOX_NUMBERS]))
        if self.keypoints and count != _BOX_NUMBERS:
            expected = " or ".join(map(str, sorted(self.boxes)))
            return (
                FaultKind.INVALID_ROW,
                f"{count} numbers after the class; with {self.keypoints} keypoints, {expected}",
            )
        return box_or_polygon(row)


def row_lengths(files: Iterable[Sequence[YoloRow | DataFault] | None], keypoints: int) -> RowLengths:
    """Decide what the rows of a dataset mean.

    Args:
        files: the rows of each label file as they are written.
        keypoints: the number of keypoints that the description of the dataset states.
    """
    if keypoints:
        return RowLengths(frozenset({_BOX_NUMBERS + 2 * keypoints, _BOX_NUMBERS + 3 * keypoints}), keypoints)
    rows = [row for entries in files for row in entries or () if isinstance(row, YoloRow)]
    counts = Counter(len(row.values) for row in rows)
    others = counts.keys() - {_BOX_NUMBERS}
    num_longer = sum(counts[count] for count in others)
    num_extended = counts[_WITH_ONE] + counts[_WITH_TWO]
    # Polygons have various lengths. Rows of a detector or tracker may have a confidence or not.
    candidates = {count for count in others if counts[count] >= _NEARLY_ALL * num_longer}
    meanings = {}
    for count in sorted(candidates | (others & {_WITH_ONE, _WITH_TWO})):
        of_length = [row.values for row in rows if len(row.values) == count]
        if meaning := _meaning(of_length, is_most=num_extended >= _MANY * len(rows)):
            meanings[count] = meaning
    if not meanings:
        return RowLengths(frozenset(), has_quads=others == {_QUAD_NUMBERS})
    count = max(meanings, key=counts.__getitem__)
    doubt = f"{counts[count]:,} of {len(rows):,} rows have {count} numbers after the class, perhaps {meanings[count]}"
    return RowLengths(frozenset(meanings), doubt=doubt)


def _meaning(rows: Sequence[Sequence[float]], *, is_most: bool) -> str:
    """What rows of the same length probably are, if they are no polygons; else an empty string.

    `is_most` tells whether most rows of the dataset have one or two numbers more than a box.
    """
    count = len(rows[0])
    if count == _WITH_ONE:
        return "a box and a confidence or an angle" if is_most else ""
    if len(rows) < _FEWEST_ROWS:
        return ""
    if count == _WITH_TWO and any(_all_confidence_and_track(rows, index) for index in (0, 1)):
        return "a box, a confidence and the number of a track"
    for size in (2, 3):
        if (count - _BOX_NUMBERS) % size == 0 and count > _BOX_NUMBERS and _all_keypoints(rows, size):
            return f"a box and {(count - _BOX_NUMBERS) // size} keypoints"
    return ""


def _all_confidence_and_track(rows: Iterable[Sequence[float]], index: int) -> bool:
    """Whether the last two values are a fraction and a whole number in all rows; `index` is that of the fraction."""
    return all(0 <= row[4 + index] <= 1 and row[5 - index] >= 0 and row[5 - index] % 1 == 0 for row in rows)


def _all_keypoints(rows: Collection[Sequence[float]], size: int) -> bool:
    """Whether nearly all rows are a box and keypoints in it, of `size` numbers each, rather than polygons.

    In a polygon, the second point is near the others. The sides of a box are elsewhere, unless by chance.
    """
    points = [(row[:_BOX_NUMBERS], _visible(row[_BOX_NUMBERS:], size)) for row in rows]
    inside = sum(found is not None and _are_inside(box, found) for box, found in points)
    if inside < _NEARLY_ALL * len(rows):
        return False
    return size == 3 or sum(_is_apart(box, found or []) for box, found in points) >= _MANY * len(rows)


def _visible(values: Sequence[float], size: int) -> list[tuple[float, float]] | None:
    """The annotated keypoints; None if the third numbers are not those of COCO (0, 1 and 2)."""
    points = [values[start : start + size] for start in range(0, len(values), size)]
    if size == 3 and any(point[2] not in (0, 1, 2) for point in points):
        return None
    return [(point[0], point[1]) for point in points if point[0] or point[1]]


def _are_inside(box: Sequence[float], points: Iterable[tuple[float, float]]) -> bool:
    """Whether the points lie in a box centre x, centre y, width, height, nearly, and the box in the image."""
    cx, cy, w, h = box
    if w <= 0 or h <= 0 or max(w / 2 - cx, h / 2 - cy, cx + w / 2 - 1, cy + h / 2 - 1) > _MARGIN:
        return False
    across, down = (0.5 + _MARGIN) * w, (0.5 + _MARGIN) * h
    return all(abs(x - cx) <= across and abs(y - cy) <= down for x, y in points)


def _is_apart(box: Sequence[float], points: Sequence[tuple[float, float]]) -> bool:
    """Whether the sides of a box, taken as a point, lie apart from the other points and the centre."""
    xs, ys = [box[0], *(x for x, _ in points)], [box[1], *(y for _, y in points)]
    across, down = max(max(xs) - min(xs), box[2] / 2) / 2, max(max(ys) - min(ys), box[3] / 2) / 2
    return not (min(xs) - across <= box[2] <= max(xs) + across and min(ys) - down <= box[3] <= max(ys) + down)


def box_or_polygon(row: YoloRow) -> YoloRow | tuple[FaultKind, str]:
    """A row with the values of a box or a polygon; for other rows, the kind of fault and a message."""
    values = row.values
    if len(values) != _BOX_NUMBERS and (len(values) < FEWEST_POLYGON_NUMBERS or len(values) % 2):
        return (
            FaultKind.INVALID_ROW,
            f"{len(values)} numbers after the class; a box has 4, a polygon an even number from 6",
        )
    if any(math.isfinite(value) and abs(value) > _LARGEST_FRACTION for value in values):
        return FaultKind.PIXEL_ROW, f"{max(values, key=abs):g} is not a fraction of the image size"
    return row
