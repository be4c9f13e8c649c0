"""Read labelme's files: a JSON file for every image.

    {"imagePath": "a.jpg", "imageHeight": 72, "imageWidth": 96,
     "shapes": [{"label": "cat", "shape_type": "rectangle", "points": [[4, 5], [30, 44]], "group_id": null}]}

Rectangles (two corners in any order, or four), polygons, circles, masks and turned rectangles are objects. Polygons of
one class with the same `group_id` are one object. Points and lines are not objects. Splits are those of the folders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opendetr.data.faults import FaultKind
from opendetr.data.formats.annotated import (
    AnnotatedFolder,
    AnnotatedImage,
    Annotation,
    Box,
    corners_box,
    points_box,
    stated_size,
)
from opendetr.data.formats.json_files import Entry, number, read_json
from opendetr.data.formats.lookup import Lookup, respelled
from opendetr.data.formats.spellings import is_rotated_quad
from opendetr.data.formats.splits import SINGLE_SPLIT, path_split
from opendetr.data.records import RAISE_FAULTS, DataFault, FaultError, FaultLog
from opendetr.data.text import pixels

_BOXES = frozenset({"rectangle", "rotation", "mask", "quadrilateral"})
_NO_BOXES = frozenset({"point", "points", "line", "linestrip"})


def is_labelme(content: Any) -> bool:
    """Whether the content of a JSON file is labelme's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def parse_labelme(lookup: Lookup, files: Sequence[Path], log: FaultLog = RAISE_FAULTS) -> AnnotatedFolder:
    """Read the JSON files of a dataset. Raises DataError that names the fault and its place.

    Args:
        lookup: the files of the dataset.
        files: its JSON files. Those of other formats are skipped.
        log: what to do at an unusable file or shape.
    """
    images: dict[Path, AnnotatedImage] = {}
    for path in files:
        with log:
            content = read_json(path)
            if is_labelme(content):
                _add_image(content, path, lookup, images, log)
    return AnnotatedFolder.of(lookup.folder, images.values(), (), box_format="xyxy")


def _add_image(
    content: dict[str, Any], path: Path, lookup: Lookup, images: dict[Path, AnnotatedImage], log: FaultLog
) -> None:
    named = content["imagePath"] if isinstance(content["imagePath"], str) else ""
    found = (lookup.image(named, [path.parent], path) if named else None) or lookup.image_of(path, named)
    if found is None:
        detail = f"its image {(named or path.stem)!r} is missing; add the image, or remove this file"
        raise FaultError(FaultKind.MISSING_IMAGE, path, "", detail)
    folder = found.path.parent.relative_to(lookup.folder).as_posix()
    split = path_split(path.parent.relative_to(lookup.folder).as_posix()) or path_split(folder) or SINGLE_SPLIT
    size = stated_size(content.get("imageHeight"), content.get("imageWidth"))
    image = images.setdefault(found.path, AnnotatedImage(found.path, path, "", size=size))
    image.splits.add(split)
    if found.respelled:
        image.faults.append(respelled(named, found.path, path))
    groups: dict[tuple[str, str], int] = {}
    for index, shape in enumerate(content["shapes"]):
        at = f"shapes[{index}]"
        with log:
            entry = Entry(shape, path, at)
            obj = _object(entry, split, image)
            group = entry.content.get("group_id")
            if obj is None:
                continue
            key = (obj.label, repr(group))
            if group is not None and obj.segmentation and key in groups:
                image.objects[groups[key]] = _joined(image.objects[groups[key]], obj)
                continue
            if group is not None and obj.segmentation:
                groups[key] = len(image.objects)
            image.objects.append(obj)


def _object(entry: Entry, split: str, image: AnnotatedImage) -> Annotation | None:
    kind = str(entry.content.get("shape_type") or "polygon")  # old versions drew polygons only
    if kind in _NO_BOXES:
        image.faults.append(DataFault(FaultKind.INVALID_ROW, str(entry.path), entry.at, f"a {kind} has no box"))
        return None
    label = entry.text("label")
    xs, ys = _points(entry)
    polygon = None
    if kind == "circle" and len(xs) == 2:
        radius = math.hypot(xs[1] - xs[0], ys[1] - ys[0])
        box = corners_box(xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius)
    elif kind in _BOXES:
        box = points_box(xs, ys)
        points = [value for point in zip(xs, ys, strict=True) for value in point]
        if is_rotated_quad(points):
            image.faults.append(DataFault(FaultKind.ROTATED_BOX, str(entry.path), entry.at))
    elif kind == "polygon":
        box = points_box(xs, ys)
        polygon = [pixels(value) for point in zip(xs, ys, strict=True) for value in point] if len(xs) > 2 else None
    else:
        detail = f"'shape_type' is {kind[:40]!r}; a rectangle, polygon, circle or mask is read"
        raise FaultError(FaultKind.BAD_VALUE, entry.path, entry.at, detail)
    return Annotation(split, entry.at, label, box, [polygon] if polygon else None)


def _points(entry: Entry) -> tuple[list[float], list[float]]:
    points = entry.content.get("points")
    pairs = points if isinstance(points, list) else []
    if len(pairs) < 2 or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise FaultError(FaultKind.BAD_VALUE, entry.path, entry.at, "'points' are not two or more pairs [x, y]")
    xs, ys = ([number(pair[axis], entry.path, entry.at, "'points'") for pair in pairs] for axis in (0, 1))
    return xs, ys


def _joined(first: Annotation, second: Annotation) -> Annotation:
    """One object of two parts."""
    box = _around(first.box, second.box)
    return first._replace(box=box, segmentation=[*first.segmentation, *second.segmentation])


def _around(a: Box, b: Box) -> Box:
    xs = [a[0], a[0] + a[2], b[0], b[0] + b[2]]
    ys = [a[1], a[1] + a[3], b[1], b[1] + b[3]]
    return points_box(xs, ys)
