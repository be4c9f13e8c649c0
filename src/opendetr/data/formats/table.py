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

Two more kinds of tables are read:

- without a header, six columns: image, xmin, ymin, xmax, ymax, class;
- Open Images: `ImageID`, `LabelName`, `XMin`, `XMax`, `YMin`, `YMax` in fractions of the image. The names of images
  have no suffix. Objects with `IsGroupOf` are crowd regions. Classes get the names of a table `/m/...,name` in the
  folder.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from opendetr.data.faults import FaultKind
from opendetr.data.formats.annotated import AnnotatedFolder, AnnotatedImage, Annotation, corners_box
from opendetr.data.formats.lookup import Lookup, respelled
from opendetr.data.formats.spellings import (
    ANGLE_NAMES,
    CONFIDENCE_NAMES,
    CORNER_NAMES,
    SIDE_NAMES,
    number,
    plain,
)
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS, usual_split
from opendetr.data.listing import is_image_name
from opendetr.data.records import RAISE_FAULTS, BoxFormat, DataFault, FaultError, FaultLog
from opendetr.data.text import read_text

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
_OPEN_IMAGES_HEADERS = frozenset({"imageid", "labelname", "xmin", "xmax", "ymin", "ymax"})
_OPEN_IMAGES_FLAGS = frozenset({"isgroupof", "isoccluded", "istruncated", "isdepiction", "isinside"})
_LARGEST_FRACTION = 2.0  # a larger value must be in pixels
_NUM_WITHOUT_HEADER = 6
_CLASS_CODE = re.compile(r"/[mgt]/\w+")  # Open Images' code of a class
_EMPTY_CELLS = frozenset({"", "nan", "none", "null"})


class _Columns(NamedTuple):
    """Column numbers of a table.

    The columns `box` are xmin, ymin, xmax, ymax if `corners` is True, otherwise x, y, width, height. They are fractions
    of the image if `fractions` is True. `group` is the column of Open Images that marks crowd regions.
    `angle` and `confidence` are columns that tell how a box is to be understood.
    """

    image: int
    label: int
    split: int | None
    box: tuple[int, int, int, int]
    corners: bool
    fractions: bool = False
    group: int | None = None
    angle: int | None = None
    confidence: int | None = None


_WITHOUT_HEADER = _Columns(image=0, label=5, split=None, box=(1, 2, 3, 4), corners=True)


def find_tables(folder: Path) -> dict[str, Path]:
    """Split name -> table, for the tables in a folder whose header names the required columns."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES and is_table(path)]
    if len(paths) == 1 and usual_split(paths[0].stem) not in SPLIT_SPELLINGS.values():
        return {SINGLE_SPLIT: paths[0]}
    names = [usual_split(path.stem) for path in paths]
    return {name if names.count(name) == 1 else path.stem: path for name, path in zip(names, paths, strict=True)}


def is_table(path: Path) -> bool:
    """Whether a file is a table of boxes, with or without a header."""
    try:
        require_columns(path)
    except FaultError:
        return False
    return True


def require_columns(path: Path) -> None:
    """Raise FaultError that names the missing columns unless a file is a table of boxes."""
    first = next(_rows(path), (0, []))[1]
    if not _is_row(first):
        _columns(first, path)


def parse_tables(lookup: Lookup, files: Iterable[tuple[str, Path]], log: FaultLog = RAISE_FAULTS) -> AnnotatedFolder:
    """Read tables. Raises DataError that names the fault and its place.

    Args:
        lookup: the files of the dataset.
        files: the tables, each with its split.
        log: raises or collects the faults of unusable rows.
    """
    images: dict[Path, AnnotatedImage] = {}
    faults: list[DataFault] = []
    box_format: BoxFormat = "xywh"
    for split, path in files:
        with log:
            columns = _parse_table(path, split, lookup, images, faults, log)
            box_format = "xyxy" if columns.corners else "xywh"
    labels = {obj.label for image in images.values() for obj in image.objects}
    if any(map(_CLASS_CODE.fullmatch, labels)):
        names = _names_of_codes(lookup)
        for image in images.values():
            image.objects = [obj._replace(label=names.get(obj.label, obj.label)) for obj in image.objects]
    return AnnotatedFolder.of(lookup.folder, images.values(), faults, box_format=box_format)


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


def _is_row(cells: Sequence[str]) -> bool:
    """Whether a first row is not a header: an image, four numbers or nothing, and a class or nothing."""
    if len(cells) != _NUM_WITHOUT_HEADER or not is_image_name(cells[0].strip()):
        return False
    texts = [cell.strip() for cell in cells[1:]]
    return not any(texts) or (bool(texts[-1]) and all(map(_is_number, texts[:-1])))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
    is_open_images = set(names) >= _OPEN_IMAGES_HEADERS and bool(_OPEN_IMAGES_FLAGS & set(names))
    group = first(["isgroupof"]) if is_open_images else None
    return _Columns(
        image,
        label,
        first(_SPLIT_HEADERS),
        box,
        corners,
        fractions=is_open_images,
        group=group,
        angle=first(ANGLE_NAMES),
        confidence=first(CONFIDENCE_NAMES),
    )


def _parse_table(
    path: Path, split: str, lookup: Lookup, images: dict[Path, AnnotatedImage], faults: list[DataFault], log: FaultLog
) -> _Columns:
    """Add the rows of a table to `images`. Returns its columns."""
    rows = _rows(path)
    first_line, header = next(rows, (0, []))
    columns = _columns(header, path) if not _is_row(header) else _WITHOUT_HEADER
    if columns is _WITHOUT_HEADER:
        rows = itertools.chain([(first_line, header)], rows)
    folder = lookup.folder
    bases = list(dict.fromkeys((path.parent, folder, folder / "images", folder / split, folder / "images" / split)))
    paths: dict[str, Path] = {}
    boxes: list[Annotation] = []
    for line, row in rows:
        cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
        name, at = cells[columns.image], f"line {line}"
        with log:
            if not name:
                faults.append(DataFault(FaultKind.INVALID_ROW, str(path), at, "names no image"))
                continue
            found: list[DataFault] = []
            if name not in paths:
                paths[name] = _image_path(name, bases, lookup, path, at, found)
            image = images.setdefault(paths[name], AnnotatedImage(paths[name], path, at))
            image.faults += found
            cell = cells[columns.split] if columns.split is not None else ""
            row_split = SPLIT_SPELLINGS.get(cell.lower(), cell) or split
            image.splits.add(row_split)
            box = _parse_box(cells, columns, row_split, at)
            if isinstance(box, Annotation):
                _require_fractions(box, path)
                image.objects.append(box)
                boxes.append(box)
                faults += _doubts(cells, header, columns, path, at, faults)
            elif box:
                image.faults.append(DataFault(FaultKind.INVALID_ROW, str(path), at, box))
    if columns is _WITHOUT_HEADER:
        _require_corners(boxes, path)
    return columns


def _doubts(
    cells: Sequence[str], header: Sequence[str], columns: _Columns, path: Path, at: str, known: Sequence[DataFault]
) -> Iterator[DataFault]:
    """Faults of a row whose box is rotated by an unknown angle, or that has a confidence below 1."""
    angle = 0.0 if columns.angle is None else number(cells[columns.angle])
    if angle and columns.angle is not None and not any(fault.kind is FaultKind.UNKNOWN_ROTATION for fault in known):
        detail = f"the column '{header[columns.angle]}' has {angle:g}, perhaps in degrees or radians"
        yield DataFault(FaultKind.UNKNOWN_ROTATION, str(path), at, detail)
    confidence = None if columns.confidence is None else number(cells[columns.confidence])
    if confidence is not None and confidence < 1:
        yield DataFault(FaultKind.CONFIDENCE, str(path), at, f"{confidence:g}")


def _require_fractions(box: Annotation, path: Path) -> None:
    if box.fractions and any(abs(value) > _LARGEST_FRACTION for value in box.box):
        detail = (
            f"has {max(box.box, key=abs):g}, but the columns are those of Open Images, in fractions of the image; "
            "rename ImageID to image if the box is in pixels"
        )
        raise FaultError(FaultKind.BAD_VALUE, path, box.at, detail)


def _require_corners(boxes: Sequence[Annotation], path: Path) -> None:
    """Raise FaultError if most boxes of a table without a header are not corners."""
    inverted = [box for box in boxes if box.box[2] <= 0 or box.box[3] <= 0]
    if 2 * len(inverted) > len(boxes):
        detail = (
            "without a header, the columns are image, xmin, ymin, xmax, ymax, class, but most rows are no such "
            "corners; write a header"
        )
        raise FaultError(FaultKind.WRONG_STRUCTURE, path, inverted[0].at, detail)


def _names_of_codes(lookup: Lookup) -> dict[str, str]:
    """Code of a class -> its name, from the tables of Open Images with a code and a name in each row."""
    names: dict[str, str] = {}
    for path in lookup.files(".csv"):
        try:
            rows = _rows(path)
            first = next(rows, (0, []))[1]
            if len(first) == 2 and (_CLASS_CODE.fullmatch(first[0]) or first[0].lower() == "labelname"):
                pairs = itertools.chain([first], (row for _, row in rows))
                names |= {row[0].strip(): row[1].strip() for row in pairs if len(row) == 2 and row[1].strip()}
        except FaultError:
            continue
    return names


def _image_path(
    name: str, bases: Sequence[Path], lookup: Lookup, table: Path, at: str, faults: list[DataFault]
) -> Path:
    found = lookup.image(name, bases, table, at)
    if found is None:
        detail = f"its image {name[:200]!r} is missing; add it, or remove it from the table"
        raise FaultError(FaultKind.MISSING_IMAGE, table, at, detail)
    if found.respelled:
        faults.append(respelled(name, found.path, table, at))
    return found.path


def _parse_box(cells: Sequence[str], columns: _Columns, split: str, at: str) -> Annotation | str | None:
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
    box = (x, y, x2_or_width, y2_or_height)
    if columns.fractions:  # not rounded like pixels
        crowd = columns.group is not None and cells[columns.group] == "1"
        sides = (x2_or_width - x, y2_or_height - y)
        return Annotation(split, at, label, (x, y, *sides), crowd=crowd, fractions=True)
    return Annotation(split, at, label, corners_box(*box) if columns.corners else box)
