"""Read datasets in the COCO panoptic format: a JSON file, its images, and the panoptic maps as PNG files.

    annotations/panoptic_train.json
    annotations/panoptic_train/000000.png ...      the maps
    train/000000.jpg ...                           the images

Alternatively, a description (`config.yaml`) gives their paths, relative to its own folder:

    train:
      images: ../images/train
      masks: annotations/panoptic_train
      annotations: annotations/panoptic_train.json
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opendetr.categories import Categories
from opendetr.data.faults import FaultKind
from opendetr.data.formats.coco import CocoFile, Row, image_record, is_area, rows_by_id
from opendetr.data.formats.links import find_place
from opendetr.data.formats.sidecar import Box
from opendetr.data.formats.splits import SPLIT_SPELLINGS
from opendetr.data.formats.yolo import USUAL_NAMES, YAML_SUFFIXES, parse_yaml
from opendetr.data.images import ImageFileError, read_map
from opendetr.data.paths import first_folder_holding, inside, is_file, is_inside
from opendetr.data.records import (
    RAISE_FAULTS,
    DataFault,
    DetectionData,
    FaultError,
    FaultLog,
    ImageRecord,
    ObjectRecord,
)
from opendetr.data.sizes import AnnotatedSizes, ImageSizes

PREFIX = "panoptic_"
_SEGMENTS = "segments_info"
_NAMES_TO_LOOK_FOR = 20  # maps that are searched for to find their folder


@dataclass(frozen=True)
class CocoPaths:
    """Paths of a split: its JSON file, and the folders of images and panoptic maps if a description gives them."""

    annotations: Path
    images: Path | None = None
    maps: Path | None = None


def is_panoptic(coco: CocoFile) -> bool:
    """Whether a COCO file contains annotations of panoptic maps."""
    return any(_SEGMENTS in row for row in coco.annotations)


def panoptic_files(folder: Path) -> list[Path]:
    """The panoptic annotation files of a folder that have the standard names of COCO."""
    return sorted((folder / "annotations").glob(f"{PREFIX}*.json")) or sorted(folder.glob(f"{PREFIX}*.json"))


def described_files(source: Path) -> dict[str, CocoPaths]:
    """Split name -> its files, as a description gives them; empty without such a description.

    Args:
        source: the folder of the dataset, or its description.

    Raises DataError when a file that the description names does not exist.
    """
    if is_file(source):
        paths = [source] if source.suffix.lower() in YAML_SUFFIXES else []
    else:
        paths = [source / name for name in USUAL_NAMES if is_file(source / name)]
    return next((files for files in map(_described, paths) if files), {})


def read_panoptic(
    coco: CocoFile,
    images_folder: Path,
    *,
    split: str,
    folder: Path,
    maps_folder: Path | None = None,
    categories: Categories | None = None,
    masks: bool = False,
    log: FaultLog = RAISE_FAULTS,
) -> DetectionData:
    """Read one panoptic file with its images. Every segment is an object, both of things and of stuff.

    Boxes and areas are those of the file. If it has none, they are computed from the map.

    Args:
        coco: the parsed file.
        images_folder: the folder of the images.
        split: the name of the split.
        folder: the folder of the dataset.
        maps_folder: the folder of the maps. When omitted, it is searched for near the file.
        categories: the classes of the whole dataset; those of the file when omitted.
        masks: whether the maps are required. Images without a map are then skipped and counted.
        log: what to do at an unusable image or annotation.

    Raises DataError for invalid panoptic annotations.
    """
    categories = categories or Categories.from_coco(coco.category_rows)
    maps_folder = maps_folder or _maps_folder(coco, folder, required=masks)
    reader = _Reader(maps_folder, set(categories.ids), log, ImageSizes(folder), required=masks)
    rows = rows_by_id(coco, log)
    segments = reader.by_image(coco, rows)
    images = []
    with log:
        reader.sizes.prefetch([inside(images_folder, row.text("file_name"), row.path, row.at) for row in rows.values()])
    for image_id, row in rows.items():
        with log:
            path = inside(images_folder, row.text("file_name"), row.path, row.at)
            if image_id not in segments:
                raise row.fault(
                    FaultKind.MISSING_ANNOTATION, "has no panoptic annotation; add one, or remove the image"
                )
            record = reader.record(row, path, segments[image_id])
            if record is not None:
                images.append(record)
    reader.sizes.save()
    data = DetectionData.from_records(split, folder, categories, images, reader.faults)
    return replace(data, masks="panoptic" if masks else "none")


class _Reader:
    """Reads the annotations of one file; `faults` lists the faults of skipped images."""

    def __init__(self, maps: Path | None, ids: Set[int], log: FaultLog, sizes: ImageSizes, *, required: bool) -> None:
        self.faults: list[DataFault] = []
        self.sizes = sizes
        self._annotated = AnnotatedSizes(sizes, tuple)  # the size of each image is judged on its own
        self._maps = maps
        self._ids = ids
        self._required = required
        self._log = log
        self._num_objects = 0

    def by_image(self, coco: CocoFile, images: Mapping[int, Row]) -> dict[int, Row]:
        """Image id -> its annotation."""
        annotations: dict[int, Row] = {}
        for index, content in enumerate(coco.annotations):
            row = Row(coco.path, "annotations", index, content)
            with self._log:
                image_id = row.integer("image_id")
                if image_id not in images:
                    detail = f"its image, id {image_id}, is not among the images"
                    raise row.fault(FaultKind.UNKNOWN_IMAGE, detail)
                if image_id in annotations:
                    detail = f"the image {image_id} is annotated twice; give it one annotation"
                    raise row.fault(FaultKind.REPEATED_IMAGE_ID, detail)
                annotations[image_id] = row
        return annotations

    def record(self, row: Row, path: Path, annotation: Row) -> ImageRecord | None:
        """The record of an image. If the image or its map is unusable, adds a fault and returns None."""
        segments, map_faults = self._segments(annotation)
        map_path = self._map(annotation, path)
        if map_path is not None and not is_file(map_path):
            map_faults.append(DataFault(FaultKind.UNREADABLE_MAP, str(map_path), "", "no such file"))
            map_path = None
        record = None
        if map_path is not None or not self._required:
            try:
                objects = self._objects(segments, map_path, map_faults)
                record = image_record(row, path, objects, self.faults, self.sizes, self._annotated)
            except ImageFileError as error:
                map_faults.append(error.fault)
        if record is None:
            self.faults += map_faults
            return None
        return replace(record, panoptic_map=map_path, faults=(*record.faults, *map_faults))

    def _map(self, annotation: Row, image: Path) -> Path | None:
        if self._maps is None:
            return None
        name = annotation.text("file_name") if "file_name" in annotation.content else f"{image.stem}.png"
        return inside(self._maps, name, annotation.path, annotation.at)

    def _segments(self, annotation: Row) -> tuple[dict[int, Row], list[DataFault]]:
        """Segment id -> entry of the segment, and the faults of the annotation."""
        rows = annotation.content.get(_SEGMENTS)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise annotation.fault(FaultKind.BAD_VALUE, f"'{_SEGMENTS}' is not a list of segments")
        faults = [] if rows else [DataFault(FaultKind.VOID_MAP, str(annotation.path), annotation.at)]
        segments: dict[int, Row] = {}
        for index, content in enumerate(rows):
            row = Row(annotation.path, f"{annotation.at}.{_SEGMENTS}", index, content)
            with self._log:
                number, category_id = row.integer("id"), row.integer("category_id")
                if category_id not in self._ids:
                    raise row.fault(
                        FaultKind.UNKNOWN_CLASS, f"its category, id {category_id}, is not among the categories"
                    )
                if number in segments:
                    faults.append(DataFault(FaultKind.REPEATED_SEGMENT, str(row.path), row.at, f"segment {number}"))
                else:
                    segments[number] = row
        return segments, faults

    def _objects(
        self, segments: Mapping[int, Row], map_path: Path | None, faults: list[DataFault]
    ) -> list[ObjectRecord]:
        """The segments as objects. Boxes and areas that are missing are computed from the map."""
        incomplete = [row for row in segments.values() if not _is_complete(row)]
        segment_ids = read_map(map_path) if incomplete and map_path else None
        objects = []
        for number, row in segments.items():
            if segment_ids is None or _is_complete(row):
                box = row.box()
                area = float(row.content["area"]) if is_area(row.content.get("area")) else box[2] * box[3]
            elif (measured := _measured(segment_ids, number)) is not None:
                box, area = measured
            else:
                faults.append(DataFault(FaultKind.MISSING_SEGMENT, str(map_path), f"segment {number}"))
                continue
            self._num_objects += 1
            objects.append(
                ObjectRecord(
                    id=self._num_objects,
                    category_id=row.integer("category_id"),
                    box=box,
                    area=area,
                    crowd=row.content.get("iscrowd") == 1,
                    segment=number,
                    at=f"segment {number}",
                )
            )
        return objects


def _is_complete(row: Row) -> bool:
    return row.content.get("bbox") is not None and is_area(row.content.get("area"))


def _measured(segment_ids: np.ndarray, number: int) -> tuple[Box, float] | None:
    """Box (x, y, width, height) and area in pixels of a segment in a map (H, W); None if it has no pixel there."""
    mask = segment_ids == number
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x, y = float(columns[0]), float(rows[0])
    return (x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y), float(mask.sum())


def _maps_folder(coco: CocoFile, folder: Path, *, required: bool) -> Path | None:
    """The folder of the maps of a file. If there is none, returns None, or raises DataError if they are required."""
    names = [row["file_name"] for row in coco.annotations if isinstance(row.get("file_name"), str)]
    names = [name for name in names[:_NAMES_TO_LOOK_FOR] if is_inside(name)]
    stem = coco.path.stem
    candidates = [coco.path.with_suffix(""), folder / stem, folder / "annotations" / stem, coco.path.parent]
    maps_folder = first_folder_holding(names, candidates)
    if maps_folder is None and required:
        detail = f"its maps ({names[0] if names else 'PNG files'}, ...) are missing; put them into {candidates[0]}"
        raise FaultError(FaultKind.WRONG_STRUCTURE, coco.path, "", detail)
    return maps_folder


def _described(description: Path) -> dict[str, CocoPaths]:
    try:
        content = parse_yaml(description)
    except FaultError:
        return {}  # the reader of YOLO descriptions reports the fault
    files = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict) and isinstance(value.get("annotations"), str):
            paths = {name: _stated(value, name, description, key) for name in ("annotations", "images", "masks")}
            annotations = paths["annotations"]
            assert annotations is not None
            files[SPLIT_SPELLINGS.get(str(key).lower(), str(key))] = CocoPaths(
                annotations, paths["images"], paths["masks"]
            )
    return files


def _stated(value: Mapping[str, Any], name: str, description: Path, split: str) -> Path | None:
    """The path that a description gives for `name`; None if it gives none."""
    entry = value.get(name)
    if not isinstance(entry, str) or not entry.strip():
        return None
    place = find_place(entry, [description.parent], description.parent)
    if place is None:
        detail = f"there is no {entry!r} in {description.parent}; correct or remove the entry"
        raise FaultError(FaultKind.WRONG_STRUCTURE, description, f"'{split}.{name}'", detail)
    return place.path.resolve() if ".." in place.path.parts else place.path
