"""Read the files of the VGG Image Annotator (VIA, versions 1 and 2): a project or its annotations as JSON, or as CSV.

    {"a.jpg62": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect", "x": 4, "y": 5, "width": 26,
                 "height": 39}, "region_attributes": {"class": "cat"}}]}}

    filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes

Rectangles, polygons, circles and ellipses are objects. The class is the attribute `class`, `label`, `category`, `name`,
`type` or `object` of the regions, or else their only attribute. If no region has an attribute, all are of one class,
"object". Splits are those of the names of files and folders.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opendetr.data.faults import FaultKind
from opendetr.data.formats.annotated import (
    AnnotatedFolder,
    AnnotatedImage,
    Annotation,
    Box,
    corners_box,
    ellipse_box,
    points_box,
)
from opendetr.data.formats.json_files import Entry, parse_text, read_json
from opendetr.data.formats.lookup import Lookup
from opendetr.data.formats.splits import SINGLE_SPLIT, file_split, path_split
from opendetr.data.records import RAISE_FAULTS, DataFault, FaultError, FaultLog
from opendetr.data.text import first_line, pixels, read_text

_METADATA = "_via_img_metadata"
_CLASS_KEYS = ("class", "label", "category", "name", "type", "object")
_ONLY_CLASS = "object"
_CSV_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


class _Region(NamedTuple):
    """A region: its place, shape and attributes."""

    at: str
    shape: Any
    attributes: Any


class _Image(NamedTuple):
    """An image as the file gives it."""

    at: str
    name: str
    regions: list[_Region]


def is_via(content: Any) -> bool:
    """Whether the content of a JSON file is VIA's."""
    if not isinstance(content, dict) or not content:
        return False
    if isinstance(content.get(_METADATA), dict):
        return True
    return all(isinstance(entry, dict) and "filename" in entry and "regions" in entry for entry in content.values())


def is_via_table(header: Sequence[str]) -> bool:
    """Whether the header of a CSV file is VIA's."""
    return set(_CSV_COLUMNS) <= {name.strip().lstrip("#") for name in header}


def is_via_file(path: Path) -> bool:
    """Whether a CSV file is VIA's, by its first line."""
    line = first_line(path)
    return is_via_table(line.split(","))


def parse_via(lookup: Lookup, files: Sequence[Path], log: FaultLog = RAISE_FAULTS) -> AnnotatedFolder:
    """Read the files of a dataset. Raises DataError that names the fault and its place.

    Args:
        lookup: the files of the dataset.
        files: its JSON and CSV files.
        log: what to do at an unusable image or region.
    """
    images: dict[Path, AnnotatedImage] = {}
    faults: list[DataFault] = []
    for path in files:
        with log:
            is_table = path.suffix.lower() != ".json"
            entries = list(_of_table(path, log) if is_table else _of_json(path, log))
            attribute = _class_attribute(entries, path)
            for entry in entries:
                with log:
                    _add_image(entry, attribute, path, lookup, images, log)
    return AnnotatedFolder.of(lookup.folder, images.values(), faults, box_format="xywh")


def _of_json(path: Path, log: FaultLog) -> Iterator[_Image]:
    content = read_json(path)
    if not is_via(content):
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", "not VIA: no entries with 'filename' and 'regions'")
    for key, value in content.get(_METADATA, content).items():
        with log:
            at = f"'{key[:100]}'"
            entry = Entry(value, path, at)
            regions = entry.content.get("regions") or []
            if isinstance(regions, dict):  # version 1
                regions = list(regions.values())
            if not isinstance(regions, list):
                raise FaultError(FaultKind.BAD_VALUE, path, at, "'regions' is not a list")
            found = []
            for index, region in enumerate(regions):
                with log:
                    place = f"{at}, region {index}"
                    parts = Entry(region, path, place).content
                    found.append(_Region(place, parts.get("shape_attributes"), parts.get("region_attributes") or {}))
            yield _Image(at, entry.text("filename"), found)


def _of_table(path: Path, log: FaultLog) -> Iterator[_Image]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header = [name.strip().lstrip("#") for name in next(reader, [])]
        if not is_via_table(header):
            raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", f"not VIA: no columns {', '.join(_CSV_COLUMNS)}")
        columns = [header.index(name) for name in _CSV_COLUMNS]
        for cells in reader:
            at = f"line {reader.line_num}"
            with log:
                if len(cells) <= max(columns):
                    if cells:
                        raise FaultError(FaultKind.BAD_VALUE, path, at, f"has {len(cells)} of {len(header)} columns")
                    continue
                name, shape, attributes = (cells[column].strip() for column in columns)
                if not name:
                    raise FaultError(FaultKind.MISSING_FIELD, path, at, "names no image")
                drawn = parse_text(shape, path, at) if shape else {}
                region = _Region(at, drawn, parse_text(attributes, path, at) if attributes else {})
                yield _Image(at, name, [region] if drawn else [])
    except csv.Error as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, f"line {reader.line_num}", f"broken CSV: {error}") from None


def _class_attribute(images: Sequence[_Image], path: Path) -> str | None:
    """The attribute of regions that is their class; None if no region has an attribute."""
    keys = {
        key: None
        for image in images
        for region in image.regions
        if isinstance(region.attributes, dict)
        for key in region.attributes
    }
    by_word = {re.sub(r"[\W_]+", "", key.lower()): key for key in keys}
    usual = next((by_word[word] for word in _CLASS_KEYS if word in by_word), None)
    if usual is None and len(keys) > 1:
        names = ", ".join(keys)[:200]
        detail = f"the regions have the attributes {names}; rename the one that is the class to 'class'"
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)
    return usual or next(iter(keys), None)


def _add_image(
    entry: _Image, attribute: str | None, path: Path, lookup: Lookup, images: dict[Path, AnnotatedImage], log: FaultLog
) -> None:
    bases = [path.parent, path.parent / "images", lookup.folder, lookup.folder / "images"]
    faults: list[DataFault] = []
    file = lookup.require_image(entry.name, bases, path, entry.at, faults)
    split = file_split(path, lookup.folder)
    split = split or path_split(file.parent.relative_to(lookup.folder).as_posix()) or SINGLE_SPLIT
    image = images.setdefault(file, AnnotatedImage(file, path, entry.at))
    image.splits.add(split)
    image.faults += faults
    for region in entry.regions:
        with log:
            shape = Entry(region.shape, path, region.at)
            outlined = _outlined(shape)
            if outlined is None:
                detail = f"a {str(shape.content.get('name'))[:40]} has no box"
                image.faults.append(DataFault(FaultKind.INVALID_ROW, str(path), region.at, detail))
                continue
            box, polygon = outlined
            label = _label(region, attribute)
            if label is None:
                detail = f"has no {attribute!r}, the class"
                image.faults.append(DataFault(FaultKind.INVALID_ROW, str(path), region.at, detail))
                continue
            image.objects.append(Annotation(split, region.at, label, box, [polygon] if polygon else None))


def _outlined(shape: Entry) -> tuple[Box, list[float] | None] | None:
    """The box of a shape, and its polygon; None for a shape without a box."""
    kind = shape.content.get("name")
    if kind == "rect":
        return (shape.number("x"), shape.number("y"), shape.number("width"), shape.number("height")), None
    if kind == "circle":
        cx, cy, radius = shape.number("cx"), shape.number("cy"), shape.number("r")
        return corners_box(cx - radius, cy - radius, cx + radius, cy + radius), None
    if kind == "ellipse":
        cx, cy, rx, ry = (shape.number(key) for key in ("cx", "cy", "rx", "ry"))
        angle = shape.number("theta") if shape.content.get("theta") is not None else 0.0  # in radians
        return ellipse_box(cx, cy, rx, ry, math.degrees(angle) if math.isfinite(angle) else 0.0), None
    if kind != "polygon":
        return None
    xs, ys = shape.numbers("all_points_x"), shape.numbers("all_points_y")
    if not xs or len(xs) != len(ys):
        detail = "'all_points_x' and 'all_points_y' are not equally many numbers"
        raise FaultError(FaultKind.BAD_VALUE, shape.path, shape.at, detail)
    points = [pixels(value) for point in zip(xs, ys, strict=True) for value in point]
    return points_box(xs, ys), points if len(xs) > 2 else None


def _label(region: _Region, attribute: str | None) -> str | None:
    """The class of a region; None if it has none, or several."""
    if attribute is None:
        return _ONLY_CLASS
    value = region.attributes.get(attribute) if isinstance(region.attributes, Mapping) else None
    if isinstance(value, dict):  # check boxes: {"cat": true}
        chosen = [key for key, checked in value.items() if checked]
        value = chosen[0] if len(chosen) == 1 else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).strip() or None
