"""Read datasets in the COCO detection format: a JSON file and its images."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from opendetr.categories import Categories
from opendetr.data.formats.json_files import read_json
from opendetr.data.formats.spellings import (
    ANGLE_NAMES,
    CONFIDENCE_NAMES,
    Box,
    hull,
    is_rotated_quad,
    is_rotation,
    named_box,
    named_number,
    number,
    numbers,
    outline,
    plain,
    polygons_hull,
    rotated_box,
    whole_number,
)
from opendetr.data.images import ImageFileError
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
from opendetr.data.sizes import AnnotatedSizes, ImageSizes
from opendetr.data.text import pixels

_KEYS = ("images", "annotations", "categories")
_BOX_NUMBERS, _ROTATED_NUMBERS, _QUAD_NUMBERS = 4, 5, 8
_XYXY, _XYWH = 0, 1  # values of `bbox_mode`, as Detectron2 writes it
_ROTATIONS = ("rotation",)
_ANGLES = tuple(name for name in ANGLE_NAMES if name not in _ROTATIONS)


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
        """The value of an integer field, or that in its text. Raises FaultError if it is missing or no integer."""
        value = self._required(key)
        number = value if type(value) is int and abs(value) < 2**63 else whole_number(value)
        if number is None:
            raise self.fault(FaultKind.BAD_VALUE, f"'{key}' is {shortened(value)}; expected a whole number")
        return number

    def text(self, key: str) -> str:
        """The value of a string field. Raises FaultError if it is missing or has another type."""
        value = self._required(key)
        if not isinstance(value, str):
            raise self.fault(FaultKind.BAD_VALUE, f"'{key}' is {shortened(value)}; expected text")
        return value

    def box(self) -> tuple[float, float, float, float]:
        """Its box: x, y, width, height in pixels. Raises FaultError if it is missing or not four numbers."""
        value = self._required("bbox")
        box = named_box(value) if isinstance(value, Mapping) else self._numbered_box(numbers(value))
        if box is None:
            raise self.fault(FaultKind.BAD_VALUE, f"'bbox' is {shortened(value)}; expected four numbers")
        return box

    def _numbered_box(self, values: Sequence[float] | None) -> Box | None:
        """The box of four numbers, or around four corners; None for other numbers."""
        if values is None or len(values) not in (_BOX_NUMBERS, _ROTATED_NUMBERS, _QUAD_NUMBERS):
            return None
        if len(values) == _ROTATED_NUMBERS:
            detail = "'bbox' has five numbers, as a rotated box with an angle; write the axis-aligned box around it"
            raise self.fault(FaultKind.BAD_VALUE, f"{detail} as x, y, width, height")
        if len(values) == _QUAD_NUMBERS:
            return hull(values)
        x, y, third, fourth = values
        mode = self.content.get("bbox_mode", _XYWH)
        if mode not in (_XYXY, _XYWH):
            detail = f"'bbox_mode' is {shortened(mode)}; expected 1 (x, y, width, height) or 0 (two corners) in pixels"
            raise self.fault(FaultKind.BAD_VALUE, detail)
        return (x, y, pixels(third - x), pixels(fourth - y)) if mode == _XYXY else (x, y, third, fourth)

    def _required(self, key: str) -> Any:
        if self.content.get(key) is None:
            raise self.fault(FaultKind.MISSING_FIELD, f"the key '{key}' is missing")
        return self.content[key]


@dataclass(frozen=True)
class CocoFile:
    """A parsed COCO file.

    Attributes:
        path: the JSON file.
        images: the entries of its images. They are unchanged except for ids that are not whole numbers.
        annotations: the entries of its annotations, likewise.
        category_rows: the entries of its classes, likewise; each has a unique integer `id` and a `name`.
        videos: the entries of its videos, unchanged; empty if it has none.
        faults: warnings about lists of entries whose ids are numbered anew.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    category_rows: list[dict[str, Any]]
    videos: list[dict[str, Any]] = field(default_factory=list)
    faults: tuple[DataFault, ...] = ()

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
    faults = _number_ids(content, path)
    _check_categories(content["categories"], path)
    videos = content.get("videos")
    videos = [row for row in videos if isinstance(row, dict)] if isinstance(videos, list) else []
    return CocoFile(path, content["images"], content["annotations"], content["categories"], videos, faults)


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
    faults = list(coco.faults)
    objects = _objects_by_image(coco, set(rows), categories, faults, log, object_extras)
    images = []
    paths: dict[int, Path] = {}
    for image_id, row in rows.items():
        with log:
            path = locate(row) if locate else inside(Path(images_folder), row.text("file_name"), row.path, row.at)
            if path is not None:
                paths[image_id] = path
    sizes = ImageSizes(Path(folder or images_folder))
    sizes.prefetch(list(paths.values()))
    annotated = AnnotatedSizes(
        sizes,
        lambda: ((path, size, objects[id_]) for id_, path in paths.items() if (size := _annotated_size(rows[id_]))),
    )
    for image_id, path in paths.items():
        with log:
            row = rows[image_id]
            record = image_record(row, path, objects[image_id], faults, sizes, annotated)
            if record is not None:
                images.append(finish(record, row) if finish else record)
    sizes.save()
    return DetectionData.from_records(split, Path(folder or images_folder), categories, images, faults)


def _number_ids(content: dict[str, Any], path: Path) -> tuple[DataFault, ...]:
    """Replace ids that are not whole numbers, and the references to them, in place. Returns a warning for each list."""
    faults, renumbered = [], dict[str, dict[str, int]]()
    for key in _KEYS:
        rows = content[key]
        texts = dict.fromkeys(
            text for row in rows if type(row.get("id")) is not int and (text := _id_text(row.get("id"))) is not None
        )
        if texts:
            largest = max((number for row in rows if (number := whole_number(row.get("id"))) is not None), default=0)
            renumbered[key] = {text: number for number, text in enumerate(texts, start=largest + 1)}
            first = next(iter(texts))
            detail = f"{len(texts):,}, such as {shortened(first)}"
            faults.append(DataFault(FaultKind.NEW_ID, str(path), key, detail))
            content[key] = [_renumbered(row, "id", renumbered[key]) for row in rows]
    for name, key in (("image_id", "images"), ("category_id", "categories")):
        if key in renumbered:
            content["annotations"] = [_renumbered(row, name, renumbered[key]) for row in content["annotations"]]
    content["categories"] = [_renumbered(row, "id", {}) for row in content["categories"]]
    return tuple(faults)


def _id_text(value: Any) -> str | None:
    """An id that is not a whole number as text, such as a UUID or {"$oid": ...}; None for other values."""
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    return value if isinstance(value, str) and value.strip() and whole_number(value) is None else None


def _renumbered(row: dict[str, Any], name: str, numbers_of_ids: Mapping[str, int]) -> dict[str, Any]:
    """An entry with a whole number for the id in the field `name`, if that is a known id or contains a number."""
    value = row.get(name)
    if type(value) is int:
        return row
    number = whole_number(value) if isinstance(value, str) else None
    number = numbers_of_ids.get(_id_text(value) or "") if number is None else number
    return row if number is None else {**row, name: number}


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
    names = _FieldNames.of(coco.annotations)
    for index, content in enumerate(coco.annotations):
        row = Row(coco.path, "annotations", index, content)
        with log:
            obj = _object_record(row, extras(row) if extras else {}, names, faults)
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
            if "area" in content and not is_area(number(content["area"])):
                faults.append(
                    DataFault(FaultKind.BAD_AREA, str(coco.path), row.at, f"'area' is {shortened(content['area'])}")
                )
    for of_image in objects.values():
        of_image.sort(key=lambda obj: obj.id)
    return objects


class _FieldNames(NamedTuple):
    """The fields of the annotations of a file that tell what a box means: nearly all files have none."""

    confidence: tuple[str, ...]
    rotates: bool

    @staticmethod
    def of(annotations: Sequence[Mapping[str, Any]]) -> _FieldNames:
        own, nested = set[str](), set[str]()
        for row in annotations:
            own.update(row)
            for part in (row.get("attributes"), row.get("bbox")):
                if isinstance(part, dict):
                    nested.update(part)
        confidence = tuple(name for name in sorted(own) if plain(name) in CONFIDENCE_NAMES)
        return _FieldNames(confidence, not {plain(name) for name in own | nested}.isdisjoint(ANGLE_NAMES))


def _object_record(row: Row, extras: Mapping[str, Any], names: _FieldNames, faults: list[DataFault]) -> ObjectRecord:
    """The record of an annotation. Adds warnings about how its fields are understood."""
    content = row.content
    outline_ = outline(content.get("segmentation"))
    box = _box_of_outline(row, outline_) if _lacks_box(content) else None
    if box is not None:
        faults.append(DataFault(FaultKind.NO_BOX, str(row.path), row.at))
    else:
        box = row.box()
        if len(content["bbox"]) == _QUAD_NUMBERS and is_rotated_quad(numbers(content["bbox"]) or ()):
            faults.append(DataFault(FaultKind.ROTATED_BOX, str(row.path), row.at))
        if names.rotates:
            box = _unrotated(row, box, outline_, faults)
    for name in names.confidence:
        confidence = number(content.get(name))
        if confidence is not None and confidence < 1:
            faults.append(DataFault(FaultKind.CONFIDENCE, str(row.path), row.at, f"{confidence:g}"))
    area = number(content.get("area"))
    return ObjectRecord(
        id=row.integer("id") if content.get("id") is not None else row.index,
        category_id=row.integer("category_id"),
        box=box,
        area=area if area is not None and is_area(area) else box[2] * box[3],
        crowd=content.get("iscrowd") in (1, "1"),
        difficult=content.get("difficult") in (1, "1"),
        segmentation=outline_,
        extras=extras,
    )


def _lacks_box(content: Mapping[str, Any]) -> bool:
    """Whether an annotation has no box, or the empty one that some tools write for an outline."""
    value = content.get("bbox")
    return value is None or value in ([], {}, "") or (isinstance(value, list) and not any(value))


def _box_of_outline(row: Row, outline_: Any) -> Box | None:
    """The box around the outline of an annotation without a box; None if it has no valid outline."""
    if not isinstance(outline_, Mapping):
        return polygons_hull(outline_)
    from opendetr.data.masks import outline_box  # decodes run lengths, which few datasets need here

    return outline_box(outline_)


def _unrotated(row: Row, box: Box, outline_: Any, faults: list[DataFault]) -> Box:
    """The axis-aligned box of an annotation that may be rotated. Adds a warning for each rotated box.

    A rotation is in degrees, as annotation tools write it. The unit of an angle is unknown.
    """
    content = row.content
    parts = (content, content.get("attributes"), content["bbox"])
    fields = [part for part in parts if isinstance(part, Mapping)]
    degrees = next((value for part in fields if (value := named_number(part, _ROTATIONS)) is not None), 0.0)
    around = polygons_hull(outline_)
    if is_rotation(degrees) and (around is None or not _alike(around, box)):
        faults.append(DataFault(FaultKind.ROTATED_BOX, str(row.path), row.at, f"{degrees:g} degrees"))
        return rotated_box(box, degrees)
    angle = next((value for part in fields if (value := named_number(part, _ANGLES)) is not None), 0.0)
    if angle and not any(fault.kind is FaultKind.UNKNOWN_ROTATION for fault in faults):
        detail = f"an angle of {angle:g}, perhaps in degrees or radians"
        faults.append(DataFault(FaultKind.UNKNOWN_ROTATION, str(row.path), row.at, detail))
    return box


def _alike(one: Box, other: Box) -> bool:
    """Whether two boxes differ by at most a pixel or two percent of their sides, as by rounding."""
    limit = max(1.0, 0.02 * max(one[2:]))
    return all(abs(a - b) <= limit for a, b in zip(one, other, strict=True))


def image_record(
    row: Row,
    path: Path,
    objects: list[ObjectRecord],
    faults: list[DataFault],
    sizes: ImageSizes,
    annotated: AnnotatedSizes,
) -> ImageRecord | None:
    """The record of an image. For an unreadable image, adds a fault and returns None."""
    if file_length(path, row.path, row.at) == 0:
        faults.append(DataFault(FaultKind.EMPTY_FILE, str(path)))
        return None
    size, size_faults = _annotated_size(row), tuple[DataFault, ...]()
    if size is not None:
        size, size_faults = annotated.settled(path, size, objects, str(row.path), row.at)
    else:
        try:
            size = sizes.oriented(path)
        except ImageFileError as error:
            faults.append(error.fault)
            return None
        size_faults = (DataFault(FaultKind.NO_SIZE, str(row.path), row.at),)
    height, width = size
    usable, object_faults = usable_objects(objects, height, width, str(path))
    return ImageRecord(
        id=row.integer("id"), path=path, height=height, width=width, objects=usable, faults=size_faults + object_faults
    )


def _annotated_size(row: Row) -> tuple[int, int] | None:
    """Height and width that the entry of an image gives; None if it does not give both."""
    height, width = _length(row.content.get("height")), _length(row.content.get("width"))
    return (height, width) if height and width else None


def _length(value: Any) -> int:
    """A side of an image in whole pixels; 0 if the value is not a valid size."""
    length = number(value)
    return int(length) if length is not None and 0 < length < MAX_SIDE else 0


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
