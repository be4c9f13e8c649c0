"""What a dataset says, as plain records in the pixels of the original images; every format is read into these.

Evaluation reads these records; training targets are made from them (`data.transforms.LabelledImage`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opendetr.categories import Categories
from opendetr.data.faults import Kind, counted

# Files that round to two decimals let a box end this far outside the image; that is no finding.
_ROUNDING = 0.01
# Sides of an image from here on, in pixels, are none that a file can mean.
MAX_SIDE = 2**31
# What `strict` refuses: faults of the data. The other kinds are ordinary cases.
_FAULTS = frozenset(
    {Kind.EMPTY_FILE, Kind.UNREADABLE_IMAGE, Kind.OVERSIZED_IMAGE, Kind.INVALID_ROW, Kind.UNLISTED_CLASS,
     Kind.PIXEL_ROW, Kind.INVALID_BOX, Kind.INVALID_OUTLINE, Kind.MASK_SIZE, Kind.UNREADABLE_MAP,
     Kind.REPEATED_SEGMENT}
)  # fmt: skip
_UNUSABLE = frozenset({Kind.INVALID_BOX, Kind.NO_AREA})


class DataFault(NamedTuple):
    """One thing that was noticed while reading.

    Attributes:
        kind: what it is.
        file: the annotation file or image.
        at: where in the file: "annotation 7", "line 3"; empty for the whole of it.
        detail: what exactly is the matter, where the kind does not say it all.
    """

    kind: Kind
    file: str
    at: str = ""
    detail: str = ""

    @property
    def place(self) -> str:
        """File and position in one."""
        return f"{self.file}, {self.at}" if self.at else self.file


class DataError(ValueError):
    """A dataset that cannot be used: one line that says what is wrong, where, and what to do.

    Attributes:
        fault: the same as a fault, where the error is about one place in a file.
    """

    fault: DataFault | None = None

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a name that it quotes may hold anything


class FaultError(DataError):
    """A place in a file that training stops at."""

    fault: DataFault

    def __init__(self, kind: Kind, file: str | Path, at: str, detail: str) -> None:
        self.fault = DataFault(kind, str(file), at, " ".join(detail.splitlines()))
        super().__init__(f"{self.fault.place}: {detail}")


class FaultLog:
    """What a reader does at a fault that it cannot go on with; it reads every entry `with log:`.

    Args:
        stops: let the error out, so that reading ends; else note it and go on without the entry.

    Attributes:
        faults: the faults that were noted, in the order in which they were met.
    """

    def __init__(self, *, stops: bool) -> None:
        self.faults: list[DataFault] = []
        self._stops = stops

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if self._stops or not isinstance(error, DataError):
            return False
        self.faults.append(error.fault or DataFault(Kind.NO_DATA, "", detail=str(error)))
        return True


STOP_AT_FAULTS = FaultLog(stops=True)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that was counted while reading.

    Attributes:
        kind: what was found, and what was done with it.
        count: how often.
        first: where the first one is: the file, and the annotation in it.
        faults: all of them.
    """

    kind: Kind
    count: int
    first: str
    faults: tuple[DataFault, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind.counted(self.count)}, {self.kind.consequence} (first: {self.first})"


def count_findings(faults: Iterable[DataFault]) -> tuple[Finding, ...]:
    """Remarks counted by kind, in the order of `Kind`, each kind with its first place."""
    by_kind: dict[Kind, list[DataFault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    return tuple(
        Finding(kind=kind, count=len(found), first=found[0].place, faults=tuple(found))
        for kind in Kind
        if (found := by_kind.get(kind))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRecord:
    """One annotated object.

    Attributes:
        id: the annotation's id in the dataset.
        category_id: the dataset's own id of its class.
        box: x, y, width, height in pixels of the original image, as annotated (it may reach out of the image).
        area: in pixels, of the segmentation where the dataset gives it, else of the box.
        crowd: True for a region of many objects: neither trained on nor counted as missed.
        difficult: VOC's mark of an object that is hard to see; it is an object like any other.
        segmentation: COCO polygons or run lengths as found, or None.
        segment: its number in the panoptic map of its image, or None.
        at: where the annotation file has it, such as "line 3", when its id does not tell.
    """

    id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool = False
    difficult: bool = False
    segmentation: Any = None
    segment: int | None = None
    at: str = field(default="", compare=False)

    @property
    def position(self) -> str:
        """Where its file has it: "line 3", or "annotation 7"."""
        return self.at or f"annotation {self.id}"

    def clipped_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of the box that lies in an image of this size: x, y, width, height."""
        x, y, w, h = self.box
        x0, y0 = max(x, 0), max(y, 0)
        return x0, y0, min(x + w, width) - x0, min(y + h, height) - y0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a dataset.

    Attributes:
        id: the image's id in the dataset.
        path: the file.
        height: in pixels, in the frame that the boxes are in (see `data.images.read_record`).
        width: likewise.
        objects: what is annotated in it.
        faults: what was noticed while reading it.
        source: the file to name in messages about its objects: their own annotation file, else the image.
        panoptic_map: the file that says which segment each pixel belongs to, or None (see `data.masks`).
    """

    id: int
    path: Path
    height: int
    width: int
    objects: tuple[ObjectRecord, ...] = ()
    faults: tuple[DataFault, ...] = ()
    source: str = field(default="", compare=False)
    panoptic_map: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """One split of a detection dataset.

    Attributes:
        categories: the classes, the same for all splits of a dataset.
        images: the images, in the order of their ids.
        split: the name under which the dataset holds this split ("train", "trainval", ...).
        folder: the dataset's folder; file names are told relative to it.
        findings: what was counted or skipped while reading.
        masks: what it was read with: every object has an outline ("instances"), or is a segment of its image's map
            ("panoptic").
    """

    categories: Categories
    images: tuple[ImageRecord, ...]
    split: str
    folder: Path
    findings: tuple[Finding, ...] = ()
    masks: Literal["none", "instances", "panoptic"] = "none"

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

    @staticmethod
    def read(
        split: str, folder: Path, categories: Categories, images: Iterable[ImageRecord], faults: Iterable[DataFault]
    ) -> DetectionData:
        """What a reader has read: the images in the order of their ids, their faults counted with its own."""
        ordered = tuple(sorted(images, key=lambda image: image.id))
        of_images = (fault for image in ordered for fault in image.faults)
        findings = count_findings((*faults, *of_images))
        return DetectionData(categories=categories, images=ordered, split=split, folder=folder, findings=findings)

    def subset(self, chosen: Sequence[ImageRecord], split: str) -> DetectionData:
        """The `chosen` images alone, with their findings, under the name `split`."""
        faults = (fault for image in chosen for fault in image.faults)
        return replace(self, images=tuple(chosen), split=split, findings=count_findings(faults))

    def require_no_faults(self) -> None:
        """Raise DataError for the first finding that is a fault of the data; strict reading calls this."""
        for finding in self.findings:
            if finding.kind in _FAULTS:
                raise DataError(f"strict reading refuses {finding}; fix the data, or read it without strict")

    def to_coco(self) -> dict[str, Any]:
        """The COCO ground truth, with the category and image ids of the dataset.

        Annotations are numbered anew from 1: COCO's scoring takes an annotation with id 0 for unmatched.
        """
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            for thing in image.objects:
                row = {"id": len(annotations) + 1, "image_id": image.id, "category_id": thing.category_id,
                       "bbox": list(thing.box), "area": thing.area, "iscrowd": int(thing.crowd)}  # fmt: skip
                if thing.difficult:
                    row["difficult"] = 1
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
        first = ", ".join(counted(count, noun) for noun, count in counts.items())
        return "; ".join((first, *map(str, self.findings)))


def usable_objects(
    objects: Iterable[ObjectRecord], height: int, width: int, file: str, at: str = ""
) -> tuple[tuple[ObjectRecord, ...], tuple[DataFault, ...]]:
    """The objects that can be found and scored, and faults on what is skipped and what is out of the ordinary.

    Boxes keep their annotated coordinates, even where they reach out of the image: scoring is done on those.

    Args:
        objects: as annotated in one image.
        height: of the image, in pixels.
        width: likewise.
        file: the image or annotation file, for the faults.
        at: where the image is in that file, when it is one of many images.
    """
    kept, faults = [], []
    for thing in objects:
        kinds = _kinds(thing, height, width)
        faults += [DataFault(kind, file, thing.position) for kind in kinds]
        if not _UNUSABLE & kinds:
            kept.append(thing)
    if not kept:
        faults.append(DataFault(Kind.NO_OBJECTS, file, at))
    return tuple(kept), tuple(faults)


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
