"""Read tables: CSV files with a row for every box, next to the images.

The header names the columns, in any order. Case and punctuation are ignored.

- the image: `image`, `file`, `filename`, `path`, ... ; a path relative to the folder of the table or to its
  subfolder `images`;
- the box in pixels: its corners `xmin, ymin, xmax, ymax` (or `x0, y0, x1, y1`, or `x1, y1, x2, y2`, or `left, top,
  right, bottom`), or a corner and sides `x, y, width, height` (or `x, y, w, h`);
- the class: `label`, `class`, `name`, `category`, ... ;
- optionally the split: `split`, `subset` or `set`. Without it, tables named `train.csv`, `val.csv`, ... are the splits.

A row with an empty box means an image without objects. Fields are separated by commas, semicolons, tabs or vertical
bars. Classes are sorted by name and have ids 1..K. Images have ids from 1 in the order of their names. Objects
have ids from 1 in the order of their images and rows.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from opendetr.categories import Categories
from opendetr.data.faults import FaultKind
from opendetr.data.formats.links import find_place
from opendetr.data.formats.spellings import (
    ANGLE_NAMES,
    CONFIDENCE_NAMES,
    CORNER_NAMES,
    SIDE_NAMES,
    number,
    plain,
)
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS, usual_split
from opendetr.data.images import ImageFileError
from opendetr.data.paths import file_length, is_file
from opendetr.data.records import (
    RAISE_FAULTS,
    BoxFormat,
    DataFault,
    DetectionData,
    FaultError,
    FaultLog,
    ImageRecord,
    ObjectRecord,
    unknown_split,
    usable_objects,
)
from opendetr.data.sizes import ImageSizes
from opendetr.data.text import pixels, read_text

TABLE_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_IMAGE_HEADERS = (
    "image",
    "file",
    "filename",
    "imagepath",
    "imagename",
    "imagefile",
    "filepath",
    "path",
    "img",
    "imageid",
)
_CLASS_HEADERS = (
    "label",
    "class",
    "classname",
    "labelname",
    "category",
    "categoryname",
    "name",
    "classid",
    "categoryid",
)
_SPLIT_HEADERS = ("split", "subset", "set")
_EMPTY_CELLS = frozenset({"", "nan", "none", "null"})


class _Columns(NamedTuple):
    """Column numbers of a table.

    The columns `box` are xmin, ymin, xmax, ymax if `corners` is True, otherwise x, y, width, height.
    """

    image: int
    label: int
    split: int | None
    box: tuple[int, int, int, int]
    corners: bool
    angle: int | None
    confidence: int | None


class _Box(NamedTuple):
    """One box of a table: its split, its line from 1, the class, and x, y, width, height in pixels."""

    split: str
    line: int
    label: str
    box: tuple[float, float, float, float]


@dataclass
class _Image:
    """One image of a table: the table and the line where it occurs first, its boxes, and its splits."""

    path: Path
    table: Path
    line: int
    boxes: list[_Box] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    faults: list[DataFault] = field(default_factory=list)


@dataclass(frozen=True)
class TableFolder:
    """Parsed tables.

    Attributes:
        folder: the dataset.
        categories: the classes of all tables, sorted by name, with ids 1..K.
        splits: the names of the splits.
        images: all images, in the order of their ids.
        faults: the faults of rows without an image name, and those of the tables.
        box_format: the numbers of a box.
    """

    folder: Path
    categories: Categories
    splits: tuple[str, ...]
    images: tuple[_Image, ...]
    faults: tuple[DataFault, ...]
    box_format: BoxFormat


def find_tables(folder: Path) -> dict[str, Path]:
    """Split name -> table, for the tables in a folder whose header names the required columns."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES and _is_table(path)]
    if len(paths) == 1 and usual_split(paths[0].stem) not in SPLIT_SPELLINGS.values():
        return {SINGLE_SPLIT: paths[0]}
    names = [usual_split(path.stem) for path in paths]
    return {name if names.count(name) == 1 else path.stem: path for name, path in zip(names, paths, strict=True)}


def parse_tables(folder: Path, files: Mapping[str, Path], log: FaultLog = RAISE_FAULTS) -> TableFolder:
    """Read tables. Raises DataError that names the fault and its place.

    Args:
        folder: the dataset.
        files: split -> table.
        log: raises or collects the faults of unusable rows.
    """
    images: dict[Path, _Image] = {}
    faults: list[DataFault] = []
    box_format: BoxFormat = "xywh"
    for split, path in files.items():
        with log:
            columns = _parse_table(path, split, folder, images, faults, log)
            box_format = "xyxy" if columns.corners else "xywh"
    ordered = sorted(images.values(), key=lambda image: (image.path.name, image.path.as_posix()))
    names = sorted({box.label for image in ordered for box in image.boxes}, key=_by_number)
    splits = dict.fromkeys(split for image in ordered for split in sorted(image.splits))
    return TableFolder(folder, Categories.from_names(names), tuple(splits), tuple(ordered), tuple(faults), box_format)


def read_table(table: TableFolder, split: str, log: FaultLog = RAISE_FAULTS) -> DetectionData:
    """One split of a table, in the order of the image names. Raises DataError for an unknown split."""
    if split not in table.splits:
        raise unknown_split(table.folder, split, table.splits)
    images, faults = [], list(table.faults)
    sizes = ImageSizes(table.folder)
    sizes.prefetch([image.path for image in table.images if split in image.splits])
    first_object = 1
    for image_id, image in enumerate(table.images, start=1):
        if split in image.splits:
            with log:
                record = _image_record(image, split, image_id, first_object, table.categories, faults, sizes)
                if record is not None:
                    images.append(record)
        first_object += len(image.boxes)
    sizes.save()
    return DetectionData.from_records(
        split, table.folder, table.categories, images, faults, box_format=table.box_format
    )


def _is_table(path: Path) -> bool:
    try:
        _columns(next(_rows(path))[1], path)
    except (FaultError, StopIteration):
        return False
    return True


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row that is not empty, the header first."""
    text = read_text(path)
    header = text.lstrip("\n").partition("\n")[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FaultError(FaultKind.BROKEN_FILE, path, f"line {reader.line_num}", f"broken CSV: {error}") from None
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def _columns(header: Sequence[str], path: Path) -> _Columns:
    """Find the columns in the header. Raises FaultError that names the missing columns."""
    names = [plain(name) for name in header]

    def first(spellings: Sequence[str]) -> int | None:
        return next((names.index(name) for name in spellings if name in names), None)

    image, label = first(_IMAGE_HEADERS), first(_CLASS_HEADERS)
    boxes = [
        (spelling, spelling in CORNER_NAMES) for spelling in (*CORNER_NAMES, *SIDE_NAMES) if set(spelling) <= set(names)
    ]
    required = {"an image": image, "a class": label, "a box": boxes or None}
    missing = [description for description, column in required.items() if column is None]
    if image is None or label is None or not boxes:
        detail = (
            f"no column for {' and '.join(missing)} among {', '.join(header)[:200]}; "
            "name the columns, for example, image, label, xmin, ymin, xmax, ymax"
        )
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, "", detail)
    spelling, corners = boxes[0]
    first_x, first_y, second_x, second_y = map(names.index, spelling)
    box = (first_x, first_y, second_x, second_y)
    return _Columns(image, label, first(_SPLIT_HEADERS), box, corners, first(ANGLE_NAMES), first(CONFIDENCE_NAMES))


def _parse_table(
    path: Path, split: str, folder: Path, images: dict[Path, _Image], faults: list[DataFault], log: FaultLog
) -> _Columns:
    """Add the rows of a table to `images`. Returns its columns."""
    rows = _rows(path)
    header = next(rows, (0, []))[1]
    columns = _columns(header, path)
    bases = list(dict.fromkeys((path.parent, folder, folder / "images", folder / split, folder / "images" / split)))
    paths: dict[str, Path] = {}
    for line, row in rows:
        cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
        name = cells[columns.image]
        with log:
            if not name:
                faults.append(DataFault(FaultKind.INVALID_ROW, str(path), f"line {line}", "names no image"))
                continue
            if name not in paths:
                paths[name] = _image_path(name, bases, folder, path, line)
            image = images.setdefault(paths[name], _Image(paths[name], path, line))
            cell = cells[columns.split] if columns.split is not None else ""
            row_split = SPLIT_SPELLINGS.get(cell.lower(), cell) or split
            image.splits.add(row_split)
            box = _parse_box(cells, columns, row_split, line)
            if isinstance(box, _Box):
                image.boxes.append(box)
                faults += _doubts(cells, header, columns, path, line, faults)
            elif box:
                image.faults.append(DataFault(FaultKind.INVALID_ROW, str(path), f"line {line}", box))
    return columns


def _doubts(
    cells: Sequence[str], header: Sequence[str], columns: _Columns, path: Path, line: int, known: Sequence[DataFault]
) -> Iterator[DataFault]:
    """Faults of a row whose box is rotated by an unknown angle, or that has a confidence below 1."""
    angle = 0.0 if columns.angle is None else number(cells[columns.angle])
    if angle and columns.angle is not None and not any(fault.kind is FaultKind.UNKNOWN_ROTATION for fault in known):
        detail = f"the column '{header[columns.angle]}' has {angle:g}, perhaps in degrees or radians"
        yield DataFault(FaultKind.UNKNOWN_ROTATION, str(path), f"line {line}", detail)
    confidence = None if columns.confidence is None else number(cells[columns.confidence])
    if confidence is not None and confidence < 1:
        yield DataFault(FaultKind.CONFIDENCE, str(path), f"line {line}", f"{confidence:g}")


def _image_path(name: str, bases: Sequence[Path], folder: Path, table: Path, line: int) -> Path:
    place = find_place(name, bases, folder)
    if place is None or not is_file(place.path):
        detail = f"its image {name[:200]!r} is missing; add it, or remove it from the table"
        raise FaultError(FaultKind.MISSING_IMAGE, table, f"line {line}", detail)
    return place.path


def _parse_box(cells: Sequence[str], columns: _Columns, split: str, line: int) -> _Box | str | None:
    """The box of a row; None for an empty box, and an error message for an invalid one."""
    texts = [cells[column] for column in columns.box]
    if all(text.lower() in _EMPTY_CELLS for text in texts):
        return None
    label = cells[columns.label]
    if not label:
        return "has a box, but no class"
    try:
        x, y, x2_or_width, y2_or_height = map(float, texts)
    except ValueError:
        return f"{', '.join(texts)[:80]!r} are not four numbers"
    if columns.corners:
        return _Box(split, line, label, (x, y, pixels(x2_or_width - x), pixels(y2_or_height - y)))
    return _Box(split, line, label, (x, y, x2_or_width, y2_or_height))


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sort key of a class name: numbers first, in numerical order, then names."""
    number = name.isascii() and name.isdigit()
    return not number, int(name[:18]) if number else 0, name


def _image_record(
    image: _Image,
    split: str,
    image_id: int,
    first_object: int,
    categories: Categories,
    faults: list[DataFault],
    sizes: ImageSizes,
) -> ImageRecord | None:
    """The record of an image. For an unreadable image, adds a fault and returns None."""
    source = str(image.table)
    if file_length(image.path, source, f"line {image.line}") == 0:
        faults.append(DataFault(FaultKind.EMPTY_FILE, str(image.path)))
        return None
    try:
        height, width = sizes.oriented(image.path)
    except ImageFileError as error:
        faults.append(error.fault)
        return None
    objects = [
        ObjectRecord(
            id=id_,
            category_id=categories.ids[categories.label_of_name(label)],
            box=box,
            area=math.prod(box[2:]),
            at=f"line {line}",
        )
        for id_, (box_split, line, label, box) in enumerate(image.boxes, start=first_object)
        if box_split == split
    ]
    usable, object_faults = usable_objects(objects, height, width, source, f"line {image.line}")
    return ImageRecord(
        id=image_id,
        path=image.path,
        height=height,
        width=width,
        objects=usable,
        faults=(*image.faults, *object_faults),
        source=source,
    )
