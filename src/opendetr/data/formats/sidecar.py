"""The file `opendetr.json` next to the annotations: it stores what their format cannot store.

YOLO and Pascal VOC have no fields for ids, crowd regions and areas, and YOLO does not store every box exactly. When a
dataset is written in these formats, `opendetr.json` stores the rest, so that nothing is lost. The readers of these
formats use it; other programs ignore it. The entry of an image contains a digest of the rows of its annotation file. If
the rows have been changed since, the entry is not applied to them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.data.faults import FaultKind
from opendetr.data.paths import is_file
from opendetr.data.records import DataFault, FaultError, ImageRecord, ObjectRecord
from opendetr.data.text import read_text

FILE_NAME = "opendetr.json"
_VERSION = 1
_MAX_BYTES = 4 * 2**30
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class ObjectExtra:
    """The id of an object, and the values that its row does not give; None where the row gives them.

    The fields are those of `ObjectRecord`.
    """

    id: int
    category_id: int | None = None
    box: Box | None = None
    area: float | None = None
    difficult: bool | None = None
    segmentation: Any = None


@dataclass(frozen=True, kw_only=True)
class ExtraWithoutRow:
    """An object without a row: a crowd region, or an object whose row would be invalid.

    Crowd regions have no rows because other programs would use them as objects. The fields are those of `ObjectRecord`.
    If the area is None, it is that of the box.
    """

    id: int
    category_id: int
    box: Box
    area: float | None = None
    crowd: bool = False
    difficult: bool = False
    segmentation: Any = None

    def record(self) -> ObjectRecord:
        """The original object."""
        return ObjectRecord(**vars(self) | {"area": self.area or math.prod(self.box[2:])})


@dataclass(frozen=True, kw_only=True)
class ImageExtra:
    """The entry of one annotation file.

    Attributes:
        id: the id of the image.
        image: the name of the image file.
        rows: the digest of the rows of the annotation file when it was written, see `digest`.
        size: height and width in pixels, if they differ from those of the image file.
        objects: one for each row.
        without_row: objects without a row.
    """

    id: int
    image: str
    rows: str
    size: tuple[int, int] | None = None
    objects: tuple[ObjectExtra, ...] = ()
    without_row: tuple[ExtraWithoutRow, ...] = ()

    @property
    def all_objects(self) -> tuple[ObjectExtra | ExtraWithoutRow, ...]:
        """Objects with and without a row."""
        return (*self.objects, *self.without_row)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """The content of an `opendetr.json`.

    Attributes:
        categories: the original classes.
        names: the names of the classes in the annotation files, in the same order.
        images: annotation file, relative to the folder and with forward slashes -> its entry.
    """

    categories: Categories | None = None
    names: tuple[str, ...] = ()
    images: Mapping[str, ImageExtra] = field(default_factory=dict)

    @property
    def next_image_id(self) -> int:
        """One more than the largest id of an image."""
        return max((image.id for image in self.images.values()), default=0) + 1

    @property
    def next_object_id(self) -> int:
        """One more than the largest id of an object."""
        return max((obj.id for image in self.images.values() for obj in image.all_objects), default=0) + 1

    def categories_with(self, names: Sequence[str]) -> Categories:
        """The original classes, followed by classes of these names under new ids."""
        known = self.categories or Categories.from_names([])
        first = max(known.ids, default=0) + 1
        added = Categories((*known.names, *names), (*known.ids, *range(first, first + len(names))))
        count = len(known)
        return replace(
            added,
            isthing=known.isthing + added.isthing[count:],
            used=known.used + added.used[count:],
            colours=known.colours + added.colours[count:],
        )

    def of(self, key: str, image: Path) -> ImageExtra | None:
        """The entry of the annotation file `key`; None if there is none, or if it is of another image."""
        extra = self.images.get(key)
        return extra if extra and extra.image == image.name else None

    def restored(self, key: str, image: ImageRecord, rows: Sequence[str]) -> ImageRecord:
        """The image with the values that its annotation file does not store.

        Args:
            key: its annotation file, as in `images`.
            image: the image as its annotation file gives it, with an object for each row.
            rows: the rows in a normalised form, in which spaces between fields do not matter.

        Returns `image` itself if it has no entry. If the rows have changed, only the id of the image and its objects
        without a row are restored, and the image gets a fault.
        """
        extra = self.of(key, image.path)
        if extra is None:
            return image
        objects, faults = list(image.objects), image.faults
        if digest(rows) == extra.rows and len(objects) == len(extra.objects):
            objects = [_restored(obj, more) for obj, more in zip(objects, extra.objects, strict=True)]
        else:
            faults = (*faults, DataFault(FaultKind.STALE_EXTRA, image.source))
        objects += [obj.record() for obj in extra.without_row]
        objects.sort(key=lambda obj: obj.id)
        return replace(image, id=extra.id, objects=tuple(objects), faults=faults)


def digest(rows: Iterable[str]) -> str:
    """A hash of the rows of one annotation file."""
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def image_extra(
    image: ImageRecord, name: str, written: Mapping[int, tuple[ObjectRecord, str]], size: tuple[int, int]
) -> ImageExtra:
    """The entry of an image.

    Args:
        image: the image with all its values.
        name: the name of the image file in the new folder.
        written: index in `image.objects` -> the object as its row gives it, and the row in the form that
            `Extras.restored` receives. Objects that are not listed have no row.
        size: height and width in pixels, as the reader of the annotation file gets them.
    """
    return ImageExtra(
        id=image.id,
        image=name,
        rows=digest(row for _, row in written.values()),
        size=None if size == (image.height, image.width) else (image.height, image.width),
        objects=tuple(_difference(image.objects[index], plain) for index, (plain, _) in written.items()),
        without_row=tuple(_extra_without_row(obj) for index, obj in enumerate(image.objects) if index not in written),
    )


def write_extras(folder: Path, extras: Extras) -> None:
    """Write `opendetr.json` into a dataset folder."""
    content = {
        "opendetr": _VERSION,
        "categories": extras.categories.to_dict() if extras.categories else None,
        "names": extras.names,
        "images": {key: _image_row(image) for key, image in extras.images.items()},
    }
    (folder / FILE_NAME).write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def read_extras(folder: Path) -> Extras:
    """Read the `opendetr.json` of a dataset folder. Empty if there is none. Raises FaultError for invalid content."""
    path = folder / FILE_NAME
    if not is_file(path):
        return Extras()
    from pydantic import TypeAdapter, ValidationError

    text = read_text(path, max_bytes=_MAX_BYTES)
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("opendetr") != _VERSION:
            raise ValueError(f"the key 'opendetr' is not {_VERSION}, the version that OpenDETR reads")
        categories = TypeAdapter(Categories).validate_python(content.get("categories"))
        names = tuple(TypeAdapter(list[str]).validate_python(content.get("names")))
        images = TypeAdapter(dict[str, ImageExtra]).validate_python(content.get("images"))
        extras = Extras(categories=categories, names=names, images=images)
        _check(extras)
    except ValidationError as error:
        fault = error.errors()[0]
        raise _broken(path, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise _broken(path, str(error)) from None
    return extras


def _check(extras: Extras) -> None:
    """Raise ValueError if the parts contradict each other."""
    known: set[int | None] = {None, *(extras.categories.ids if extras.categories else ())}
    if len(extras.names) != len(known) - 1:
        raise ValueError(f"{len(known) - 1} categories, but {len(extras.names)} names")
    for key, image in extras.images.items():
        if image.size and min(image.size) < 1:
            raise ValueError(f"images.{key}: the size is {image.size}")
        for obj in image.all_objects:
            if obj.category_id not in known:
                raise ValueError(f"images.{key}: the category {obj.category_id} is not listed")
            if obj.area is not None and not 0 < obj.area < math.inf:
                raise ValueError(f"images.{key}: the area of an object is {obj.area}")


def _broken(path: Path, reason: str) -> FaultError:
    return FaultError(FaultKind.BROKEN_FILE, path, "", f"{reason}; convert the dataset again, or delete this file")


def _restored(plain: ObjectRecord, extra: ObjectExtra) -> ObjectRecord:
    return replace(plain, **_stated(extra))


def _difference(obj: ObjectRecord, plain: ObjectRecord) -> ObjectExtra:
    names = ("category_id", "box", "area", "difficult", "segmentation")
    changed = {name: getattr(obj, name) for name in names if getattr(obj, name) != getattr(plain, name)}
    return ObjectExtra(id=obj.id, **changed)


def _extra_without_row(obj: ObjectRecord) -> ExtraWithoutRow:
    values = {attribute.name: getattr(obj, attribute.name) for attribute in fields(ExtraWithoutRow)}
    return ExtraWithoutRow(**values | {"area": obj.area if 0 < obj.area < math.inf else None})


def _stated(extra: ObjectExtra | ExtraWithoutRow) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in vars(extra).items() if value is not None}


def _image_row(image: ImageExtra) -> dict[str, Any]:
    row = {"id": image.id, "image": image.image, "rows": image.rows, "size": image.size}
    lists = {"objects": [*map(_stated, image.objects)], "without_row": [*map(_stated, image.without_row)]}
    return row | {name: values for name, values in lists.items() if values}
