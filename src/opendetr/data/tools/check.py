"""What is wrong or out of the ordinary in a dataset: all that the readers notice, and what only shows on the whole."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opendetr.categories import Categories
from opendetr.data.config import Masks
from opendetr.data.faults import Effect, Kind
from opendetr.data.formats.recognise import (
    TRAIN_NAMES,
    Format,
    Source,
    choose_splits,
    find_panoptic,
    read_splits,
    recognise,
)
from opendetr.data.images import image_size, is_animated, read_record
from opendetr.data.masks import empty_mask, map_faults, outline_area, outline_faults, panoptic_map, segment_areas
from opendetr.data.records import DataFault, DetectionData, FaultError, FaultLog, ImageRecord, ObjectRecord
from opendetr.data.transforms import resized_shape
from opendetr.files import IMAGE_SUFFIXES

# Sides of objects in pixels after resizing, as the square root of their area: where one range ends and the next begins.
SIZE_LIMITS = (8, 16, 32, 96)
_REPEATED_IOU = 0.95
_THIN_RATIO = 20
_LONG_RATIO = 4
_FEW_OBJECTS = 10
_MAX_PAIRS = 1_000_000  # box pairs that are compared at once; bounds the memory for an image of very many boxes
_IMAGES_AT_ONCE = 256
_MAP_KINDS = frozenset({Kind.UNREADABLE_MAP, Kind.REPEATED_SEGMENT, Kind.MISSING_SEGMENT, Kind.VOID_MAP})

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a model makes of the data.

    Attributes:
        image_size: short side of the images that go into it, in pixels.
        max_size: limit of the long side.
        side_multiple: what both sides are rounded to a multiple of.
        num_queries: the most objects that it can find in an image.
        masks: what masks it is trained on, as `DataConfig.masks`.
    """

    image_size: int
    max_size: int
    num_queries: int
    side_multiple: int = 1
    masks: Masks = "none"


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """How much a split holds.

    Attributes:
        images: number of images that can be used, as far as they were read.
        objects: number of objects that can be used.
        classes: class name -> number of its objects, in the order of the classes.
        sizes: number of objects in each range that `SIZE_LIMITS` divides, after resizing.
    """

    images: int
    objects: int
    classes: Mapping[str, int]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a check found.

    Attributes:
        folder: the dataset.
        format: how it is written down; None when that cannot be told.
        splits: the splits as they were read, without what cannot be used.
        counts: how much each split holds.
        faults: kind -> all places where it was found, in the order of `Kind`.
        leaks: images of the training split of which a split that is scored has a copy.
    """

    folder: Path
    format: Format | None
    splits: Mapping[str, DetectionData]
    counts: Mapping[str, SplitCounts]
    faults: Mapping[Kind, tuple[DataFault, ...]]
    leaks: frozenset[Path]

    def with_effect(self, effect: Effect) -> dict[Kind, tuple[DataFault, ...]]:
        """The faults of the kinds that training treats so."""
        return {kind: faults for kind, faults in self.faults.items() if kind.effect is effect}


def check_data(
    folder: str | Path, demands: Demands, *, read_images: bool = True, progress: Progress | None = None
) -> DataReport:
    """Look for everything that a dataset has of `Kind`.

    Args:
        folder: the dataset, in any format.
        demands: image size and number of queries to check against.
        read_images: decode every image; else only the annotations are looked at.
        progress: is called with the number of images that are read, and of all there are.

    Never raises for a fault of the data; memory grows with the annotations, not with the images.
    """
    folder = Path(folder)
    log = FaultLog(stops=False)
    written_as, splits = None, dict[str, DetectionData]()
    with log:
        source = _trained_on(folder, demands, log)
        written_as, splits = source.format, source.read(source.splits)
        if not log.faults:
            choose_splits(splits, folder)
    maps, more = _maps(folder, splits, demands)
    log.faults += more
    faults = [fault._replace(file=fault.file or str(folder)) for fault in log.faults]
    for data in splits.values():
        faults += [fault for finding in data.findings for fault in finding.faults]
        faults += _of_images(data, demands)
        faults += _of_objects(data, demands)
        faults += _of_boxes_together(data)
        faults += _of_outlines(data, draw=read_images)
    faults += _of_classes(folder, splits)
    faults += _unlisted(splits, faults)
    digests: dict[Path, bytes] = {}
    if read_images:
        digests, more = _read_all(splits, progress)
        faults += more
        faults += _of_maps(maps)
    for data in splits.values():
        faults += _repeated_images(data, digests)
    leaks, more = _leaks(splits, digests)
    return DataReport(
        folder=folder,
        format=written_as,
        splits=splits,
        counts={split: _counts(data, demands) for split, data in splits.items()},
        faults=_grouped(faults + more),
        leaks=leaks,
    )


def _trained_on(folder: Path, demands: Demands, log: FaultLog) -> Source:
    """The dataset as the model is trained on it; one of panoptic maps alone is always read with them."""
    source = recognise(folder, log)
    wanted = demands.masks in ("auto", "panoptic") and find_panoptic(folder)
    return recognise(folder, log, masks="panoptic") if source.panoptic or wanted else source


def _maps(
    folder: Path, splits: Mapping[str, DetectionData], demands: Demands
) -> tuple[list[ImageRecord], list[DataFault]]:
    """The images with panoptic maps, also of those that lie beside the splits, and faults on the latter.

    A model that is not trained on them does not stop at them.
    """
    if any(data.masks == "panoptic" for data in splits.values()):
        return [image for data in splits.values() for image in data.images], []
    log = FaultLog(stops=False)
    beside: dict[str, DetectionData] = {}
    with log:
        if find_panoptic(folder):
            beside = read_splits(folder, log, masks="panoptic")
    found = [fault for data in beside.values() for finding in data.findings for fault in finding.faults]
    faults = [fault for fault in found if fault.kind in _MAP_KINDS]
    if demands.masks in ("auto", "panoptic"):
        faults += log.faults
    return [image for data in beside.values() for image in data.images], faults


def _of_maps(images: Sequence[ImageRecord]) -> Iterator[DataFault]:
    """Where panoptic maps and their annotations do not fit together."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            for faults in executor.map(_map_faults, images[start : start + _IMAGES_AT_ONCE]):
                yield from faults


def _map_faults(image: ImageRecord) -> list[DataFault]:
    if image.panoptic_map is None:
        return []
    try:
        return list(map_faults(image, segment_areas(panoptic_map(image))))
    except FaultError as fault:
        return [fault.fault]


def _of_outlines(data: DetectionData, *, draw: bool) -> Iterator[DataFault]:
    """What is wrong with outlines, if the split has some; those of no pixel are found when they are drawn."""
    if not any(thing.segmentation for image in data.images for thing in image.objects):
        return
    for image in data.images:
        faults = outline_faults(image)
        yield from faults.values()
        for index, thing in enumerate(image.objects if draw else ()):
            if index not in faults and not outline_area(thing, image.height, image.width):
                yield empty_mask(image, thing)


def repeated_boxes(image: ImageRecord) -> Iterator[tuple[ObjectRecord, ObjectRecord]]:
    """Each object that has the box of an earlier one of its class or of another (IoU of 0.95 and more).

    Gives pairs (earlier, repeating), at most one with the same class and one with another for each that repeats. Crowd
    regions are left out, and so are segments of panoptic maps, which share no pixel.
    """
    if image.panoptic_map is not None:
        return
    things = [thing for thing in image.objects if not thing.crowd]
    boxes = np.array([thing.clipped_box(image.height, image.width) for thing in things]).reshape(-1, 4)
    classes = np.array([thing.category_id for thing in things])
    rows = max(1, _MAX_PAIRS // max(1, len(things)))
    seen: set[tuple[bool, int]] = set()
    for start in range(0, len(things), rows):
        block = slice(start, start + rows)
        near = np.triu(_iou(boxes[block], boxes) >= _REPEATED_IOU, start + 1)
        same = classes[block, None] == classes
        for of_class, pairs in ((True, near & same), (False, near & ~same)):
            for second in np.nonzero(pairs.any(0))[0].tolist():
                if (of_class, second) not in seen:
                    seen.add((of_class, second))
                    yield things[start + int(pairs[:, second].argmax())], things[second]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) boxes as x, y, width, height, all with an area -> (n, m)."""
    lower = np.maximum(a[:, None, :2], b[:, :2])
    upper = np.minimum((a[:, :2] + a[:, 2:])[:, None], b[:, :2] + b[:, 2:])
    common = (upper - lower).clip(0).prod(-1)
    return common / (a[:, 2:].prod(-1)[:, None] + b[:, 2:].prod(-1) - common)


def _of_images(data: DetectionData, demands: Demands) -> Iterator[DataFault]:
    """What is out of the ordinary in single images."""
    for image in data.images:
        if max(image.height, image.width) > _LONG_RATIO * min(image.height, image.width):
            height, width = _resized(image, demands)
            detail = f"{image.width}x{image.height} pixels become {width}x{height}"
            yield DataFault(Kind.LONG_IMAGE, str(image.path), detail=detail)
        found = sum(not thing.crowd for thing in image.objects)
        if found > demands.num_queries:
            detail = f"{found} objects, {demands.num_queries} queries"
            yield DataFault(Kind.TOO_MANY_OBJECTS, str(image.path), detail=detail)


def _of_objects(data: DetectionData, demands: Demands) -> Iterator[DataFault]:
    """What is out of the ordinary in single objects."""
    for image in data.images:
        for thing, (width, height) in zip(image.objects, _resized_sides(image, demands), strict=True):
            _, _, w, h = thing.clipped_box(image.height, image.width)
            if max(w, h) > _THIN_RATIO * min(w, h):
                yield DataFault(Kind.THIN_BOX, _source(image), thing.position, f"{w:g}x{h:g} pixels")
            if math.sqrt(width * height) < SIZE_LIMITS[0]:
                detail = f"{w:g}x{h:g} pixels become {width:.1f}x{height:.1f}"
                yield DataFault(Kind.SMALL_OBJECT, _source(image), thing.position, detail)
        for earlier, thing in repeated_boxes(image):
            kind = Kind.REPEATED_BOX if earlier.category_id == thing.category_id else Kind.TWO_CLASSES
            yield DataFault(kind, _source(image), thing.position, f"the box of {earlier.position}")


def _resized(image: ImageRecord, demands: Demands) -> tuple[int, int]:
    """Height and width with which an image goes into the model."""
    return resized_shape(image.height, image.width, demands.image_size, demands.max_size, demands.side_multiple)


def _resized_sides(image: ImageRecord, demands: Demands) -> Iterator[tuple[float, float]]:
    """Width and height of each object's box, in pixels of the resized image."""
    height, width = _resized(image, demands)
    for thing in image.objects:
        _, _, w, h = thing.clipped_box(image.height, image.width)
        yield w * width / image.width, h * height / image.height


def _of_boxes_together(data: DetectionData) -> Iterator[DataFault]:
    boxes = [thing.box for image in data.images for thing in image.objects]
    if boxes and all(x + w <= 1 and y + h <= 1 for x, y, w, h in boxes):
        yield DataFault(Kind.NORMALISED_BOXES, str(data.folder), f"split '{data.split}'")


def train_split(splits: Mapping[str, DetectionData]) -> str | None:
    """The split that is trained on when none is named."""
    return next((name for name in TRAIN_NAMES if name in splits), None)


def _scored_splits(splits: Mapping[str, DetectionData]) -> list[str]:
    """Splits that the training split must not overlap; "trainval" holds it by its meaning."""
    return [name for name in splits if name not in TRAIN_NAMES]


def _of_classes(folder: Path, splits: Mapping[str, DetectionData]) -> Iterator[DataFault]:
    if not splits:
        return
    categories = next(iter(splits.values())).categories
    counts = {split: _class_counts(data) for split, data in splits.items()}
    train = counts.get(train_split(splits) or "", Counter())
    scored = _scored_splits(splits)
    first_like: dict[str, str] = {}
    for name in _used_names(categories):
        place = (str(folder), f"class '{name}'")
        in_scored = [split for split in scored if counts[split][name]]
        if not any(count[name] for count in counts.values()):
            yield DataFault(Kind.UNUSED_CLASS, *place)
        elif not train[name] and in_scored:
            yield DataFault(Kind.UNSEEN_CLASS, *place, f"{counts[in_scored[0]][name]} objects in '{in_scored[0]}'")
        elif train[name] < _FEW_OBJECTS:
            yield DataFault(Kind.RARE_CLASS, *place, f"{train[name]} to train on")
        other = first_like.setdefault("".join(filter(str.isalnum, name.casefold())) or name, name)
        if other != name:
            yield DataFault(Kind.ALIKE_NAMES, *place, f"like '{other}'")


def _used_names(categories: Categories) -> list[str]:
    return [name for name, used in zip(categories.names, categories.used, strict=True) if used]


def _class_counts(data: DetectionData) -> Counter[str]:
    ids = Counter(thing.category_id for image in data.images for thing in image.objects)
    return Counter({data.categories.names[data.categories.label_of_id(id_)]: count for id_, count in ids.items()})


def _counts(data: DetectionData, demands: Demands) -> SplitCounts:
    by_class = _class_counts(data)
    sizes: Counter[int] = Counter()
    for image in data.images:
        sides = [math.sqrt(width * height) for width, height in _resized_sides(image, demands)]
        sizes.update(np.searchsorted(SIZE_LIMITS, sides, side="right").tolist())
    return SplitCounts(
        images=len(data),
        objects=data.num_objects,
        classes={name: by_class[name] for name in _used_names(data.categories)},
        sizes=tuple(sizes[number] for number in range(len(SIZE_LIMITS) + 1)),
    )


def _unlisted(splits: Mapping[str, DetectionData], known: Iterable[DataFault]) -> Iterator[DataFault]:
    """Image files beside those of the dataset that are none of its own."""
    used = {image.path for data in splits.values() for image in data.images}
    accounted = used | {Path(fault.file) for fault in known}
    for folder in sorted({path.parent for path in used}):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and path not in accounted and not path.is_dir():
                yield DataFault(Kind.UNLISTED_IMAGE, str(path))


def _read_all(
    splits: Mapping[str, DetectionData], progress: Progress | None
) -> tuple[dict[Path, bytes], list[DataFault]]:
    """Every image decoded once: path -> digest of its pixels, and what is wrong with files."""
    images = (image for data in splits.values() for image in data.images)
    records = list({(image.path, image.height, image.width): image for image in images}.values())
    digests: dict[Path, bytes] = {}
    faults: list[DataFault] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as executor:
        for start in range(0, len(records), _IMAGES_AT_ONCE):
            chunk = records[start : start + _IMAGES_AT_ONCE]
            for done, (record, (digest, found)) in enumerate(
                zip(chunk, executor.map(_looked_at, chunk), strict=True), start=start + 1
            ):
                faults += found
                if digest is not None:
                    digests[record.path] = digest
                if progress is not None:
                    progress(done, len(records))
    return digests, faults


def _looked_at(record: ImageRecord) -> tuple[bytes | None, list[DataFault]]:
    """The digest of an image's pixels, None when it cannot be used, and what is the matter with it."""
    try:
        pixels = read_record(record)
        oriented, animated = image_size(record.path), is_animated(record.path)
    except FaultError as fault:
        return None, [fault.fault]
    found = {Kind.TURNED_IMAGE: oriented != pixels.shape[:2], Kind.ANIMATED_IMAGE: animated}
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(pixels.shape[0]).encode())
    return digest.digest(), [DataFault(kind, str(record.path)) for kind, there in found.items() if there]


def _repeated_images(data: DetectionData, digests: Mapping[Path, bytes]) -> Iterator[DataFault]:
    """Images of a split with the very pixels of an earlier one, which may be the same file."""
    first: dict[bytes, ImageRecord] = {}
    for image in data.images:
        earlier = first.setdefault(_digest(image.path, digests), image)
        if earlier is not image:
            yield DataFault(Kind.COPY_IN_SPLIT, str(image.path), detail=f"the same as {earlier.path}")


def _leaks(
    splits: Mapping[str, DetectionData], digests: Mapping[Path, bytes]
) -> tuple[frozenset[Path], list[DataFault]]:
    """Training images that a split which is scored has too, and faults on those in the scored splits."""
    train = train_split(splits)
    trained_on: dict[bytes, list[Path]] = defaultdict(list)
    for image in splits[train].images if train else ():
        trained_on[_digest(image.path, digests)].append(image.path)
    leaks: set[Path] = set()
    faults = []
    for image in (image for split in _scored_splits(splits) for image in splits[split].images):
        same = trained_on.get(_digest(image.path, digests), [])
        leaks.update(same)
        if image.path in same:
            faults.append(DataFault(Kind.IN_TRAINING, str(image.path)))
        elif same:
            faults.append(DataFault(Kind.COPY_IN_TRAINING, str(image.path), detail=f"the same as {same[0]}"))
    return frozenset(leaks), faults


def _digest(path: Path, digests: Mapping[Path, bytes]) -> bytes:
    """What is the same for the same image: its digest, or its path where it was not read."""
    return digests.get(path) or os.fsencode(path)


def _grouped(faults: Iterable[DataFault]) -> dict[Kind, tuple[DataFault, ...]]:
    """Remarks by kind, each once: splits can share images."""
    by_kind: dict[Kind, dict[DataFault, None]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, {})[fault] = None
    return {kind: tuple(by_kind[kind]) for kind in Kind if kind in by_kind}


def _source(image: ImageRecord) -> str:
    return image.source or str(image.path)
