"""Data sets in COCO's detection format: reading one JSON file, writing any data set as COCO."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from opendetr.categories import Categories
from opendetr.data.images import image_size
from opendetr.data.paths import file_length, inside
from opendetr.data.records import (
    DataError,
    DetectionData,
    ImageRecord,
    Kind,
    ObjectRecord,
    Remark,
    count_findings,
    usable_objects,
)

_KEYS = ("images", "annotations", "categories")
_BOX_NUMBERS = 4


class NotCocoError(DataError):
    """JSON that is something else than COCO's: an object or a key is missing."""


@dataclass(frozen=True)
class CocoFile:
    """A parsed COCO file.

    Attributes:
        path: the JSON file.
        images: its images, as they stand there.
        annotations: its annotations, likewise.
        category_rows: its classes, likewise; every one has a whole `id` of its own and a `name`.
    """

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    category_rows: list[dict[str, Any]]

    @property
    def file_names(self) -> list[str]:
        """The names of the images, as the file gives them. Raises DataError when one has none."""
        return [_text(row, "file_name", f"{self.path}: images[{index}]") for index, row in enumerate(self.images)]


def parse_coco(path: Path) -> CocoFile:
    """Read a JSON file and check that it is COCO's. Raises DataError that says what is wrong, and where."""
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise NotCocoError(f"{path}: not COCO: no object with {', '.join(_KEYS)}, but a {type(content).__name__}")
    for key in _KEYS:
        if key not in content:
            raise NotCocoError(f"{path}: not COCO: the key '{key}' is missing")
        if not isinstance(content[key], list) or not all(isinstance(row, dict) for row in content[key]):
            raise NotCocoError(f"{path}: not COCO: '{key}' is not a list of objects")
    _check_categories(content["categories"], path)
    return CocoFile(path, content["images"], content["annotations"], content["categories"])


def read_coco(
    annotations: str | Path | CocoFile,
    images_folder: str | Path,
    *,
    split: str = "all",
    folder: str | Path | None = None,
    categories: Categories | None = None,
) -> DetectionData:
    """One COCO file with its images, in the order of their ids.

    Args:
        annotations: the JSON file, or one that is parsed already.
        images_folder: where the images lie.
        split: the name to give the data.
        folder: the data set's folder; the images' when omitted.
        categories: the classes of the whole data set; the file's own when omitted.

    Sizes are the file's; where it gives none, the image's. Raises DataError for anything that is no COCO data, for
    annotations of unknown images or categories, for images that are missing, and for names that leave the folder.
    """
    coco = annotations if isinstance(annotations, CocoFile) else parse_coco(Path(annotations))
    categories = categories or Categories.from_coco(coco.category_rows)
    objects = _objects_by_image(coco, categories)
    images, remarks = [], []
    for index, row in enumerate(coco.images):
        place = f"{coco.path}: images[{index}]"
        path = inside(Path(images_folder), _text(row, "file_name", place), place)
        if file_length(path, place) == 0:
            remarks.append(Remark(Kind.EMPTY_FILE, str(path)))
        else:
            images.append(_image_record(row, path, objects[_whole(row, "id", place)], place))
    images.sort(key=lambda image: image.id)
    remarks += [remark for image in images for remark in image.remarks]
    return DetectionData(
        categories=categories,
        images=tuple(images),
        split=split,
        folder=Path(folder or images_folder),
        findings=count_findings(remarks),
    )


def write_coco(splits: Mapping[str, DetectionData], folder: str | Path) -> None:
    """Write splits of a data set as COCO: `annotations/instances_<split>.json`, and copies of the images in `images`.

    What is read back trains and scores the same. Raises DataError when the folder holds something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: not an empty folder; name a new one to write to")
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, data in splits.items():
        for image in data.images:
            copy = inside(folder / "images", data.file_name(image), str(data.folder))
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(image.path, copy)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(data.to_coco()))


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON in line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: broken JSON: byte {error.start} is no text") from None
    except ValueError as error:
        raise DataError(f"{path}: broken JSON: {error}") from None
    except RecursionError:
        raise NotCocoError(f"{path}: not COCO: nested too deeply") from None


def _check_categories(rows: list[dict[str, Any]], path: Path) -> None:
    for index, row in enumerate(rows):
        place = f"{path}: categories[{index}]"
        _whole(row, "id", place)
        _text(row, "name", place)
    try:
        Categories.from_coco(rows)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: categories: {error}") from None


def _objects_by_image(coco: CocoFile, categories: Categories) -> dict[int, list[ObjectRecord]]:
    """Image id -> its objects in the order of their ids; an image without objects has an empty list."""
    objects: dict[int, list[ObjectRecord]] = {}
    for index, row in enumerate(coco.images):
        place = f"{coco.path}: images[{index}]"
        image_id = _whole(row, "id", place)
        if image_id in objects:
            raise DataError(f"{place}: the image id {image_id} stands twice; give every image its own")
        objects[image_id] = []
    known = set(categories.ids)
    for index, row in enumerate(coco.annotations):
        thing = _object_record(row, index, f"{coco.path}: annotations[{index}]")
        place = f"{coco.path}: annotations[{index}] (id {thing.id})"
        image_id = _whole(row, "image_id", place)
        if image_id not in objects:
            raise DataError(f"{place}: its image, id {image_id}, is not among the images")
        if thing.category_id not in known:
            raise DataError(f"{place}: its category, id {thing.category_id}, is not among the categories")
        objects[image_id].append(thing)
    for things in objects.values():
        things.sort(key=lambda thing: thing.id)
    return objects


def _object_record(row: dict[str, Any], index: int, place: str) -> ObjectRecord:
    id_ = _whole(row, "id", place) if "id" in row else index
    category_id = _whole(row, "category_id", place)
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != _BOX_NUMBERS or not all(map(_is_number, box)):
        raise DataError(f"{place}: 'bbox' is {'missing' if box is None else 'not four numbers'}")
    x, y, w, h = map(float, box)
    area = row.get("area")
    if not (_is_number(area) and 0 < area < math.inf):
        area = w * h
    return ObjectRecord(
        id=id_,
        category_id=category_id,
        box=(x, y, w, h),
        area=float(area),
        crowd=row.get("iscrowd") == 1,
        segmentation=row.get("segmentation") or None,
    )


def _image_record(row: dict[str, Any], path: Path, objects: list[ObjectRecord], place: str) -> ImageRecord:
    height, width = _length(row.get("height")), _length(row.get("width"))
    if not (height and width):
        height, width = image_size(path)
    kept, remarks = usable_objects(objects, height, width, str(path))
    return ImageRecord(
        id=_whole(row, "id", place), path=path, height=height, width=width, objects=kept, remarks=remarks
    )


def _length(value: Any) -> int:
    """Whole pixels; 0 where the file does not say."""
    return int(value) if _is_number(value) and 0 < value < math.inf else 0


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _whole(row: dict[str, Any], key: str, place: str) -> int:
    if key not in row:
        raise DataError(f"{place}: the key '{key}' is missing")
    value = row[key]
    if not _is_number(value) or not float(value).is_integer():
        raise DataError(f"{place}: '{key}' is {value!r}; expected a whole number")
    return int(value)


def _text(row: dict[str, Any], key: str, place: str) -> str:
    if key not in row:
        raise DataError(f"{place}: the key '{key}' is missing")
    if not isinstance(row[key], str):
        raise DataError(f"{place}: '{key}' is {row[key]!r}; expected text")
    return row[key]
