"""The contents of a dataset as plain records. Every format is read into these.

Coordinates are in pixels of the original images. Evaluation uses these records directly. Training targets are made from
them by `data.transforms.LabelledImage`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opendetr.categories import Categories
from opendetr.config import SettingError, near_name
from opendetr.data.faults import FaultKind, count_noun

# Pixels by which a box may extend outside the image without a warning: many files round coordinates to two decimals.
_ROUNDING = 0.01
# Image sides of this many pixels or more are invalid.
MAX_SIDE = 2**31
# The kinds that are an error if `DataConfig.strict` is set, and are skipped or reported otherwise.
_STRICT_FAULTS = frozenset(
    {
        FaultKind.EMPTY_FILE,
        FaultKind.UNREADABLE_IMAGE,
        FaultKind.OVERSIZED_IMAGE,
        FaultKind.INVALID_ROW,
        FaultKind.UNLISTED_CLASS,
        FaultKind.PIXEL_ROW,
        FaultKind.INVALID_BOX,
        FaultKind.INVALID_OUTLINE,
        FaultKind.MASK_SIZE,
        FaultKind.UNREADABLE_MAP,
        FaultKind.REPEATED_SEGMENT,
        FaultKind.REPEATED_TRACK,
        FaultKind.OUTSIDE_VIDEO,
        FaultKind.SPAN_OUTSIDE,
        FaultKind.EMPTY_SPAN,
    }
)
_UNUSABLE = frozenset({FaultKind.INVALID_BOX, FaultKind.NO_AREA})
BoxFormat = Literal["xywh", "xyxy", "cxcywh"]
"""The numbers of a box: a corner and the sides, two corners, or the centre and the sides."""


class DataFault(NamedTuple):
    """One fault or warning at one place in a dataset.

    Attributes:
        kind: the kind of fault or warning.
        file: the annotation file or image.
        at: the position in the file, such as "annotation 7" or "line 3"; empty for the whole file.
        detail: details that the kind does not include; may be empty.
        box: x, y, width, height of the box that the object of the fault has, if that object is skipped.
    """

    kind: FaultKind
    file: str
    at: str = ""
    detail: str = ""
    box: tuple[float, float, float, float] | None = None

    @property
    def place(self) -> str:
        """File and position in one string."""
        return f"{self.file}, {self.at}" if self.at else self.file


class DataError(ValueError):
    """A dataset cannot be used. The message is one line: what is wrong, where, and what to do.

    Attributes:
        fault: the fault that caused the error, or None if the error is not about one place in a file.
    """

    fault: DataFault | None = None

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a quoted file name may contain line breaks


class UnknownSplitError(DataError, SettingError):
    """The caller names a split that the dataset does not have. The command line treats this as wrong usage."""


class FaultError(DataError):
    """A fault at one place in a file that stops training."""

    fault: DataFault

    def __init__(self, kind: FaultKind, file: str | Path, at: str, detail: str) -> None:
        self.fault = DataFault(kind, str(file), at, " ".join(detail.splitlines()))
        super().__init__(f"{self.fault.place}: {detail}")


class FaultLog:
    """Raises or collects the faults that make an entry of a dataset unusable.

    A reader reads every entry inside `with log:`.

    Args:
        raises: raise the error, which ends reading. If False, collect the fault and continue without the entry.

    Attributes:
        faults: the collected faults, in the order in which they occurred.
    """

    def __init__(self, *, raises: bool) -> None:
        self.faults: list[DataFault] = []
        self._raises = raises

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if self._raises or not isinstance(error, DataError):
            return False
        self.faults.append(error.fault or DataFault(FaultKind.NO_DATA, "", detail=str(error)))
        return True


RAISE_FAULTS = FaultLog(raises=True)


@dataclass(frozen=True, kw_only=True)
class FaultCount:
    """The number of faults or warnings of one kind, with the faults.

    Attributes:
        kind: the kind of fault or warning.
        count: how often it occurs.
        first: file and position of the first one, such as "a.json, annotation 7".
        faults: all of them.
    """

    kind: FaultKind
    count: int
    first: str
    faults: tuple[DataFault, ...] = field(default=(), repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind.describe(self.count)}, {self.kind.consequence} (first: {self.first})"


def count_faults(faults: Iterable[DataFault]) -> tuple[FaultCount, ...]:
    """Count faults and warnings by kind, in the order of `FaultKind`."""
    by_kind: dict[FaultKind, list[DataFault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    return tuple(
        FaultCount(kind=kind, count=len(of_kind), first=of_kind[0].place, faults=tuple(of_kind))
        for kind in FaultKind
        if (of_kind := by_kind.get(kind))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRecord:
    """One annotated object.

    Attributes:
        id: the annotation's id in the dataset.
        category_id: the dataset's id of the class.
        box: x, y, width, height in pixels of the original image, as annotated; it may extend outside the image.
        area: in pixels, of the segmentation if the dataset has one, otherwise of the box.
        crowd: True for a region of many objects. It is not trained on, and evaluation does not count it as missed.
        difficult: VOC's flag for an object that is hard to recognise. It is trained on and evaluated like any other.
        segmentation: COCO polygons or RLE as annotated, or None.
        segment: the object's number in the panoptic map of its image, or None.
        at: the position in the annotation file, such as "line 3"; empty when the id is enough to find it.
        extras: further annotations by name, such as a track id or the words of a caption that name the object. They
            follow the object through every transform, see `data.transforms.LabelledImage.per_object`.
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
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def position(self) -> str:
        """Position in the annotation file, such as "line 3" or "annotation 7"."""
        return self.at or f"annotation {self.id}"

    def clipped_box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of the box inside an image of `height` x `width` pixels: x, y, width, height."""
        x, y, w, h = self.box
        x0, y0 = max(x, 0), max(y, 0)
        return x0, y0, min(x + w, width) - x0, min(y + h, height) - y0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a dataset.

    Attributes:
        id: the image's id in the dataset.
        path: the image file.
        height: in pixels, in the frame of the boxes (see `data.images.read_record`).
        width: likewise.
        objects: the annotated objects.
        faults: faults and warnings about this image.
        source: the file that messages about the objects name: the annotation file of this image, or the image file.
        panoptic_map: the file with the segment number of each pixel, or None (see `data.masks`).
        name: the name of the image in the dataset if the file is not a part of it; see `data.video_files`.
        extras: further annotations of the image by name, such as a caption or the number of its video.
    """

    id: int
    path: Path
    height: int
    width: int
    objects: tuple[ObjectRecord, ...] = ()
    faults: tuple[DataFault, ...] = ()
    source: str = field(default="", compare=False)
    panoptic_map: Path | None = None
    name: str = ""
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DetectionData:
    """One split of a detection dataset.

    Attributes:
        categories: the classes, the same for all splits of a dataset.
        images: the images, in the order of their ids.
        split: the name of this split in the dataset ("train", "trainval", ...).
        folder: the dataset's folder; reported file names are relative to it.
        fault_counts: faults and warnings, counted by kind.
        masks: what the masks of the objects are read from: their outlines ("instances"), the panoptic maps of the
            images ("panoptic"), or nothing ("none").
        annotated: False for images without annotations, which only pre-training uses.
        box_format: the four numbers of a box in the annotation files.
    """

    categories: Categories
    images: tuple[ImageRecord, ...]
    split: str
    folder: Path
    fault_counts: tuple[FaultCount, ...] = ()
    masks: Literal["none", "instances", "panoptic"] = "none"
    annotated: bool = True
    box_format: BoxFormat = "xywh"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_objects(self) -> int:
        """Objects in all images, crowd regions included."""
        return sum(len(image.objects) for image in self.images)

    def file_name(self, image: ImageRecord) -> str:
        """The name of the image in the dataset: its path relative to the folder, with forward slashes.

        The full path if it lies elsewhere and has no other name.
        """
        if image.name:
            return image.name
        inside = image.path.is_relative_to(self.folder)
        return (image.path.relative_to(self.folder) if inside else image.path).as_posix()

    @staticmethod
    def from_records(
        split: str,
        folder: Path,
        categories: Categories,
        images: Iterable[ImageRecord],
        faults: Iterable[DataFault],
        *,
        annotated: bool = True,
        box_format: BoxFormat = "xywh",
    ) -> DetectionData:
        """Make a split of records: sort the images and count the faults.

        Args:
            split: the name of the split.
            folder: the dataset's folder.
            categories: the classes.
            images: the images in any order; they are sorted by id.
            faults: faults and warnings about the split as a whole; those of the images are added.
            annotated: False for images without annotations.
            box_format: the four numbers of a box in the annotation files.
        """
        ordered = tuple(sorted(images, key=lambda image: image.id))
        of_images = (fault for image in ordered for fault in image.faults)
        fault_counts = count_faults((*faults, *of_images))
        return DetectionData(
            categories=categories,
            images=ordered,
            split=split,
            folder=folder,
            fault_counts=fault_counts,
            annotated=annotated,
            box_format=box_format,
        )

    def subset(self, images: Sequence[ImageRecord], split: str) -> DetectionData:
        """A split named `split` of some of the images, with their faults and warnings."""
        faults = (fault for image in images for fault in image.faults)
        return replace(self, images=tuple(images), split=split, fault_counts=count_faults(faults))

    def require_no_faults(self) -> None:
        """Raise DataError if the data has a fault that `DataConfig.strict` does not allow. Warnings are allowed."""
        for entry in self.fault_counts:
            if entry.kind in _STRICT_FAULTS:
                what = entry.kind.describe(entry.count)
                raise DataError(
                    f"{entry.first}: strict is set, and the data has {what}; fix the data, or do not set strict"
                )

    def to_coco(self) -> dict[str, Any]:
        """The COCO ground truth, with the category and image ids of the dataset.

        Annotations are renumbered from 1: COCO's evaluation treats a match with annotation id 0 as no match.
        """
        annotations: list[dict[str, Any]] = []
        for image in self.images:
            for obj in image.objects:
                row = {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": obj.category_id,
                    "bbox": list(obj.box),
                    "area": obj.area,
                    "iscrowd": int(obj.crowd),
                }
                if obj.difficult:
                    row["difficult"] = 1
                if obj.segmentation is not None:
                    row["segmentation"] = obj.segmentation
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

    def size(self) -> str:
        """The number of images, objects and classes: "205 images, 3,100 objects, 3 classes".

        Without annotations, only the images are counted.
        """
        counts = {"image": len(self)}
        if self.annotated:
            counts |= {"object": self.num_objects, "class": len(self.categories)}
        return ", ".join(count_noun(count, noun) for noun, count in counts.items())

    def summary(self) -> str:
        """One line: "205 images, 3,100 objects, 3 classes; 2 boxes without area ... (first: ...)"."""
        return "; ".join((self.size(), *map(str, self.fault_counts)))


def unknown_split(place: object, wanted: str, splits: Iterable[str]) -> UnknownSplitError:
    """The error for a split that a dataset does not have, with the nearest name or all."""
    names = list(splits)
    near = near_name(wanted, names)
    hint = f"; did you mean {near}?" if near else ""
    return UnknownSplitError(f"{place}: no split '{wanted}'; it has {', '.join(names) or 'none'}{hint}")


def usable_objects(
    objects: Iterable[ObjectRecord], height: int, width: int, file: str, at: str = ""
) -> tuple[tuple[ObjectRecord, ...], tuple[DataFault, ...]]:
    """The objects with a usable box, and the faults and warnings about all objects.

    A box keeps its annotated coordinates even if it extends outside the image, because evaluation uses them.

    Args:
        objects: the objects annotated in one image.
        height: of the image, in pixels.
        width: likewise.
        file: the image or annotation file, for the faults.
        at: the position of the image in that file, if the file describes several images.
    """
    kept, faults = [], []
    for obj in objects:
        kinds = _kinds(obj, height, width)
        if _UNUSABLE & kinds:
            box = obj.box if all(map(math.isfinite, obj.box)) else None
            faults += [DataFault(kind, file, obj.position, box=box) for kind in kinds]
        else:
            faults += [DataFault(kind, file, obj.position) for kind in kinds]
            kept.append(obj)
    if not kept:
        faults.append(DataFault(FaultKind.NO_OBJECTS, file, at))
    return tuple(kept), tuple(faults)


def _kinds(obj: ObjectRecord, height: int, width: int) -> set[FaultKind]:
    x, y, w, h = obj.box
    if not all(map(math.isfinite, obj.box)) or w < 0 or h < 0:
        return {FaultKind.INVALID_BOX}
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return {FaultKind.NO_AREA}
    kinds = {FaultKind.CROWD} if obj.crowd else set()
    if max(-x, -y, x + w - width, y + h - height) > _ROUNDING:
        kinds.add(FaultKind.OUT_OF_IMAGE)
    return kinds


def spread(images: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """At most `count` images, evenly spread over all of them."""
    count = min(count, len(images))
    return [images[index * len(images) // count] for index in range(count)]
