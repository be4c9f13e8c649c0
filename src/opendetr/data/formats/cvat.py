"""Read "CVAT for images": one XML file with an entry for every image.

    <annotations>
      <image id="0" name="0.png" width="96" height="72" subset="Train">
        <box label="cat" xtl="4.0" ytl="5.0" xbr="30.0" ybr="44.5" rotation="0.0"/>
        <polygon label="dog" points="40.0,8.0;60.0,8.0;50.0,30.0"/>

Boxes, polygons, ellipses, masks and cuboids are objects; a mask and a cuboid have the box around them. Points, lines
and tags are not objects. A turned box or ellipse has the smallest upright box around it. Splits are the subsets of the
images, or else those of the names of the XML files and folders.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

from opendetr.data.faults import FaultKind
from opendetr.data.formats.annotated import (
    AnnotatedFolder,
    AnnotatedImage,
    Annotation,
    Box,
    corners_box,
    ellipse_box,
    points_box,
    stated_size,
)
from opendetr.data.formats.lookup import Lookup
from opendetr.data.formats.spellings import is_rotation, rotated_box
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS, file_split, path_split
from opendetr.data.records import RAISE_FAULTS, DataFault, FaultError, FaultLog
from opendetr.data.text import pixels, read_xml

_NO_BOXES = {"points", "polyline", "skeleton"}
_CUBOID_CORNERS = ("xtl1", "xbl1", "xtr1", "xbr1", "xtl2", "xbl2", "xtr2", "xbr2")


def parse_cvat(lookup: Lookup, files: Sequence[Path], log: FaultLog = RAISE_FAULTS) -> AnnotatedFolder:
    """Read the XML files of a dataset. Raises DataError that names the fault and its place.

    Args:
        lookup: the files of the dataset.
        files: its XML files.
        log: what to do at an unusable image or object.
    """
    images: dict[Path, AnnotatedImage] = {}
    faults: list[DataFault] = []
    names: list[str] = []
    for path in files:
        with log:
            root = read_xml(path)
            _require_images(root, path)
            labels = (label.findtext("name") or "" for label in root.findall(".//labels/label"))
            names += [name.strip() for name in labels if name.strip()]
            for number, element in enumerate(root.findall("image")):
                with log:
                    _add_image(element, f"image {number}", path, lookup, images, faults, log)
    return AnnotatedFolder.of(lookup.folder, images.values(), faults, names, box_format="xyxy")


def _require_images(root: ET.Element, path: Path) -> None:
    if root.tag != "annotations":
        detail = f"not CVAT: expected <annotations>, found <{root.tag}>"
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)
    if root.find("image") is None:
        kind = "tracks of a video" if root.find("track") is not None else "no <image>"
        detail = f"holds {kind}; export the task as 'CVAT for images', 'COCO' or 'MOT'"
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)


def _add_image(
    element: ET.Element, at: str, path: Path, lookup: Lookup, images: dict[Path, AnnotatedImage],
    faults: list[DataFault], log: FaultLog,
) -> None:  # fmt: skip
    name = element.get("name", "").strip()
    if not name:
        raise FaultError(FaultKind.MISSING_FIELD, path, at, "has no name")
    bases = [path.parent, path.parent / "images", lookup.folder, lookup.folder / "images"]
    own_faults: list[DataFault] = []
    file = lookup.require_image(name, bases, path, at, own_faults)
    size = stated_size(element.get("height"), element.get("width"))
    subset = element.get("subset", "")
    split = SPLIT_SPELLINGS.get(subset.lower()) or file_split(path, lookup.folder)
    split = split or path_split(file.parent.relative_to(lookup.folder).as_posix()) or SINGLE_SPLIT
    image = images.setdefault(file, AnnotatedImage(file, path, at, size=size))
    image.faults += own_faults
    image.splits.add(split)
    for number, shape in enumerate(element):
        with log:
            _add_object(shape, f"{at}, {shape.tag} {number}", split, image)


def _add_object(shape: ET.Element, at: str, split: str, image: AnnotatedImage) -> None:
    reader = _SHAPES.get(shape.tag)
    if reader is None:
        if shape.tag in _NO_BOXES:
            image.faults.append(DataFault(FaultKind.INVALID_ROW, str(image.file), at, f"<{shape.tag}> has no box"))
        return
    label = shape.get("label", "").strip()
    if not label:
        raise FaultError(FaultKind.MISSING_FIELD, image.file, at, "has no label")
    numbers = _Numbers(shape.attrib, image.file, at)
    box, polygon = reader(numbers)
    if shape.tag == "box" and is_rotation(numbers.degrees()):
        image.faults.append(DataFault(FaultKind.ROTATED_BOX, str(image.file), at, f"{numbers.degrees():g} degrees"))
    image.objects.append(Annotation(split, at, label, box, [polygon] if polygon else None))


class _Numbers:
    """The attributes of a shape as numbers; raises FaultError for one that is missing or no number."""

    def __init__(self, attributes: Mapping[str, str], file: Path, at: str) -> None:
        self._attributes = attributes
        self._file = file
        self._at = at

    def __call__(self, *names: str) -> list[float]:
        return [self._number(name, self._text(name)) for name in names]

    def degrees(self) -> float:
        """The angle by which the shape is turned."""
        angle = self._number("rotation", self._attributes.get("rotation") or "0")
        return angle if math.isfinite(angle) else 0.0

    def points(self) -> tuple[list[float], list[float]]:
        """The coordinates of the points, as `x,y;x,y`."""
        pairs = [pair.split(",") for pair in self._text("points").split(";") if pair.strip()]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise FaultError(FaultKind.BAD_VALUE, self._file, self._at, "'points' are not pairs x,y;x,y")
        numbers = [[self._number("points", text) for text in pair] for pair in pairs]
        return [x for x, _ in numbers], [y for _, y in numbers]

    def _text(self, name: str) -> str:
        if name not in self._attributes:
            raise FaultError(FaultKind.MISSING_FIELD, self._file, self._at, f"has no {name}")
        return self._attributes[name]

    def _number(self, name: str, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            detail = f"{name} is {text[:40]!r}; expected a number"
            raise FaultError(FaultKind.BAD_VALUE, self._file, self._at, detail) from None


Shape = tuple[Box, list[float] | None]


def _box(numbers: _Numbers) -> Shape:
    x0, y0, x1, y1 = numbers("xtl", "ytl", "xbr", "ybr")
    box = corners_box(x0, y0, x1, y1)
    return (rotated_box(box, numbers.degrees()) if is_rotation(numbers.degrees()) else box), None


def _polygon(numbers: _Numbers) -> Shape:
    xs, ys = numbers.points()
    points = [pixels(value) for point in zip(xs, ys, strict=True) for value in point]
    return points_box(xs, ys), points if len(xs) > 2 else None


def _ellipse(numbers: _Numbers) -> Shape:
    cx, cy, rx, ry = numbers("cx", "cy", "rx", "ry")
    return ellipse_box(cx, cy, rx, ry, numbers.degrees()), None


def _mask(numbers: _Numbers) -> Shape:
    left, top, width, height = numbers("left", "top", "width", "height")
    return (left, top, width, height), None


def _cuboid(numbers: _Numbers) -> Shape:
    xs, ys = numbers(*_CUBOID_CORNERS), numbers(*(f"y{corner[1:]}" for corner in _CUBOID_CORNERS))
    return points_box(xs, ys), None


_SHAPES = {"box": _box, "polygon": _polygon, "ellipse": _ellipse, "mask": _mask, "cuboid": _cuboid}
