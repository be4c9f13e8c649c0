"""Images whose objects have the names of classes, as tables and most annotation tools write them.

The readers of such formats collect `AnnotatedImage`s. `AnnotatedFolder` gives them ids and makes records of them.
Classes have ids from 1, and images and objects have ids from 1 in the order of the names of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from opendetr.categories import Categories
from opendetr.data.faults import FaultKind
from opendetr.data.images import ImageFileError
from opendetr.data.paths import file_length
from opendetr.data.records import (
    MAX_SIDE,
    RAISE_FAULTS,
    BoxFormat,
    DataFault,
    DetectionData,
    FaultLog,
    ImageRecord,
    ObjectRecord,
    unknown_split,
    usable_objects,
)
from opendetr.data.sizes import AnnotatedSizes, ImageSizes
from opendetr.data.text import pixels

Box = tuple[float, float, float, float]


class Annotation(NamedTuple):
    """One object.

    Attributes:
        split: the split in which it is annotated.
        at: its position in the annotation file.
        label: the name of its class.
        box: x, y, width, height in pixels, or in fractions of the image.
        segmentation: COCO polygons in pixels, or None.
        crowd: whether it is a region of many objects.
        fractions: whether the box is in fractions of the width and the height of the image.
    """

    split: str
    at: str
    label: str
    box: Box
    segmentation: Any = None
    crowd: bool = False
    fractions: bool = False

    def record(self, id_: int, category_id: int, height: int, width: int) -> ObjectRecord:
        """The record of the object in an image of `height` x `width`."""
        box = self.box
        if self.fractions:
            x, y, w, h = box
            box = (pixels(x * width), pixels(y * height), pixels(w * width), pixels(h * height))
        area = sum(map(polygon_area, self.segmentation)) if self.segmentation else 0
        return ObjectRecord(
            id=id_,
            category_id=category_id,
            box=box,
            area=area if 0 < area < math.inf else math.prod(box[2:]),
            crowd=self.crowd,
            segmentation=self.segmentation,
            at=self.at,
        )


@dataclass
class AnnotatedImage:
    """One image: the annotation file and the position where it occurs first, its objects, and its splits.

    `size` is height and width as annotated; None to read them from the image file.
    """

    path: Path
    file: Path
    at: str
    objects: list[Annotation] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    faults: list[DataFault] = field(default_factory=list)
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class AnnotatedFolder:
    """A parsed dataset.

    Attributes:
        folder: the dataset.
        categories: the classes of all splits, with ids 1..K.
        splits: the names of the splits.
        images: all images, in the order of their ids.
        faults: the faults of entries without an image, and those of the annotation files.
        box_format: the numbers of a box in the annotation files.
    """

    folder: Path
    categories: Categories
    splits: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]
    faults: tuple[DataFault, ...]
    box_format: BoxFormat

    @staticmethod
    def of(
        folder: Path,
        images: Iterable[AnnotatedImage],
        faults: Iterable[DataFault],
        names: Sequence[str] = (),
        *,
        box_format: BoxFormat,
    ) -> AnnotatedFolder:
        """The dataset of some images.

        Args:
            folder: the dataset.
            images: the images, in any order.
            faults: the faults of entries without an image.
            names: the classes, in their order, if the annotations list them; others are added, sorted by name.
            box_format: the numbers of a box in the annotation files.
        """
        ordered = tuple(sorted(images, key=lambda image: (image.path.name, image.path.as_posix())))
        used = {obj.label for image in ordered for obj in image.objects}
        names = tuple(dict.fromkeys((*names, *sorted(used - set(names), key=_by_number))))
        splits = dict.fromkeys(split for image in ordered for split in sorted(image.splits))
        return AnnotatedFolder(folder, Categories.from_names(names), tuple(splits), ordered, tuple(faults), box_format)


def read_annotated(data: AnnotatedFolder, split: str, log: FaultLog = RAISE_FAULTS) -> DetectionData:
    """One split of a dataset, in the order of the image names. Raises DataError for an unknown split."""
    if split not in data.splits:
        raise unknown_split(data.folder, split, data.splits)
    images, faults = [], list(data.faults)
    sizes = ImageSizes(data.folder)
    sizes.prefetch([image.path for image in data.images if split in image.splits])
    annotated = AnnotatedSizes(sizes, lambda: _annotated_sizes(data, split))
    first_object = 1
    for image_id, image in enumerate(data.images, start=1):
        if split in image.splits:
            with log:
                record = _image_record(image, split, image_id, first_object, data.categories, faults, sizes, annotated)
                if record is not None:
                    images.append(record)
        first_object += len(image.objects)
    sizes.save()
    return DetectionData.from_records(split, data.folder, data.categories, images, faults, box_format=data.box_format)


def _annotated_sizes(data: AnnotatedFolder, split: str) -> Iterator[tuple[Path, tuple[int, int], list[ObjectRecord]]]:
    """Image file, annotated height and width, and objects of each image that gives its size."""
    for image in data.images:
        if split in image.splits and image.size is not None:
            yield image.path, image.size, [obj.record(0, 0, *image.size) for obj in image.objects if obj.split == split]


def _image_record(
    image: AnnotatedImage,
    split: str,
    image_id: int,
    first_object: int,
    categories: Categories,
    faults: list[DataFault],
    sizes: ImageSizes,
    annotated: AnnotatedSizes,
) -> ImageRecord | None:
    """The record of an image. For an unreadable image, adds a fault and returns None."""
    source = str(image.file)
    if file_length(image.path, source, image.at) == 0:
        faults.append(DataFault(FaultKind.EMPTY_FILE, str(image.path)))
        return None
    size = image.size
    if size is None:
        try:
            size = sizes.oriented(image.path)
        except ImageFileError as error:
            faults.append(error.fault)
            return None
    height, width = size
    objects = [
        obj.record(id_, categories.ids[categories.label_of_name(obj.label)], height, width)
        for id_, obj in enumerate(image.objects, start=first_object)
        if obj.split == split
    ]
    size_faults: tuple[DataFault, ...] = ()
    if image.size is not None:
        (height, width), size_faults = annotated.settled(image.path, image.size, objects, source, image.at)
    usable, object_faults = usable_objects(objects, height, width, source, image.at)
    return ImageRecord(
        id=image_id,
        path=image.path,
        height=height,
        width=width,
        objects=usable,
        faults=(*image.faults, *size_faults, *object_faults),
        source=source,
    )


def corners_box(x0: float, y0: float, x1: float, y1: float) -> Box:
    """The box of two corners, as x, y, width, height."""
    return x0, y0, pixels(x1 - x0), pixels(y1 - y0)


def points_box(xs: Sequence[float], ys: Sequence[float]) -> Box:
    """The smallest box around points, as x, y, width, height; all NaN if a coordinate is not finite."""
    if not all(map(math.isfinite, (*xs, *ys))):
        return (math.nan,) * 4
    return corners_box(min(xs), min(ys), max(xs), max(ys))


def polygon_area(polygon: Sequence[float]) -> float:
    """Area of the polygon x1, y1, x2, y2, ... in pixels (shoelace formula)."""
    points = list(zip(polygon[0::2], polygon[1::2], strict=True))
    following = points[1:] + points[:1]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, following, strict=True))) / 2


def ellipse_box(cx: float, cy: float, rx: float, ry: float, degrees: float = 0) -> Box:
    """The box of an ellipse with these radii, turned by an angle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    half_width, half_height = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    return corners_box(*(pixels(v) for v in (cx - half_width, cy - half_height, cx + half_width, cy + half_height)))


def side(value: Any) -> int:
    """A side of an image in whole pixels, from a number or its text; 0 if the value is not a valid size."""
    try:
        length = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(length) if 0 < length < MAX_SIDE else 0


def stated_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Height and width of an image as an annotation file gives them; None unless both are valid."""
    sides = side(height), side(width)
    return sides if all(sides) else None


def _by_number(name: str) -> tuple[bool, int, str]:
    """Sort key of a class name: numbers first, in numerical order, then names."""
    number = name.isascii() and name.isdigit()
    return not number, int(name[:18]) if number else 0, name
