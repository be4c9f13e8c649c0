"""Strong evidence that the annotations of a split do not mean what training would read.

Each fault of this module stops training unless the user allows it. So the limits are far from what correct datasets
reach, and none of them depends on a single object.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from opendetr.data.crowds import crowd_only_classes
from opendetr.data.faults import FaultKind
from opendetr.data.formats.coco_videos import VIDEO
from opendetr.data.records import BoxFormat, DataFault, DetectionData

_FAR = 0.1  # of the side of the image
_MOST = 0.5
# Boxes in another format: this share of the boxes, and this number of them, do not fit into their images as read, and
# nearly all of them fit as the other format. A box fits if it extends outside by at most a fiftieth of the side.
_MISFITS, _FEWEST_MISFITS, _NEARLY_ALL = 0.1, 3, 0.98
_TOLERANCE, _TOLERANCE_PIXELS = 0.02, 1.0
_FRACTIONS = 0.2  # share of boxes within 0..1
# Boxes in percent or thousandths: this number of boxes, which reach this far, in images of more than twice the range.
_SCALES, _FEWEST_SCALED, _REACH = (100, 1000), 8, 0.7
_UNMATCHED, _FEWEST_UNMATCHED = 0.1, 2  # share of the images, and number, without a label file
_FEWEST_CROWD = 5  # regions of a class
_TOO_CROWDED = 0.5  # share of the images with objects
_FORMAT_NAMES: dict[BoxFormat, str] = {
    "xywh": "x, y, width, height",
    "xyxy": "xmin, ymin, xmax, ymax",
    "cxcywh": "centre x, centre y, width, height",
}
_SWAPPED_NAMES: dict[BoxFormat, str] = {
    "xywh": "y, x, height, width",
    "xyxy": "ymin, xmin, ymax, xmax",
    "cxcywh": "centre y, centre x, height, width",
}


def misreadings(splits: Collection[DetectionData], num_queries: int) -> Iterator[DataFault]:
    """The faults with `Effect.MISREADS` that a reader cannot find in a single entry.

    Args:
        splits: the splits of a dataset.
        num_queries: the largest number of objects that the model can detect in an image.
    """
    yield from _wrong_boxes(splits)
    yield from _crowd_classes(splits)
    for data in splits:
        place = (str(data.folder), f"split '{data.split}'")
        if detail := _unmatched_labels(data):
            yield DataFault(FaultKind.UNMATCHED_LABELS, *place, detail)
        if detail := _too_many_objects(data, num_queries):
            yield DataFault(FaultKind.TOO_FEW_QUERIES, *place, detail)


def _wrong_boxes(splits: Collection[DetectionData]) -> Iterator[DataFault]:
    """The first fault of all boxes that applies, either of the whole dataset or of single splits."""
    parts = [(data, *_all_boxes(data)) for data in splits]
    if not parts:
        return
    pooled, sides = (np.concatenate([part[index] for part in parts]) for index in (1, 2))
    if found := _box_fault(parts[0][0], pooled, sides):
        yield DataFault(found[0], str(parts[0][0].folder), "", found[1])
        return
    for data, boxes, of_images in parts:
        if found := _box_fault(data, boxes, of_images):
            yield DataFault(found[0], str(data.folder), f"split '{data.split}'", found[1])


def _box_fault(data: DetectionData, boxes: np.ndarray, sides: np.ndarray) -> tuple[FaultKind, str] | None:
    """The first fault of boxes (n, 4) in images of `sides` (n, 2), and what tells it; None without a fault.

    The boxes of videos are not tested for other formats, because trackers extrapolate them beyond the image.
    """
    is_video = any(VIDEO in image.extras for image in data.images[:1])
    for kind, test in _BOX_TESTS.items():
        if not (is_video and kind is FaultKind.BOX_FORMAT) and (detail := test(boxes, sides, data.box_format)):
            return kind, detail
    return None


def _crowd_classes(splits: Collection[DetectionData]) -> Iterator[DataFault]:
    """A fault for each class with several objects that are all crowd regions, in all splits."""
    first = next(iter(splits), None)
    for category_id, count in crowd_only_classes(splits).items():
        if first is not None and count >= _FEWEST_CROWD:
            name = first.categories.names[first.categories.label_of_id(category_id)]
            detail = f"{count:,} crowd regions, which cannot be learned"
            yield DataFault(FaultKind.CROWD_ONLY, str(first.folder), f"class '{name}'", detail)


def queries_for(num_objects: int) -> int:
    """A round number of queries for images with up to `num_objects` objects, a quarter more than needed."""
    return 50 * math.ceil(1.25 * num_objects / 50)


def _all_boxes(data: DetectionData) -> tuple[np.ndarray, np.ndarray]:
    """The boxes (n, 4) as x, y, width, height, skipped ones too; and width, height of their images (n, 2).

    Without boxes around YOLO's polygons, which are not written as four numbers.
    """
    boxes, sides = [], []
    for image in data.images:
        annotated = [obj.box for obj in image.objects if data.box_format != "cxcywh" or obj.segmentation is None]
        annotated += [fault.box for fault in image.faults if fault.box is not None]
        boxes += annotated
        sides += [(image.width, image.height)] * len(annotated)
    return np.array(boxes, dtype=float).reshape(-1, 4), np.array(sides, dtype=float).reshape(-1, 2)


def _written(boxes: np.ndarray, box_format: BoxFormat) -> np.ndarray:
    """The numbers that a file contains for boxes (n, 4) that are read as x, y, width, height."""
    corner, size = boxes[:, :2], boxes[:, 2:]
    if box_format == "xywh":
        return boxes
    return np.hstack([corner, corner + size] if box_format == "xyxy" else [corner + size / 2, size])


def _read(numbers: np.ndarray, box_format: BoxFormat) -> np.ndarray:
    """The inverse of `_written`."""
    first, second = numbers[:, :2], numbers[:, 2:]
    if box_format == "xywh":
        return numbers
    return np.hstack([first, second - first] if box_format == "xyxy" else [first - second / 2, second])


def _fit(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Whether each box has positive sides and lies inside its image -> (n,) bool."""
    allowed = np.maximum(_TOLERANCE * sides, _TOLERANCE_PIXELS)
    corner, size = boxes[:, :2], boxes[:, 2:]
    return ((size > 0) & (corner >= -allowed) & (corner + size <= sides + allowed)).all(1)


def _fractions(boxes: np.ndarray, sides: np.ndarray, box_format: BoxFormat) -> str:
    """What tells that the numbers of the boxes are fractions, percentages or thousandths; else an empty string."""
    if not len(boxes) or box_format == "cxcywh":
        return ""
    numbers = _written(boxes, box_format)
    within = ((numbers >= 0) & (numbers <= 1)).all(1) & (numbers % 1 != 0).any(1) & (sides > 4).all(1)
    if within.mean() >= _FRACTIONS:
        return f"{within.sum():,} of {len(boxes):,} boxes lie within 0..1"
    reach = (boxes[:, :2] + boxes[:, 2:]).max(0)
    for scale in _SCALES:
        is_within = numbers.min() >= 0 and numbers.max() <= scale and (reach >= _REACH * scale).all()
        if is_within and len(boxes) >= _FEWEST_SCALED and sides.min() > 2 * scale:
            return f"all {len(boxes):,} boxes lie within 0..{scale}, the images have {sides.min():g} pixels or more"
    return ""


def _other_format(boxes: np.ndarray, sides: np.ndarray, box_format: BoxFormat) -> str:
    """What tells that the boxes are written in another format; else an empty string."""
    misfits = int((~_fit(boxes, sides)).sum())
    if misfits < max(_FEWEST_MISFITS, _MISFITS * len(boxes)):
        return ""
    numbers = _written(boxes, box_format)
    swapped = numbers[:, [1, 0, 3, 2]]
    for names, values in ((_FORMAT_NAMES, numbers), (_SWAPPED_NAMES, swapped)):
        for other, name in names.items():
            is_read = other == box_format and names is _FORMAT_NAMES
            if not is_read and _fit(_read(values, other), sides).mean() >= _NEARLY_ALL:
                return (
                    f"as {_FORMAT_NAMES[box_format]}, {misfits:,} of {len(boxes):,} boxes do not fit into their "
                    f"images; as {name}, they do"
                )
    return ""


def _far_outside(boxes: np.ndarray, sides: np.ndarray, box_format: BoxFormat) -> str:
    """What tells that the boxes have another scale than the images; else an empty string."""
    outside = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sides) > _FAR * sides
    count = int(outside.any(1).sum())
    return f"{count:,} of {len(boxes):,} boxes" if count > _MOST * len(boxes) else ""


_BOX_TESTS: dict[FaultKind, Callable[[np.ndarray, np.ndarray, BoxFormat], str]] = {
    FaultKind.NORMALISED_BOXES: _fractions,
    FaultKind.BOX_FORMAT: _other_format,
    FaultKind.FOREIGN_SCALE: _far_outside,
}


def _unmatched_labels(data: DetectionData) -> str:
    """What tells that the names of label files and images do not fit; else an empty string."""
    counts = {entry.kind: entry.faults for entry in data.fault_counts}
    without = sum(len(counts.get(kind, ())) for kind in (FaultKind.UNLABELLED_IMAGE, FaultKind.OMITTED_IMAGE))
    if without < max(_FEWEST_UNMATCHED, _UNMATCHED * len(data)):
        return ""
    orphans = _without_image([Path(fault.file) for fault in counts.get(FaultKind.ORPHAN_LABELS, ())], data)
    if len(orphans) < max(_FEWEST_UNMATCHED, _UNMATCHED * len(data)):
        return ""
    return (
        f"{without:,} of {len(data):,} images have no label file, and {len(orphans):,} label files no image, such as "
        f"{orphans[0].name}"
    )


def _without_image(labels: Sequence[Path], data: DetectionData) -> list[Path]:
    """The label files without an image of their name in the folders of the split, where it may be unlisted."""
    if not labels:
        return []
    folders = {image.path.parent for image in data.images}
    stems = {path.stem for folder in folders for path in folder.iterdir()}
    return [path for path in labels if path.stem not in stems]


def _too_many_objects(data: DetectionData, num_queries: int) -> str:
    """What tells that the model has too few queries for the split; else an empty string."""
    by_image: dict[Path, int] = defaultdict(int)  # an image with several captions has an entry for each
    for image in data.images:
        by_image[image.path] = max(by_image[image.path], sum(not obj.crowd for obj in image.objects))
    counts = [count for count in by_image.values() if count]
    exceeding = sum(count > num_queries for count in counts)
    if exceeding <= _TOO_CROWDED * len(counts):
        return ""
    return (
        f"{exceeding:,} of {len(counts):,} images have more than {num_queries} objects, up to {max(counts)}; give "
        f"--num-queries {queries_for(max(counts))}"
    )
