"""Masks of objects: COCO's polygons and RLE, and panoptic maps. All are decoded on demand.

A panoptic map assigns a segment number to every pixel of an image, and 0 ("void") to pixels that are not annotated.
Each thing is one segment. All stuff of one class in an image is one segment.

Shape letters: H W image, n objects.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coder

from opendetr.categories import Categories
from opendetr.data.faults import FaultKind
from opendetr.data.images import ImageFileError, read_map
from opendetr.data.records import DataError, DataFault, DetectionData, ImageRecord, ObjectRecord, count_faults
from opendetr.distributed import usable_cpus

_NUM_READERS = min(8, usable_cpus())
_POINT_NUMBERS, _FEWEST_NUMBERS = 2, 6
_OUTLINE_FAULTS = frozenset({FaultKind.INVALID_OUTLINE, FaultKind.NO_OUTLINE, FaultKind.MASK_SIZE})
# Faults with which a metric would not measure what is annotated.
_UNSCORABLE = _OUTLINE_FAULTS | {
    FaultKind.EMPTY_MASK,
    FaultKind.UNREADABLE_MAP,
    FaultKind.MISSING_SEGMENT,
    FaultKind.REPEATED_SEGMENT,
    FaultKind.UNLISTED_SEGMENT,
}


class TrueSegment(NamedTuple):
    """One segment of an annotated panoptic map.

    Attributes:
        id: its number in the map, from 1.
        label: its class, in 0..K-1.
        crowd: whether it is a region of many things, which no prediction has to match.
        area: in pixels of the map.
    """

    id: int
    label: int
    crowd: bool
    area: int


# ------------------------------------------------------------------------------------------------------------ outlines


def outline_fault(obj: ObjectRecord, height: int, width: int) -> tuple[FaultKind, str] | None:
    """The kind and details of the fault of an outline in an image of `height` x `width`; None without a fault."""
    outline = obj.segmentation
    if outline is None:
        return FaultKind.NO_OUTLINE, ""
    if isinstance(outline, dict):
        return _run_length_fault(outline, height, width)
    if not isinstance(outline, list):
        return FaultKind.INVALID_OUTLINE, "neither polygons nor RLE"
    return next(((FaultKind.INVALID_OUTLINE, fault) for fault in map(_polygon_fault, outline) if fault), None)


def outline_run_lengths(obj: ObjectRecord, height: int, width: int) -> dict[str, Any]:
    """The outline of an object as COCO's compressed RLE (run-length encoding) for an image of `height` x `width`.

    Raises ValueError for an outline for which `outline_fault` reports a fault.
    """
    fault = outline_fault(obj, height, width)
    if fault is not None:
        kind, detail = fault
        raise ValueError(f"{obj.position}: {kind.describe(1)}{': ' if detail else ''}{detail}")
    outline = obj.segmentation
    if isinstance(outline, list):
        return coder.merge(coder.frPyObjects(outline, height, width))
    return _compressed(outline)


def outline_area(obj: ObjectRecord, height: int, width: int) -> int:
    """Number of pixels inside the outline of an object; arguments and errors are those of `outline_run_lengths`."""
    return int(coder.area(outline_run_lengths(obj, height, width)))


def outline_box(outline: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """The box x, y, width, height around the pixels of RLE; None if it is not valid or has no pixel."""
    size = outline.get("size")
    if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
        return None
    if _run_length_fault(outline, *size) is not None:
        return None
    x, y, w, h = map(float, coder.toBbox(_compressed(outline)))
    return (x, y, w, h) if w and h else None


def with_outlines(data: DetectionData) -> DetectionData:
    """The data for training with masks. Objects without a valid outline are skipped and counted.

    Raises DataError if no object has an outline.
    """
    if any(image.panoptic_map for image in data.images):
        raise DataError(f"{data.folder}: has panoptic maps and no outlines; set data.masks to auto or panoptic")
    if data.num_objects and not any(obj.segmentation for image in data.images for obj in image.objects):
        raise DataError(
            f"{data.folder}: the split '{data.split}' has boxes but no outlines of objects; use a model without masks, "
            "or set data.masks to none"
        )
    pairs = [_with_outlines(image) for image in data.images]
    faults = [fault for entry in data.fault_counts for fault in entry.faults]
    faults += [fault for _, of_image in pairs for fault in of_image]
    images = tuple(image for image, _ in pairs)
    return replace(data, images=images, fault_counts=count_faults(faults), masks="instances")


def outline_faults(image: ImageRecord) -> dict[int, DataFault]:
    """Index of an object in `image.objects` -> the fault of its outline, for the objects with a fault."""
    faults = ((index, outline_fault(obj, image.height, image.width)) for index, obj in enumerate(image.objects))
    file = image.source or str(image.path)
    return {
        index: DataFault(fault[0], file, image.objects[index].position, fault[1]) for index, fault in faults if fault
    }


def _with_outlines(image: ImageRecord) -> tuple[ImageRecord, list[DataFault]]:
    by_index = outline_faults(image)
    if not by_index:
        return image, []
    kept = tuple(obj for index, obj in enumerate(image.objects) if index not in by_index)
    faults = list(by_index.values())
    return replace(image, objects=kept, faults=(*image.faults, *faults)), faults


def _polygon_fault(polygon: Any) -> str:
    """The fault of one polygon in words; empty without a fault."""
    if not isinstance(polygon, list) or not {int, float}.issuperset(map(type, polygon)):
        return "a polygon is not a list of numbers"
    if len(polygon) % _POINT_NUMBERS:
        return f"a polygon of {len(polygon)} numbers; expected x and y of every point"
    if len(polygon) < _FEWEST_NUMBERS:
        return f"a polygon of {len(polygon) // _POINT_NUMBERS} points; expected 3 or more"
    return "" if all(map(math.isfinite, polygon)) else "a polygon with a number that is not finite"


def _run_length_fault(outline: Mapping[str, Any], height: int, width: int) -> tuple[FaultKind, str] | None:
    size, counts = outline.get("size"), outline.get("counts")
    if size != [height, width]:
        return FaultKind.MASK_SIZE, f"RLE of an image of {_size_text(size)}, the image has {width}x{height}"
    if not isinstance(counts, list | str | bytes):
        return FaultKind.INVALID_OUTLINE, "not an RLE"
    if isinstance(counts, list) and not all(isinstance(n, int) and n >= 0 for n in counts):
        return FaultKind.INVALID_OUTLINE, "RLE counts that are not all whole numbers"
    if isinstance(counts, list) and sum(counts) != height * width:
        return FaultKind.INVALID_OUTLINE, f"RLE of {sum(counts)} pixels, the image has {height * width}"
    try:
        coder.decode(_compressed(outline))
    except (ValueError, TypeError, RuntimeError, AttributeError):
        return FaultKind.INVALID_OUTLINE, "RLE that cannot be decoded"
    return None


def _size_text(size: Any) -> str:
    known = isinstance(size, list) and len(size) == _POINT_NUMBERS and all(isinstance(side, int) for side in size)
    return f"{size[1]}x{size[0]}" if known else "no size"


def _compressed(outline: Mapping[str, Any]) -> dict[str, Any]:
    """Run lengths in the format of faster-coco-eval."""
    height, width = outline["size"]
    counts = outline["counts"]
    if isinstance(counts, list):
        return coder.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


# -------------------------------------------------------------------------------------------------------------- masks


def read_masks(image: ImageRecord, objects: Sequence[ObjectRecord]) -> np.ndarray:
    """(n, H, W) bool, the masks of n objects of an image, in the pixels of the image.

    Raises:
        ImageError: the panoptic map cannot be read, or its size differs from the image.
        DataError: an outline is invalid.
    """
    if image.panoptic_map is not None:
        segments = panoptic_map(image)
        return np.stack([segments == obj.segment for obj in objects]) if objects else _no_masks(image)
    try:
        encoded = [outline_run_lengths(obj, image.height, image.width) for obj in objects]
    except ValueError as error:
        file = image.source or image.path
        raise DataError(f"{file}, {error}; open the data with masks, which skips the object") from None
    if not encoded:
        return _no_masks(image)
    return np.ascontiguousarray(coder.decode(encoded).transpose(2, 0, 1)).view(bool)


def known_masks(image: ImageRecord) -> np.ndarray | None:
    """(n, H, W) bool masks of all objects of an image; None when no object has a valid outline.

    The mask of an object without a valid outline is all False. Raises ImageError as `read_masks` does.
    """
    if image.panoptic_map is not None:
        return read_masks(image, image.objects)
    faults = outline_faults(image)
    known = [index for index in range(len(image.objects)) if index not in faults]
    if not known:
        return None
    masks = np.zeros((len(image.objects), image.height, image.width), dtype=bool)
    masks[known] = read_masks(image, [image.objects[index] for index in known])
    return masks


def _no_masks(image: ImageRecord) -> np.ndarray:
    return np.zeros((0, image.height, image.width), dtype=bool)


def panoptic_map(image: ImageRecord) -> np.ndarray:
    """The (H, W) int32 panoptic map of an image that has one.

    Raises ImageError if the map cannot be read, or its size differs from the image.
    """
    assert image.panoptic_map is not None
    segments = read_map(image.panoptic_map)
    if segments.shape != (image.height, image.width):
        height, width = segments.shape
        detail = f"the map is {width}x{height}, the image {image.width}x{image.height}; resize the map"
        raise ImageFileError(FaultKind.MASK_SIZE, image.panoptic_map, "", detail)
    return segments


def map_hashes(images: Sequence[ImageRecord]) -> Iterator[str]:
    """A hash of the content of each image's panoptic map; an empty string without a readable map."""
    with ThreadPoolExecutor(_NUM_READERS) as executor:
        yield from executor.map(_map_hash, images)


def _map_hash(image: ImageRecord) -> str:
    try:
        return hashlib.sha256(image.panoptic_map.read_bytes()).hexdigest() if image.panoptic_map else ""
    except OSError:  # the loader reports it
        return ""


def empty_mask(image: ImageRecord, obj: ObjectRecord) -> DataFault:
    """The fault of an object whose mask has no pixels."""
    if image.panoptic_map is not None:
        return DataFault(FaultKind.MISSING_SEGMENT, str(image.panoptic_map), obj.position)
    return DataFault(FaultKind.EMPTY_MASK, image.source or str(image.path), obj.position)


# --------------------------------------------------------------------------------------------------------- ground truth


def panoptic_truth(image: ImageRecord, categories: Categories) -> tuple[np.ndarray, tuple[TrueSegment, ...]]:
    """The panoptic ground truth of an image: the annotated map, (H, W) int32, and its segments.

    Raises DataError if the map does not match its annotation, because the metrics would be wrong.
    """
    segments = panoptic_map(image)
    areas = segment_areas(segments)
    for fault in map_faults(image, areas):
        if fault.kind in _UNSCORABLE:
            raise _unscorable(fault)
    return segments, tuple(
        TrueSegment(obj.segment, categories.label_of_id(obj.category_id), obj.crowd, areas[obj.segment])
        for obj in image.objects
        if obj.segment is not None
    )


def coco_truth(data: DetectionData) -> dict[str, Any]:
    """The COCO ground truth of the things in the data. Stuff is evaluated in panoptic maps only.

    The outlines are those of the annotations. For a panoptic split, `thing_outlines` makes them image by image.

    Raises:
        DataError: objects were skipped because of their masks.
    """
    _require_whole(data)
    images = (replace(image, objects=tuple(things_of(image, data.categories))) for image in data.images)
    truth = replace(data, images=tuple(images)).to_coco()
    return truth | {"categories": [row for row in truth["categories"] if row["isthing"]]}


def thing_outlines(image: ImageRecord, categories: Categories, segments: np.ndarray) -> list[dict[str, Any]]:
    """The things of a panoptic map (H, W) as RLE, in the order of the image's annotations in `coco_truth`."""
    columns = segments.T.ravel()  # RLE goes down the columns
    starts = np.flatnonzero(np.concatenate(([True], columns[1:] != columns[:-1])))
    numbers, edges = columns[starts], np.append(starts, columns.size)
    outlines = []
    for obj in things_of(image, categories):
        runs = np.flatnonzero(numbers == obj.segment)
        borders = np.stack((edges[runs], edges[runs + 1]), 1).ravel()
        counts = np.diff(borders, prepend=0, append=columns.size).tolist()
        counts = counts if counts[-1] else counts[:-1]  # the encoder writes no empty run at the end
        height, width = segments.shape
        outlines.append(coder.frPyObjects({"size": [height, width], "counts": counts}, height, width))
    return outlines


def things_of(image: ImageRecord, categories: Categories) -> list[ObjectRecord]:
    """The objects of an image whose class is a thing."""
    return [obj for obj in image.objects if categories.isthing[categories.label_of_id(obj.category_id)]]


def require_scorable(data: DetectionData) -> None:
    """Raise DataError for the first fault with which a metric would not measure what is annotated.

    Reads all panoptic maps.
    """
    _require_whole(data)
    if data.masks == "panoptic":
        with ThreadPoolExecutor(_NUM_READERS) as executor:
            for _ in executor.map(_require_scorable_map, data.images, repeat(data.categories)):
                pass


def _require_scorable_map(image: ImageRecord, categories: Categories) -> None:
    panoptic_truth(image, categories)


def _require_whole(data: DetectionData) -> None:
    """Raise DataError if an object was skipped that evaluation needs."""
    for entry in data.fault_counts:
        if data.masks != "none" and entry.kind in _UNSCORABLE:
            raise _unscorable(entry.faults[0])


def map_faults(image: ImageRecord, areas: Mapping[int, int]) -> Iterator[DataFault]:
    """The differences between a panoptic map and its annotation; `areas` is the result of `segment_areas`."""
    file = str(image.panoptic_map)
    listed = {obj.segment for obj in image.objects}
    for number in areas:
        if number not in listed:
            yield DataFault(FaultKind.UNLISTED_SEGMENT, file, f"segment {number}", f"{areas[number]} pixels")
    for obj in image.objects:
        area = areas.get(obj.segment or 0, 0)
        if not area:
            yield DataFault(FaultKind.MISSING_SEGMENT, file, obj.position)
        elif area != obj.area:
            detail = f"{obj.area:g} pixels annotated, {area} in the map"
            yield DataFault(FaultKind.SEGMENT_AREA, file, obj.position, detail)
    if image.objects and not areas:
        yield DataFault(FaultKind.VOID_MAP, file)


def segment_areas(segments: np.ndarray) -> dict[int, int]:
    """Segment number -> number of pixels in a map (H, W), without void."""
    flat = segments.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))  # runs are far fewer than pixels
    lengths = np.diff(starts, append=flat.size)
    numbers, index = np.unique(flat[starts], return_inverse=True)
    areas = np.bincount(index, weights=lengths).astype(np.int64)
    return {number: area for number, area in zip(numbers.tolist(), areas.tolist(), strict=True) if number}


def _unscorable(fault: DataFault) -> DataError:
    what = f"{fault.kind.describe(1)}{': ' if fault.detail else ''}{fault.detail}"
    return DataError(f"{fault.place}: {what}; the metrics would be wrong: fix the annotation, or remove the image")
