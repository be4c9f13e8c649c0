"""Write a copy of a dataset without the faults that a check found and that can be fixed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path

from opendetr.data.faults import FaultKind
from opendetr.data.formats.recognise import Format
from opendetr.data.records import DetectionData, ImageRecord, ObjectRecord
from opendetr.data.tools.check import DataReport, Progress, repeated_boxes, train_split
from opendetr.data.tools.convert import WRITTEN_FORMATS, write_data

_UNUSABLE = (
    FaultKind.EMPTY_FILE,
    FaultKind.UNREADABLE_IMAGE,
    FaultKind.OVERSIZED_IMAGE,
    FaultKind.SIZE_MISMATCH,
    FaultKind.UNREADABLE_MAP,
    FaultKind.MASK_SIZE,
)
_UNUSABLE_OBJECTS = (FaultKind.INVALID_OUTLINE, FaultKind.EMPTY_MASK, FaultKind.MASK_SIZE, FaultKind.MISSING_SEGMENT)


def write_fixed(report: DataReport, folder: str | Path, progress: Progress | None = None) -> dict[str, DetectionData]:
    """Write the splits that `fixed` returns, completely or not at all.

    The copy has the format of the dataset; tables and videos are written as COCO. Returns the splits that were
    written. Raises DataError when no image is left, or when `folder` is not empty.
    """
    splits = fixed(report)
    to = report.format if report.format in WRITTEN_FORMATS else Format.COCO
    write_data(splits, folder, to, progress=progress)
    return splits


def fixed(report: DataReport) -> dict[str, DetectionData]:
    """The splits of a dataset without the faults that can be fixed.

    Unusable images and objects are removed, and so are repeated boxes and training images that an evaluation split
    contains as well. Boxes are clipped to their images. The report must be of a check that decoded the images.
    """
    unusable = {Path(fault.file) for kind in _UNUSABLE for fault in report.faults.get(kind, ()) if not fault.at}
    objects = {(fault.file, fault.at) for kind in _UNUSABLE_OBJECTS for fault in report.faults.get(kind, ())}
    train = train_split(report.splits)
    numbers = itertools.count(1) if FaultKind.REPEATED_ID in report.faults else None
    splits = {}
    for name, data in report.splits.items():
        removed = unusable | report.leaks if name == train else unusable
        kept = (image for image in data.images if not {image.path, image.panoptic_map} & removed)
        images = [_fixed(image, objects, numbers) for image in kept]
        if images:
            splits[name] = data.subset(images, name)
    return splits


def _fixed(image: ImageRecord, unusable: Set[tuple[str, str]], numbers: Iterator[int] | None) -> ImageRecord:
    """The image with its usable objects, their boxes clipped to the image.

    Args:
        image: the image as read.
        unusable: file and position of the objects to remove.
        numbers: new ids for the objects; None keeps their ids.
    """
    files = (image.source or str(image.path), str(image.panoptic_map))
    pairs = repeated_boxes(image)
    repeated = {id(obj) for earlier, obj in pairs if earlier.category_id == obj.category_id}
    usable = (obj for obj in image.objects if not any((file, obj.position) in unusable for file in files))
    objects = [_clipped(obj, image) for obj in usable if id(obj) not in repeated]
    if numbers is not None:
        objects = [replace(obj, id=next(numbers)) for obj in objects]
    return replace(image, objects=tuple(objects))


def _clipped(obj: ObjectRecord, image: ImageRecord) -> ObjectRecord:
    box = obj.clipped_box(image.height, image.width)
    if box == obj.box:
        return obj
    return replace(obj, box=box, area=min(obj.area, box[2] * box[3]))
