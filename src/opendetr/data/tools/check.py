"""Check a dataset: faults and warnings of single files and objects, and those that only the whole dataset shows."""

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
from opendetr.data.config import DataConfig, Masks
from opendetr.data.faults import Effect, FaultKind
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
from opendetr.data.resizing import resized_shape
from opendetr.data.tools.misreadings import misreadings
from opendetr.distributed import usable_cpus
from opendetr.files import IMAGE_SUFFIXES

# Limits of the ranges of object sizes. A size is the square root of the area of the resized box, in pixels.
SIZE_LIMITS = (8, 16, 32, 96)
_REPEATED_IOU = 0.95
_THIN_RATIO = 20
_LONG_RATIO = 4
_FEW_OBJECTS = 10
_MAX_PAIRS = 1_000_000  # pairs of boxes compared at once; limits the memory for an image of very many boxes
_IMAGES_AT_ONCE = 256
_MAP_KINDS = frozenset(
    {FaultKind.UNREADABLE_MAP, FaultKind.REPEATED_SEGMENT, FaultKind.MISSING_SEGMENT, FaultKind.VOID_MAP}
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Demands:
    """The settings of a model that a dataset is checked against.

    Attributes:
        image_size: short side of the resized images, in pixels.
        max_size: largest long side of the resized images, in pixels.
        side_multiple: both sides are rounded to a multiple of this number of pixels.
        num_queries: number of queries: the model detects at most this many objects in an image.
        masks: the masks that the model is trained on, as in `DataConfig.masks`.
    """

    image_size: int
    max_size: int
    num_queries: int
    side_multiple: int = 1
    masks: Masks = "none"

    @classmethod
    def of(cls, config: DataConfig, num_queries: int) -> Demands:
        """The demands of a model with these settings of its data."""
        return cls(
            image_size=config.image_size,
            max_size=config.max_size,
            side_multiple=config.side_multiple,
            num_queries=num_queries,
            masks=config.masks,
        )


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """The number of images and objects in a split.

    Attributes:
        images: number of images that the reader kept; pixels that cannot be decoded do not reduce it.
        objects: number of objects that the reader kept.
        classes: class name -> number of its objects, in the order of the classes.
        sizes: number of objects in each range of sizes; `SIZE_LIMITS` separates the ranges.
    """

    images: int
    objects: int
    classes: Mapping[str, int]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The result of a check.

    Attributes:
        folder: the dataset.
        format: the format of its annotations; None when it is not recognised.
        splits: the splits as read, without unusable images and objects.
        counts: the number of images and objects in each split.
        faults: kind -> all its faults, in the order of `FaultKind`.
        leaks: training images that an evaluation split contains as well.
    """

    folder: Path
    format: Format | None
    splits: Mapping[str, DetectionData]
    counts: Mapping[str, SplitCounts]
    faults: Mapping[FaultKind, tuple[DataFault, ...]]
    leaks: frozenset[Path]

    def with_effect(self, effect: Effect) -> dict[FaultKind, tuple[DataFault, ...]]:
        """The faults of the kinds with this effect on training."""
        return {kind: faults for kind, faults in self.faults.items() if kind.effect is effect}


def _placed(fault: DataFault, folder: Path) -> DataFault:
    """A fault of the folder as a whole is placed there; its text need not begin with the folder then."""
    if fault.file:
        return fault
    return fault._replace(file=str(folder), detail=fault.detail.removeprefix(f"{folder}: "))


def check_data(
    folder: str | Path, demands: Demands, *, read_images: bool = True, progress: Progress | None = None
) -> DataReport:
    """Find every fault and warning of `FaultKind` in a dataset.

    Args:
        folder: the dataset, in any format.
        demands: the settings of the model to check against.
        read_images: decode every image as well; otherwise only the annotations are checked.
        progress: called with the number of decoded images and the number of all images.

    Never raises for a fault of the data. Memory grows with the annotations, not with the images.
    """
    folder = Path(folder)
    log = FaultLog(raises=False)
    format_, splits = None, dict[str, DetectionData]()
    with log:
        source = _open_source(folder, demands, log)
        format_, splits = source.format, source.read(source.splits)
        if not log.faults:
            choose_splits(splits, folder)
    maps, more = _panoptic_images(folder, splits, demands)
    log.faults += more
    faults = [_placed(fault, folder) for fault in log.faults]
    faults += annotation_faults(folder, splits, demands, draw=read_images)
    faults += _unlisted_images(splits, faults)
    digests: dict[Path, bytes] = {}
    if read_images:
        digests, more = _read_all(splits, progress)
        faults += more
        faults += _maps_faults(maps)
    for data in splits.values():
        faults += _repeated_images(data, digests)
    leaks, more = _leaks(splits, digests)
    return DataReport(
        folder=folder,
        format=format_,
        splits=splits,
        counts={split: _counts(data, demands) for split, data in splits.items()},
        faults=_grouped(faults + more),
        leaks=leaks,
    )


def annotation_faults(
    folder: Path, splits: Mapping[str, DetectionData], demands: Demands, *, draw: bool = False
) -> list[DataFault]:
    """The faults and warnings of splits that their annotations show; no image is decoded.

    Args:
        folder: the dataset.
        splits: the splits by name.
        demands: the settings of the model to check against.
        draw: draw the outlines of the objects as well, which finds outlines around no pixel.
    """
    faults: list[DataFault] = []
    for data in splits.values():
        faults += [fault for entry in data.fault_counts for fault in entry.faults]
        faults += _image_faults(data, demands)
        faults += _object_faults(data, demands)
        faults += _outline_faults(data, draw=draw)
    faults += misreadings(splits.values(), demands.num_queries)
    faults += _class_faults(folder, splits)
    return faults


def _open_source(folder: Path, demands: Demands, log: FaultLog) -> Source:
    """The dataset with the masks that the model is trained on.

    A dataset that has panoptic annotations only is always read with its maps.
    """
    source = recognise(folder, log)
    with_maps = source.panoptic or (demands.masks in ("auto", "panoptic") and find_panoptic(folder))
    return recognise(folder, log, masks="panoptic") if with_maps else source


def _panoptic_images(
    folder: Path, splits: Mapping[str, DetectionData], demands: Demands
) -> tuple[list[ImageRecord], list[DataFault]]:
    """The images that have panoptic maps, and the faults of maps that the splits were read without.

    Faults that stop training are included only for a model that may be trained on the maps.
    """
    if any(data.masks == "panoptic" for data in splits.values()):
        return [image for data in splits.values() for image in data.images], []
    log = FaultLog(raises=False)
    with_maps: dict[str, DetectionData] = {}
    with log:
        if find_panoptic(folder):
            with_maps = read_splits(folder, log, masks="panoptic")
    counts = (entry for data in with_maps.values() for entry in data.fault_counts)
    faults = [fault for entry in counts for fault in entry.faults if fault.kind in _MAP_KINDS]
    if demands.masks in ("auto", "panoptic"):
        faults += log.faults
    return [image for data in with_maps.values() for image in data.images], faults


def _maps_faults(images: Sequence[ImageRecord]) -> Iterator[DataFault]:
    """Differences between panoptic maps and their annotations."""
    with ThreadPoolExecutor(min(8, usable_cpus())) as executor:
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


def _outline_faults(data: DetectionData, *, draw: bool) -> Iterator[DataFault]:
    """Faults of outlines, if the split has any. Outlines around no pixel are found only if they are drawn."""
    if not any(obj.segmentation for image in data.images for obj in image.objects):
        return
    for image in data.images:
        faults = outline_faults(image)
        yield from faults.values()
        for index, obj in enumerate(image.objects if draw else ()):
            if index not in faults and not outline_area(obj, image.height, image.width):
                yield empty_mask(image, obj)


def repeated_boxes(image: ImageRecord) -> Iterator[tuple[ObjectRecord, ObjectRecord]]:
    """Objects whose box repeats that of an earlier object: their IoU is at least 0.95.

    Yields pairs (earlier object, repeating object). An object repeats at most two: one of its class and one of another
    class. Crowd regions are skipped. So are segments of panoptic maps, because they share no pixel.
    """
    if image.panoptic_map is not None:
        return
    objects = [obj for obj in image.objects if not obj.crowd]
    boxes = np.array([obj.clipped_box(image.height, image.width) for obj in objects]).reshape(-1, 4)
    classes = np.array([obj.category_id for obj in objects])
    rows = max(1, _MAX_PAIRS // max(1, len(objects)))
    seen: set[tuple[bool, int]] = set()
    for start in range(0, len(objects), rows):
        block = slice(start, start + rows)
        near = np.triu(_iou(boxes[block], boxes) >= _REPEATED_IOU, start + 1)
        same = classes[block, None] == classes
        for of_class, pairs in ((True, near & same), (False, near & ~same)):
            for second in np.nonzero(pairs.any(0))[0].tolist():
                if (of_class, second) not in seen:
                    seen.add((of_class, second))
                    yield objects[start + int(pairs[:, second].argmax())], objects[second]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes (n, 4) and (m, 4) as x, y, width, height, none of them empty -> (n, m)."""
    top_left = np.maximum(a[:, None, :2], b[:, :2])
    bottom_right = np.minimum((a[:, :2] + a[:, 2:])[:, None], b[:, :2] + b[:, 2:])
    intersection = (bottom_right - top_left).clip(0).prod(-1)
    return intersection / (a[:, 2:].prod(-1)[:, None] + b[:, 2:].prod(-1) - intersection)


def _image_faults(data: DetectionData, demands: Demands) -> Iterator[DataFault]:
    """Warnings about single images."""
    for image in data.images:
        if max(image.height, image.width) > _LONG_RATIO * min(image.height, image.width):
            height, width = _resized(image, demands)
            detail = f"{image.width}x{image.height} pixels become {width}x{height}"
            yield DataFault(FaultKind.LONG_IMAGE, str(image.path), detail=detail)
        num_objects = sum(not obj.crowd for obj in image.objects)
        if num_objects > demands.num_queries:
            detail = f"{num_objects} objects, {demands.num_queries} queries"
            yield DataFault(FaultKind.TOO_MANY_OBJECTS, str(image.path), detail=detail)


def _object_faults(data: DetectionData, demands: Demands) -> Iterator[DataFault]:
    """Warnings about single objects."""
    for image in data.images:
        for obj, (width, height) in zip(image.objects, _resized_sides(image, demands), strict=True):
            _, _, w, h = obj.clipped_box(image.height, image.width)
            if max(w, h) > _THIN_RATIO * min(w, h):
                yield DataFault(FaultKind.THIN_BOX, _source(image), obj.position, f"{w:g}x{h:g} pixels")
            if math.sqrt(width * height) < SIZE_LIMITS[0]:
                detail = f"{w:g}x{h:g} pixels become {width:.1f}x{height:.1f}"
                yield DataFault(FaultKind.SMALL_OBJECT, _source(image), obj.position, detail)
        for earlier, obj in repeated_boxes(image):
            kind = FaultKind.REPEATED_BOX if earlier.category_id == obj.category_id else FaultKind.TWO_CLASSES
            yield DataFault(kind, _source(image), obj.position, f"same box as {earlier.position}")


def _resized(image: ImageRecord, demands: Demands) -> tuple[int, int]:
    """Height and width of the resized image."""
    return resized_shape(image.height, image.width, demands.image_size, demands.max_size, demands.side_multiple)


def _resized_sides(image: ImageRecord, demands: Demands) -> Iterator[tuple[float, float]]:
    """Width and height of each object's box, in pixels of the resized image."""
    height, width = _resized(image, demands)
    for obj in image.objects:
        _, _, w, h = obj.clipped_box(image.height, image.width)
        yield w * width / image.width, h * height / image.height


def train_split(splits: Mapping[str, DetectionData]) -> str | None:
    """The split that training uses when the user names none."""
    return next((name for name in TRAIN_NAMES if name in splits), None)


def _evaluation_splits(splits: Mapping[str, DetectionData]) -> list[str]:
    """Evaluation splits, which must not overlap the training split. "trainval" contains it by definition."""
    return [name for name in splits if name not in TRAIN_NAMES]


def _class_faults(folder: Path, splits: Mapping[str, DetectionData]) -> Iterator[DataFault]:
    if not splits:
        return
    categories = next(iter(splits.values())).categories
    counts = {split: _class_counts(data) for split, data in splits.items()}
    train = counts.get(train_split(splits) or "", Counter())
    evaluation = _evaluation_splits(splits)
    first_like: dict[str, str] = {}
    for name in _used_names(categories):
        place = (str(folder), f"class '{name}'")
        in_evaluation = [split for split in evaluation if counts[split][name]]
        if not any(count[name] for count in counts.values()):
            yield DataFault(FaultKind.UNUSED_CLASS, *place)
        elif not train[name] and in_evaluation:
            yield DataFault(
                FaultKind.UNSEEN_CLASS, *place, f"{counts[in_evaluation[0]][name]} objects in '{in_evaluation[0]}'"
            )
        elif train[name] < _FEW_OBJECTS:
            yield DataFault(FaultKind.RARE_CLASS, *place, f"{train[name]} in the training split")
        other = first_like.setdefault("".join(filter(str.isalnum, name.casefold())) or name, name)
        if other != name:
            yield DataFault(FaultKind.ALIKE_NAMES, *place, f"similar to '{other}'")


def _used_names(categories: Categories) -> list[str]:
    return [name for name, used in zip(categories.names, categories.used, strict=True) if used]


def _class_counts(data: DetectionData) -> Counter[str]:
    ids = Counter(obj.category_id for image in data.images for obj in image.objects)
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


def _unlisted_images(splits: Mapping[str, DetectionData], known: Iterable[DataFault]) -> Iterator[DataFault]:
    """Image files in the folders of the dataset that no annotation names."""
    used = {image.path for data in splits.values() for image in data.images}
    accounted = used | {Path(fault.file) for fault in known}
    for folder in sorted({path.parent for path in used}):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and path not in accounted and not path.is_dir():
                yield DataFault(FaultKind.UNLISTED_IMAGE, str(path))


def _read_all(
    splits: Mapping[str, DetectionData], progress: Progress | None
) -> tuple[dict[Path, bytes], list[DataFault]]:
    """Decode every image once. Returns path -> digest of its pixels, and the faults of the image files."""
    images = (image for data in splits.values() for image in data.images)
    records = list({(image.path, image.height, image.width): image for image in images}.values())
    digests: dict[Path, bytes] = {}
    faults: list[DataFault] = []
    with ThreadPoolExecutor(min(8, usable_cpus())) as executor:
        for start in range(0, len(records), _IMAGES_AT_ONCE):
            chunk = records[start : start + _IMAGES_AT_ONCE]
            for done, (record, (digest, file_faults)) in enumerate(
                zip(chunk, executor.map(_decode, chunk), strict=True), start=start + 1
            ):
                faults += file_faults
                if digest is not None:
                    digests[record.path] = digest
                if progress is not None:
                    progress(done, len(records))
    return digests, faults


def _decode(record: ImageRecord) -> tuple[bytes | None, list[DataFault]]:
    """The digest of an image's pixels, or None when the image is unusable; and the faults of its file."""
    warnings: list[DataFault] = []
    try:
        pixels = read_record(record, warnings.append)
        oriented, animated = image_size(record.path), is_animated(record.path)
    except FaultError as fault:
        return None, [fault.fault]
    present = {FaultKind.TURNED_IMAGE: oriented != pixels.shape[:2], FaultKind.ANIMATED_IMAGE: animated}
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(pixels.shape[0]).encode())
    warnings += [DataFault(kind, str(record.path)) for kind, is_present in present.items() if is_present]
    return digest.digest(), warnings


def _repeated_images(data: DetectionData, digests: Mapping[Path, bytes]) -> Iterator[DataFault]:
    """Images of a split with exactly the pixels of an earlier image. Both may be the same file.

    Entries of the same file with different captions are not repeated images.
    """
    first: dict[bytes, ImageRecord] = {}
    for image in data.images:
        earlier = first.setdefault(_digest(image.path, digests), image)
        if earlier is not image and not (image.path == earlier.path and image.extras != earlier.extras):
            yield DataFault(FaultKind.COPY_IN_SPLIT, str(image.path), detail=f"the same as {earlier.path}")


def _leaks(
    splits: Mapping[str, DetectionData], digests: Mapping[Path, bytes]
) -> tuple[frozenset[Path], list[DataFault]]:
    """Training images that an evaluation split contains as well, and the faults of these images in that split."""
    train = train_split(splits)
    train_images: dict[bytes, list[Path]] = defaultdict(list)
    for image in splits[train].images if train else ():
        train_images[_digest(image.path, digests)].append(image.path)
    leaks: set[Path] = set()
    faults = []
    for image in (image for split in _evaluation_splits(splits) for image in splits[split].images):
        same = train_images.get(_digest(image.path, digests), [])
        leaks.update(same)
        if image.path in same:
            faults.append(DataFault(FaultKind.IN_TRAINING, str(image.path)))
        elif same:
            faults.append(DataFault(FaultKind.COPY_IN_TRAINING, str(image.path), detail=f"the same as {same[0]}"))
    return frozenset(leaks), faults


def _digest(path: Path, digests: Mapping[Path, bytes]) -> bytes:
    """A key that is equal for equal images: the digest of the pixels, or the path of an image that was not decoded."""
    return digests.get(path) or os.fsencode(path)


def _grouped(faults: Iterable[DataFault]) -> dict[FaultKind, tuple[DataFault, ...]]:
    """Faults by kind. Each fault is listed once, although splits can share images."""
    by_kind: dict[FaultKind, dict[DataFault, None]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, {})[fault] = None
    return {kind: tuple(by_kind[kind]) for kind in FaultKind if kind in by_kind}


def _source(image: ImageRecord) -> str:
    return image.source or str(image.path)
