"""What a data set says, as plain records in the pixels of the original images; every format is read into these.

Evaluation reads these records; training targets are made from them (`data.transforms.LabelledImage`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from opendetr.categories import Categories

# Files that round to two decimals let a box end this far outside the image; that is no finding.
_ROUNDING = 0.01


class DataError(ValueError):
    """A data set that cannot be used: one line that says what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a name that it quotes may hold anything


class Kind(StrEnum):
    """What can be found, beside plain objects, while a data set is read."""

    EMPTY_FILE = "empty_file"
    INVALID_BOX = "invalid_box"
    NO_AREA = "no_area"
    OUT_OF_IMAGE = "out_of_image"
    CROWD = "crowd"
    NO_OBJECTS = "no_objects"
    IN_TRAINING = "in_training"


# How a finding is worded: what is counted, and the rest.
_WORDS = {
    Kind.EMPTY_FILE: ("image file", "of zero bytes, skipped"),
    Kind.INVALID_BOX: ("box", "with NaN, negative or inverted sides, skipped"),
    Kind.NO_AREA: ("box", "without area inside the image, skipped"),
    Kind.OUT_OF_IMAGE: ("box", "reaching out of the image, clamped for training"),
    Kind.CROWD: ("crowd region", "scored as such, not trained on"),
    Kind.NO_OBJECTS: ("image", "without objects, kept"),
    Kind.IN_TRAINING: ("image", "also in the training split"),
}
# What `strict` refuses: faults of the data. The other kinds are ordinary cases.
_FAULTS = frozenset({Kind.EMPTY_FILE, Kind.INVALID_BOX})
_UNUSABLE = frozenset({Kind.INVALID_BOX, Kind.NO_AREA})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that was counted while reading.

    Attributes:
        kind: what was found, and what was done with it.
        count: how often.
        first: where the first one is: the file, and the annotation in it.
    """

    kind: Kind
    count: int
    first: str

    def __str__(self) -> str:
        noun, rest = _WORDS[self.kind]
        return f"{_counted(self.count, noun)} {rest} (first: {self.first})"


class Remark(NamedTuple):
    """One thing that was noticed while reading: what, and where (file and annotation)."""

    kind: Kind
    place: str


def count_findings(remarks: Iterable[Remark]) -> tuple[Finding, ...]:
    """Remarks counted by kind, in the order of `Kind`, each kind with its first place."""
    places: dict[Kind, list[str]] = {}
    for kind, place in remarks:
        places.setdefault(kind, []).append(place)
    return tuple(Finding(kind=kind, count=len(places[kind]), first=places[kind][0]) for kind in Kind if kind in places)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRecord:
    """One annotated object.

    Attributes:
        id: the annotation's id in the data set.
        category_id: the data set's own id of its class.
        box: x, y, width, height in pixels of the original image, as annotated (it may reach out of the image).
        area: in pixels, of the segmentation where the data set gives it, else of the box.
        crowd: True for a region of many objects: neither trained on nor counted as missed.
        segmentation: COCO polygons or run lengths as found, or None.
    """

    id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    segmentation: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a data set.

    Attributes:
        id: the image's id in the data set.
        path: the file.
        height: in pixels, in the frame that the boxes are in (see `data.images.read_record`).
        width: likewise.
        objects: what is annotated in it.
        remarks: what was noticed while reading it.
    """

    id: int
    path: Path
    height: int
    width: int
    objects: tuple[ObjectRecord, ...] = ()
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """One split of a detection data set.

    Attributes:
        categories: the classes, the same for all splits of a data set.
        images: the images, in the order of their ids.
        split: the name under which the data set holds this split ("train", "trainval", ...).
        folder: the data set's folder; file names are told relative to it.
        findings: what was counted or skipped while reading.
    """

    categories: Categories
    images: tuple[ImageRecord, ...]
    split: str
    folder: Path
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_objects(self) -> int:
        """Objects in all images, crowd regions included."""
        return sum(len(image.objects) for image in self.images)

    def file_name(self, image: ImageRecord) -> str:
        """The image's path relative to the folder, with forward slashes; the whole path if it lies elsewhere."""
        inside = image.path.is_relative_to(self.folder)
        return (image.path.relative_to(self.folder) if inside else image.path).as_posix()

    def subset(self, chosen: Sequence[ImageRecord], split: str) -> DetectionData:
        """The `chosen` images alone, with their findings, under the name `split`."""
        remarks = (remark for image in chosen for remark in image.remarks)
        return replace(self, images=tuple(chosen), split=split, findings=count_findings(remarks))

    def require_no_faults(self) -> None:
        """Raise DataError for the first finding that is a fault of the data; strict reading calls this."""
        for finding in self.findings:
            if finding.kind in _FAULTS:
                raise DataError(f"strict reading refuses {finding}; mend the data, or read it without strict")

    def to_coco(self) -> dict[str, Any]:
        """The COCO ground truth, with the category and image ids of the data set.

        Annotations are numbered anew from 1: COCO's scoring takes an annotation with id 0 for unmatched.
        """
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            for thing in image.objects:
                row = {"id": len(annotations) + 1, "image_id": image.id, "category_id": thing.category_id,
                       "bbox": list(thing.box), "area": thing.area, "iscrowd": int(thing.crowd)}  # fmt: skip
                if thing.segmentation is not None:
                    row["segmentation"] = thing.segmentation
                annotations.append(row)
        images = [
            {"id": image.id, "file_name": self.file_name(image), "height": image.height, "width": image.width}
            for image in self.images
        ]
        rows = zip(
            self.categories.ids, self.categories.names, self.categories.isthing, self.categories.colours, strict=True
        )
        categories = [
            {"id": id_, "name": name, "isthing": int(isthing), "color": list(colour)}
            for id_, name, isthing, colour in rows
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def summary(self) -> str:
        """One line: "205 images, 3,100 objects, 3 classes; 2 boxes without area ... (first: ...)"."""
        counts = {"image": len(self), "object": self.num_objects, "class": len(self.categories)}
        counted = ", ".join(_counted(count, noun) for noun, count in counts.items())
        return "; ".join((counted, *map(str, self.findings)))


def usable_objects(
    objects: Iterable[ObjectRecord], height: int, width: int, place: str
) -> tuple[tuple[ObjectRecord, ...], tuple[Remark, ...]]:
    """The objects that can be found and scored, and remarks on what is skipped and what is out of the ordinary.

    Boxes keep their annotated coordinates, even where they reach out of the image: scoring is done on those.

    Args:
        objects: as annotated in one image.
        height: of the image, in pixels.
        width: likewise.
        place: the image or annotation file, for the remarks.
    """
    kept, remarks = [], []
    for thing in objects:
        kinds = _kinds(thing, height, width)
        remarks += [Remark(kind, f"{place}, annotation {thing.id}") for kind in kinds]
        if not _UNUSABLE & kinds:
            kept.append(thing)
    if not kept:
        remarks.append(Remark(Kind.NO_OBJECTS, place))
    return tuple(kept), tuple(remarks)


def _counted(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def _kinds(thing: ObjectRecord, height: int, width: int) -> set[Kind]:
    x, y, w, h = thing.box
    if not all(map(math.isfinite, thing.box)) or w < 0 or h < 0:
        return {Kind.INVALID_BOX}
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return {Kind.NO_AREA}
    kinds = {Kind.CROWD} if thing.crowd else set()
    if max(-x, -y, x + w - width, y + h - height) > _ROUNDING:
        kinds.add(Kind.OUT_OF_IMAGE)
    return kinds
