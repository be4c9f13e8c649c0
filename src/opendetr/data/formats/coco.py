"""Read datasets in the COCO detection format: a JSON file and its images."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from opendetr.categories import Categories
from opendetr.data.formats.json_files import read_json
from opendetr.data.images import ImageFileError, image_size
from opendetr.data.paths import file_length, inside
from opendetr.data.records import (
    MAX_SIDE,
    RAISE_FAULTS,
    DataFault,
    DetectionData,
    FaultError,
    FaultKind,
    FaultLog,
    ImageRecord,
    ObjectRecord,
    usable_objects,
)

_KEYS = ("images", "annotations", "categories")
_BOX_NUMBERS = 4


class NotCocoError(FaultError):
    """A JSON file that is not COCO: an object or a key is missing."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(FaultKind.WRONG_STRUCTURE, path, "", f"not COCO: {detail}")


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a COCO file, and its position: the list `key`, such as "images", and the `index` in it."""

    path: Path
    key: str
    index: int
    content: dict[str, Any]

    @property
    def at(self) -> str:
        """Its position in the file: "images[3]"."""
        id_ = self.content.get("id")
        return f"{self.key}[{self.index}]" + (f" (id {id_})" if self.key == "annotations" and is_integer(id_) else "")

    def fault(self, kind: FaultKind, detail: str) -> FaultError:
        """The error for a fault of this entry."""
        return FaultError(kind, self.path, self.at, detail)

    def integer(self, key: str) -> int:
        """The value of an integer field. Raises FaultError if it is missing or has another type."""
        value = self._required(key)
        if not is_integer(value):
            raise self.fault(FaultKind.BAD_VALUE, f"'{key}' is {shortened(value)}; expected a whole number")
        return int(value)

    def text(self, key: str) -> str:
        """The value of a string field. Raises FaultError if it is missing or has another type."""
        value = self._required(key)
        if not isinstance(value, str):
            raise self.fault(FaultKind.BAD_VALUE, f"'{key}' is {shortened(value)}; expected text")
        return value

    def box(self) -> tuple[float, float, float, float]:
        """Its box: x, y, width, height in pixels. Raises FaultError if it is missing or not four numbers."""
        value = self._required("bbox")
        if not isinstance(value, list) or len(value) != _BOX_NUMBERS or not all(map(_is_number, value)):
            raise self.fault(FaultKind.BAD_VALUE, f"'bbox' is {shortened(value)}; expected four numbers")
        x, y, w, h = map(float, value)
        return x, y, w, h

    def _required(self, key: str) -> Any:
        if self.content.get(key) is None:
            raise self.fault(FaultKind.MISSING_FIELD, f"the key '{key}' is missing")
        return self.content[key]


@dataclass(frozen=True)
class CocoFile:
    """A parsed COCO file.

    Attributes:
        path: the JSON file.
        images: the entries of its images, unchanged.
        annotations: the entries of its annotations, unchanged.
        category_rows: the entries of its classes, unchanged; each has a unique integer `id` and a `name`.
        videos: the entries of its videos, unchanged; empty if it has none.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    category_rows: list[dict[str, Any]]
    videos: list[dict[str, Any]] = field(default_factory=list)

    @property
    def file_names(self) -> list[str]:
        """The file names of the images, as the file gives them; images without one are skipped."""
        return [row["file_name"] for row in self.images if isinstance(row.get("file_name"), str)]


def parse_coco(path: Path) -> CocoFile:
    """Read a JSON file and check that it is COCO. Raises DataError that names the fault and its place."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise NotCocoError(path, f"expected an object with {', '.join(_KEYS)}, got a {type(content).__name__}")
    for key in _KEYS:
        if key not in content:
            raise NotCocoError(path, f"the key '{key}' is missing")
        if not isinstance(content[key], list) or not all(isinstance(row, dict) for row in content[key]):
            raise NotCocoError(path, f"'{key}' is not a list of objects")
    _check_categories(content["categories"], path)
    videos = content.get("videos")
    videos = [row for row in videos if isinstance(row, dict)] if isinstance(videos, list) else []
    return CocoFile(path, content["images"], content["annotations"], content["categories"], videos)


def read_coco(
    annotations: str | Path | CocoFile,
    images_folder: str | Path,
    *,
    split: str = "all",
    folder: str | Path | None = None,
    categories: Categories | None = None,
    log: FaultLog = RAISE_FAULTS,
    object_extras: Callable[[Row], Mapping[str, Any]] | None = None,
    finish: Callable[[ImageRecord, Row], ImageRecord] | None = None,
    locate: Callable[[Row], Path | None] | None = None,
) -> DetectionData:
    """Read one COCO file with its images, in the order of their ids.

    Args:
        annotations: the JSON file, or its parsed content.
        images_folder: the folder of the images.
        split: the name of the split.
        folder: the folder of the dataset; that of the images when omitted.
        categories: the classes of the whole dataset; those of the file when omitted.
        log: what to do at an unusable image or annotation.
        object_extras: the entry of an annotation -> the extras of its object; none by default.
        finish: completes the record of an image by its entry, for formats that build on COCO.
        locate: the entry of an image -> its file; None to skip it. By default the `file_name` in the folder of images.

    The size of an image is the one that the JSON file gives, or else the size of the image file. Raises DataError for
    a file that is not COCO, for annotations of unknown images or categories, for missing images, and for file names
    that lead out of the folder.
    """
    coco = annotations if isinstance(annotations, CocoFile) else parse_coco(Path(annotations))
    categories = categories or Categories.from_coco(coco.category_rows)
    rows = rows_by_id(coco, log)
    faults: list[DataFault] = []
    objects = _objects_by_image(coco, set(rows), categories, faults, log, object_extras)
    images = []
    for image_id, row in rows.items():
        with log:
            path = locate(row) if locate else inside(Path(images_folder), row.text("file_name"), row.path, row.at)
            record = None if path is None else image_record(row, path, objects[image_id], faults)
            if record is not None:
                images.append(finish(record, row) if finish else record)
    return DetectionData.from_records(split, Path(folder or images_folder), categories, images, faults)


def _check_categories(rows: list[dict[str, Any]], path: Path) -> None:
    for index, content in enumerate(rows):
        row = Row(path, "categories", index, content)
        row.integer("id")
        row.text("name")
    try:
        Categories.from_coco(rows)
    except (TypeError, ValueError) as error:
        raise FaultError(FaultKind.BAD_CLASSES, path, "categories", str(error)) from None


def rows_by_id(coco: CocoFile, log: FaultLog) -> dict[int, Row]:
    """Image id -> its entry."""
    rows: dict[int, Row] = {}
    for index, content in enumerate(coco.images):
        with log:
            row = Row(coco.path, "images", index, content)
            image_id = row.integer("id")
            if image_id in rows:
                detail = f"the image id {image_id} is used twice; give every image a unique id"
                raise row.fault(FaultKind.REPEATED_IMAGE_ID, detail)
            rows[image_id] = row
    return rows


def _objects_by_image(
    coco: CocoFile,
    image_ids: Set[int],
    categories: Categories,
    faults: list[DataFault],
    log: FaultLog,
    extras: Callable[[Row], Mapping[str, Any]] | None,
) -> dict[int, list[ObjectRecord]]:
    """Image id -> its objects in the order of their ids; an empty list for an image without objects."""
    objects: dict[int, list[ObjectRecord]] = {image_id: [] for image_id in image_ids}
    known_ids, seen = set(categories.ids), set()
    for index, content in enumerate(coco.annotations):
        row = Row(coco.path, "annotations", index, content)
        with log:
            obj = _object_record(row, extras(row) if extras else {})
            image_id = row.integer("image_id")
            if image_id not in objects:
                raise row.fault(FaultKind.UNKNOWN_IMAGE, f"its image, id {image_id}, is not among the images")
            if obj.category_id not in known_ids:
                raise row.fault(
                    FaultKind.UNKNOWN_CLASS, f"its category, id {obj.category_id}, is not among the categories"
                )
            objects[image_id].append(obj)
            if obj.id in seen:
                faults.append(DataFault(FaultKind.REPEATED_ID, str(coco.path), row.at))
            seen.add(obj.id)
            if "area" in content and not is_area(content["area"]):
                faults.append(
                    DataFault(FaultKind.BAD_AREA, str(coco.path), row.at, f"'area' is {shortened(content['area'])}")
                )
    for of_image in objects.values():
        of_image.sort(key=lambda obj: obj.id)
    return objects


def _object_record(row: Row, extras: Mapping[str, Any]) -> ObjectRecord:
    box = row.box()
    area = row.content.get("area")
    return ObjectRecord(
        id=row.integer("id") if "id" in row.content else row.index,
        category_id=row.integer("category_id"),
        box=box,
        area=float(area) if is_area(area) else box[2] * box[3],
        crowd=row.content.get("iscrowd") == 1,
        difficult=row.content.get("difficult") == 1,
        segmentation=row.content.get("segmentation") or None,
        extras=extras,
    )


def image_record(row: Row, path: Path, objects: list[ObjectRecord], faults: list[DataFault]) -> ImageRecord | None:
    """The record of an image. For an unreadable image, adds a fault and returns None."""
    if file_length(path, row.path, row.at) == 0:
        faults.append(DataFault(FaultKind.EMPTY_FILE, str(path)))
        return None
    height, width = _length(row.content.get("height")), _length(row.content.get("width"))
    size_faults: tuple[DataFault, ...] = ()
    if not (height and width):
        try:
            height, width = image_size(path)
        except ImageFileError as error:
            faults.append(error.fault)
            return None
        size_faults = (DataFault(FaultKind.NO_SIZE, str(row.path), row.at),)
    usable, object_faults = usable_objects(objects, height, width, str(path))
    return ImageRecord(
        id=row.integer("id"), path=path, height=height, width=width, objects=usable, faults=size_faults + object_faults
    )


def _length(value: Any) -> int:
    """A side of an image in whole pixels; 0 if the value is not a valid size."""
    return int(value) if _is_number(value) and 0 < value < MAX_SIDE else 0


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def is_integer(value: Any) -> TypeGuard[int | float]:
    """Whether a value from a file is a whole number."""
    return _is_number(value) and float(value).is_integer()


def is_area(value: Any) -> TypeGuard[int | float]:
    """Whether a value from a file is a valid area: a positive, finite number."""
    return _is_number(value) and 0 < value < math.inf


def shortened(value: Any) -> str:
    """A value from a file, shortened for an error message."""
    return reprlib.repr(value)
