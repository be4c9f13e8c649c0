"""Open a dataset folder: recognise its format, and find or create its splits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.data.config import Masks
from opendetr.data.crowds import crowds_as_objects
from opendetr.data.faults import Effect, count_noun
from opendetr.data.formats.captions import is_captioned, read_captions, with_sources
from opendetr.data.formats.coco import CocoFile, NotCocoError, parse_coco, read_coco
from opendetr.data.formats.coco_panoptic import (
    PREFIX,
    CocoPaths,
    described_files,
    is_panoptic,
    panoptic_files,
    read_panoptic,
)
from opendetr.data.formats.coco_videos import VIDEO, has_videos, read_videos, video_file_names
from opendetr.data.formats.mot import find_videos, parse_mot, read_mot
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS, chance, usual_split
from opendetr.data.formats.table import TABLE_SUFFIXES, find_tables, parse_tables, read_table
from opendetr.data.formats.voc import parse_voc, read_voc
from opendetr.data.formats.yolo import find_description, is_bare_folder, parse_yolo, read_yolo
from opendetr.data.masks import with_outlines
from opendetr.data.paths import first_folder_holding, is_file, is_inside, require_folder
from opendetr.data.records import (
    RAISE_FAULTS,
    DataError,
    DataFault,
    DetectionData,
    FaultError,
    FaultKind,
    FaultLog,
    ImageRecord,
    count_faults,
    unknown_split,
)

TRAIN_NAMES = ("train", "trainval", SINGLE_SPLIT)
VAL_NAMES = ("val",)
_NAMES_TO_LOOK_FOR = 20  # images of a COCO file that are searched for to find its folder of images
_EXPECTED = (
    "expected COCO (annotations/instances_*.json, or a JSON file next to the images), Pascal VOC (Annotations/*.xml "
    "and JPEGImages/), YOLO (data.yaml, or images/ and labels/*.txt), MOTChallenge (videos with gt/gt.txt "
    "and img1/ or a video file) or a CSV table of images and boxes"
)


class Format(StrEnum):
    """The annotation format of a dataset."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"
    TABLE = "csv"
    MOT = "mot"


@dataclass(frozen=True)
class Source:
    """A dataset whose format is known.

    Attributes:
        format: the format.
        splits: the names of its splits.
        read: names of splits -> these splits, all with the same classes.
        panoptic: whether its objects are the segments of panoptic maps.
    """

    format: Format
    splits: tuple[str, ...]
    read: Callable[[tuple[str, ...]], dict[str, DetectionData]]
    panoptic: bool = False


def open_data(
    folder: str | Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    train_split: str | None = None,
    val_split: str | None = None,
    strict: bool = False,
    allow: Collection[str] = (),
    masks: Masks = "none",
) -> dict[str, DetectionData]:
    """All splits of a dataset, in COCO, Pascal VOC, YOLO or MOTChallenge format, or as a table.

    Args:
        folder: the dataset, or the YAML file or CSV table that describes it.
        val_fraction: fraction of the training images that becomes "val" if the dataset has no such split.
        seed: determines these images, together with the file names. The order of the files has no influence.
        train_split: the split to return as "train"; by default "train", "trainval" or the only split.
        val_split: the split to return as "val".
        strict: raise an error for faults such as boxes with NaN and empty image files, instead of skipping them.
        allow: kinds of faults to accept, as in `DataConfig.allow`; only "crowd_only" changes what is read.
        masks: the masks to read, as in `DataConfig.masks`.

    Returns the splits by name; they always include "train" and "val". Raises DataError with one line for any fault of
    the folder.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"the fraction of images for validation is {val_fraction}; choose one between 0 and 1")
    source = recognise(folder, masks=masks)
    data = _with_allowed(source.read(source.splits), allow)
    chosen = choose_splits(
        data, folder, val_fraction=val_fraction, seed=seed, train_split=train_split, val_split=val_split
    )
    if strict:
        for part in data.values():
            part.require_no_faults()
    return chosen


def choose_splits(
    data: Mapping[str, DetectionData],
    folder: str | Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    train_split: str | None = None,
    val_split: str | None = None,
    annotated: bool = True,
) -> dict[str, DetectionData]:
    """The splits that `open_data` returns, made from all splits of a dataset as read. Raises the same errors.

    With `annotated`, the splits must have objects.
    """
    train = data[_chosen(train_split, TRAIN_NAMES, tuple(data), Path(folder), "train")]
    if val_split is None and not set(VAL_NAMES) & data.keys():
        train, val = _divide(train, val_fraction, seed)
    else:
        val = data[_chosen(val_split, VAL_NAMES, tuple(data), Path(folder), "val")]
    others = {name: part for name, part in data.items() if name not in ("train", "val", SINGLE_SPLIT)}
    if annotated:
        for part in (train, val):
            _require_objects(part)
    return {"train": train, "val": _with_overlap(val, train), **others}


def open_split(
    folder: str | Path,
    split: str,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    allow: Collection[str] = (),
    masks: Masks = "none",
) -> DetectionData:
    """One split of a dataset folder. Other splits are not read unless they are needed.

    A dataset without splits has the one split "all". If the folder has no "train" or "val", it is created as in
    `open_data`. The other arguments and the errors are those of `open_data`.
    """
    source = recognise(folder, masks=masks)
    if split in source.splits and not (split == "train" and "val" not in source.splits):
        data = _with_allowed(source.read((split,)), allow)[split]
        _require_objects(data)
        if strict:
            data.require_no_faults()
        return data
    if split not in ("train", "val") or set(TRAIN_NAMES).isdisjoint(source.splits):
        raise unknown_split(folder, split, source.splits)
    return open_data(folder, val_fraction=val_fraction, seed=seed, strict=strict, allow=allow, masks=masks)[split]


def _with_allowed(splits: dict[str, DetectionData], allow: Collection[str]) -> dict[str, DetectionData]:
    """The splits, with crowd regions as objects if the user allows it."""
    return crowds_as_objects(splits) if FaultKind.CROWD_ONLY in allow else splits


def read_splits(folder: str | Path, log: FaultLog = RAISE_FAULTS, *, masks: Masks = "none") -> dict[str, DetectionData]:
    """All splits of a dataset folder as read: none is selected, created or required to have objects.

    Errors that `open_data` would raise go to the log. A split that cannot be read at all is skipped.
    """
    with log:
        source = recognise(folder, log, masks=masks)
        return source.read(source.splits)
    return {}


def recognise(folder: str | Path, log: FaultLog = RAISE_FAULTS, *, masks: Masks = "none") -> Source:
    """Recognise the format of a dataset by its files.

    Descriptions and files with the standard names of a format take precedence over other files.

    Args:
        folder: the dataset, or the file that describes it.
        log: what to do at a fault.
        masks: the masks to read, as in `DataConfig.masks`. With "none", panoptic annotations are read only if the
            dataset has no others.

    Raises DataError when the format is unknown, or when the dataset has no such masks.
    """
    folder = Path(folder)
    require_folder(folder)
    panoptic = find_panoptic(folder) if masks in ("auto", "panoptic") else {}
    if panoptic:
        return _coco_source(folder if folder.is_dir() else folder.parent, panoptic, log, masks=True)
    if masks == "panoptic":
        raise DataError(
            f"{folder}: contains no panoptic annotations (annotations/{PREFIX}train.json and its maps); set data.masks "
            "to auto to read outlines"
        )
    source = _without_maps(folder, log)
    return source if masks == "none" else replace(source, read=lambda splits: _with_outlines(source, splits))


def find_panoptic(folder: str | Path) -> dict[str, CocoPaths]:
    """Split name -> the panoptic annotations of a dataset; empty if it has none."""
    folder = Path(folder)
    described = described_files(folder)
    if described:
        return {split: paths for split, paths in described.items() if paths.maps is not None}
    files = panoptic_files(folder) if folder.is_dir() else []
    return {split: CocoPaths(path) for split, path in _named_splits(files, folder).items()}


def _with_outlines(source: Source, splits: tuple[str, ...]) -> dict[str, DetectionData]:
    return {name: with_outlines(data) for name, data in source.read(splits).items()}


def _without_maps(folder: Path, log: FaultLog) -> Source:
    """The dataset as boxes, with outlines if it has any."""
    described = described_files(folder)
    if described:
        return _coco_source(folder if folder.is_dir() else folder.parent, described, log)
    return _source_of_file(folder, log) if is_file(folder) else _source_of_folder(folder, log)


def _source_of_folder(folder: Path, log: FaultLog) -> Source:
    """A dataset given by its folder, without a file that describes it."""
    if find_videos(folder):
        return _mot_source(folder, log)
    if (folder / "Annotations").is_dir() and any((folder / "Annotations").glob("*.xml")):
        return _voc_source(folder, log)
    files = _usual_coco_files(folder)
    if not files and (find_description(folder) or is_bare_folder(folder)):
        return _yolo_source(folder, log)
    tables = {} if files else find_tables(folder)
    files = files or ([] if tables else _loose_coco_files(folder))
    if files:
        return _coco_source(folder, {name: CocoPaths(path) for name, path in _named_splits(files, folder).items()}, log)
    if not tables and (others := sorted(folder.glob("*.csv"))):
        tables = {SINGLE_SPLIT: others[0]}  # the error of its reader names the missing columns
    if not tables:
        raise FaultError(FaultKind.NO_DATA, folder, "", f"contains no annotations; {_EXPECTED}")
    return _table_source(folder, tables, log)


def _source_of_file(path: Path, log: FaultLog) -> Source:
    """A dataset given by the file that describes it."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _table_source(path.parent, {SINGLE_SPLIT: path}, log)
    return _yolo_source(path, log)


def _yolo_source(source: Path, log: FaultLog) -> Source:
    yolo = parse_yolo(source, log)
    return Source(
        Format.YOLO, tuple(yolo.splits), lambda splits: {split: read_yolo(yolo, split, log) for split in splits}
    )


def _table_source(folder: Path, files: Mapping[str, Path], log: FaultLog) -> Source:
    table = parse_tables(folder, files, log)
    return Source(
        Format.TABLE, tuple(table.splits), lambda splits: {split: read_table(table, split, log) for split in splits}
    )


def _mot_source(folder: Path, log: FaultLog) -> Source:
    mot = parse_mot(folder, log)
    return Source(Format.MOT, tuple(mot.splits), lambda splits: {split: read_mot(mot, split, log) for split in splits})


def _voc_source(folder: Path, log: FaultLog) -> Source:
    voc = parse_voc(folder, log)
    return Source(Format.VOC, tuple(voc.splits), lambda splits: {split: read_voc(voc, split, log) for split in splits})


def _coco_source(folder: Path, files: Mapping[str, CocoPaths], log: FaultLog, *, masks: bool = False) -> Source:
    def read(splits: tuple[str, ...]) -> dict[str, DetectionData]:
        parsed = {}
        for split in splits:
            with log:
                coco = parse_coco(files[split].annotations)
                parsed[split] = with_sources(coco, [files[split].images or folder, folder / "images"])
        categories = _common_categories(parsed.values())
        data = {}
        for split, coco in parsed.items():
            with log:
                images = files[split].images or _images_folder(coco, split, folder)
                reader: Callable[..., DetectionData] = read_coco
                if is_panoptic(coco):
                    reader = partial(read_panoptic, maps_folder=files[split].maps, masks=masks)
                elif is_captioned(coco):
                    reader = read_captions
                elif has_videos(coco):
                    reader = read_videos
                data[split] = reader(coco, images, split=split, folder=folder, categories=categories, log=log)
        return data

    panoptic = any(paths.maps or paths.annotations.name.startswith(PREFIX) for paths in files.values())
    return Source(Format.COCO, tuple(files), read, panoptic)


def _usual_coco_files(folder: Path) -> list[Path]:
    """COCO files with the standard names, or with those of Roboflow."""
    return sorted((folder / "annotations").glob("instances_*.json")) + sorted(folder.glob("*/_annotations.coco.json"))


def _loose_coco_files(folder: Path) -> list[Path]:
    """COCO files of any name; panoptic ones only if there are no others."""
    paths = sorted((folder / "annotations").glob("*.json")) + sorted(folder.glob("*.json"))
    files = paths if len(paths) == 1 else _only_coco(paths)
    return [path for path in files if not path.name.startswith(PREFIX)] or files


def _named_splits(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Split name -> annotation file."""
    names = [_split_name(path, folder) for path in paths]
    if len(names) == 1 and names[0] not in SPLIT_SPELLINGS.values():
        names = [SINGLE_SPLIT]
    return {name if names.count(name) == 1 else path.stem: path for name, path in zip(names, paths, strict=True)}


def _only_coco(paths: list[Path]) -> list[Path]:
    """The COCO files among several JSON files. Raises the error of the first file if there are none."""
    kept, errors = [], []
    for path in paths:
        try:
            parse_coco(path)
        except NotCocoError as error:
            errors.append(error)
        else:
            kept.append(path)
    if errors and not kept:
        raise errors[0]
    return kept


def _split_name(path: Path, folder: Path) -> str:
    """The split of a COCO file.

    For example "train" for instances_train2017.json, "val" for valid/_annotations.coco.json, "cells" for cells.json.
    """
    in_split_folder = path.name.startswith("_annotations") and path.parent != folder
    name = path.parent.name if in_split_folder else _stem(path)
    return usual_split(name)


def _stem(path: Path) -> str:
    """The name of a file without its suffix and the prefix that COCO puts before the name of the split."""
    return path.stem.removeprefix("instances_").removeprefix(PREFIX)


def _images_folder(coco: CocoFile, split: str, folder: Path) -> Path:
    """The folder with the images of a COCO file. Raises DataError that names the searched folders."""
    stem = _stem(coco.path)
    spellings = (stem, split, *(word for word, meaning in SPLIT_SPELLINGS.items() if meaning == split))
    named = [base / name for base in (folder, folder / "images") for name in dict.fromkeys(spellings)]
    candidates = [*named, coco.path.parent, coco.path.parent / "images", folder / "images", folder / "videos", folder]
    names = coco.file_names[:_NAMES_TO_LOOK_FOR] + (video_file_names(coco) if has_videos(coco) else [])
    if not coco.images:
        raise FaultError(FaultKind.NO_DATA, coco.path, "", "contains no images")
    images_folder = first_folder_holding([name for name in names if is_inside(name)], candidates)
    if images_folder is None and not any(map(is_inside, names)):
        return folder  # the reader reports the faults of the names
    if images_folder is None:
        searched = ", ".join(str(path) for path in dict.fromkeys(candidates) if path.is_dir())
        detail = f"its images ({names[0]}, ...) are missing; put them into one of {searched}"
        raise FaultError(FaultKind.MISSING_IMAGE, coco.path, "", detail)
    return images_folder


def _common_categories(files: Iterable[CocoFile]) -> Categories:
    """The classes of all files, in the order of their ids. Raises DataError when one id has two names."""
    rows: dict[int, dict[str, Any]] = {}
    for coco in files:
        for row in coco.category_rows:
            first = rows.setdefault(row["id"], row)
            if first["name"] != row["name"]:
                names = f"'{row['name']}' here and '{first['name']}' in another split"
                detail = f"category {row['id']} is {names}; give it one name"
                raise FaultError(FaultKind.BAD_CLASSES, coco.path, "", detail)
    return Categories.from_coco(rows.values())


def _chosen(wanted: str | None, usual: tuple[str, ...], splits: tuple[str, ...], folder: Path, role: str) -> str:
    candidates = usual if wanted is None else (wanted,)
    chosen = next((name for name in candidates if name in splits), None)
    if chosen is None:
        if wanted is not None:
            raise unknown_split(folder, wanted, splits)
        raise DataError(
            f"{folder}: no split to use as '{role}'; it has {', '.join(splits)}: name one of them as the {role} split"
        )
    return chosen


def _divide(data: DetectionData, val_fraction: float, seed: int) -> tuple[DetectionData, DetectionData]:
    """Divide the images into training and validation images, by a hash of seed and file name.

    The frames of a video stay together, because consecutive frames are nearly the same image. So do all entries of an
    image file, such as its captions.
    """
    groups: dict[str, list[ImageRecord]] = {}
    for image in data.images:
        groups.setdefault(image.extras.get(VIDEO) or data.file_name(image), []).append(image)

    def rank(name: str) -> tuple[bytes, str]:
        return chance(seed, Path(name).name), name

    num_val = max(1, round(len(groups) * val_fraction))
    if num_val >= len(groups):
        noun = "video" if any(VIDEO in image.extras for image in data.images) else "image"
        raise DataError(
            f"{data.folder}: too few for a validation split ({count_noun(len(groups), noun)}); name a split"
        )
    chosen = {image.id for name in sorted(groups, key=rank)[:num_val] for image in groups[name]}
    val = data.subset([image for image in data.images if image.id in chosen], "val")
    train = data.subset([image for image in data.images if image.id not in chosen], "train")
    image_kinds = {fault.kind for image in data.images for fault in image.faults}
    without_image = tuple(entry for entry in data.fault_counts if entry.kind not in image_kinds)
    return replace(train, fault_counts=without_image + train.fault_counts), val


def _with_overlap(val: DetectionData, train: DetectionData) -> DetectionData:
    """Validation data, with a warning if the training split contains some of its images."""
    train_paths = {image.path for image in train.images}
    shared = count_faults(
        DataFault(FaultKind.IN_TRAINING, str(image.path)) for image in val.images if image.path in train_paths
    )
    return replace(val, fault_counts=val.fault_counts + shared)


def _require_objects(data: DetectionData) -> None:
    """Raise FaultError unless the split has an object or an answer to learn, or to evaluate."""
    if any("answer" in image.extras for image in data.images):
        return
    if data.num_objects and all(thing.crowd for image in data.images for thing in image.objects):
        detail = (
            f"all {data.num_objects} objects are crowd regions, which cannot be learned; set iscrowd to 0, or read "
            f"them as objects with --allow {FaultKind.CROWD_ONLY}"
        )
        raise FaultError(FaultKind.CROWD_ONLY, data.folder, f"split '{data.split}'", detail)
    if not data.num_objects:
        skipped = (entry for entry in data.fault_counts if entry.kind.effect is Effect.SKIPS)
        reasons = (f"; {entry}: {entry.faults[0].detail}".removesuffix(": ") for entry in skipped)
        detail = f"no annotations: {len(data)} images and no object{''.join(reasons)}"
        raise FaultError(FaultKind.NO_LABELS, data.folder, f"split '{data.split}'", detail)
