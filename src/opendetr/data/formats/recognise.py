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
from opendetr.data.formats.annotated import AnnotatedFolder, read_annotated
from opendetr.data.formats.captions import is_captioned, read_captions, with_sources
from opendetr.data.formats.coco import CocoFile, NotCocoError, parse_coco, read_coco
from opendetr.data.formats.coco_names import with_found_names
from opendetr.data.formats.coco_panoptic import (
    PREFIX,
    CocoPaths,
    described_files,
    is_panoptic,
    panoptic_files,
    read_panoptic,
)
from opendetr.data.formats.coco_videos import VIDEO, has_videos, read_videos, video_file_names
from opendetr.data.formats.cvat import parse_cvat
from opendetr.data.formats.labelme import parse_labelme
from opendetr.data.formats.lookup import Lookup
from opendetr.data.formats.mot import find_videos, parse_mot, read_mot
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS, chance, file_split, path_split
from opendetr.data.formats.survey import JsonKind, json_files, json_kind, unknown_format
from opendetr.data.formats.table import TABLE_SUFFIXES, find_tables, is_table, parse_tables
from opendetr.data.formats.via import is_via_file, parse_via
from opendetr.data.formats.voc import find_annotations, is_voc, parse_voc, read_voc
from opendetr.data.formats.yolo import (
    DARKNET_SUFFIX,
    YAML_SUFFIXES,
    descriptions_in,
    find_description,
    has_labels,
    is_bare_folder,
    parse_yolo,
    read_yolo,
    the_description,
)
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
from opendetr.data.text import root_tag

TRAIN_NAMES = ("train", "trainval", SINGLE_SPLIT)
VAL_NAMES = ("val",)
_NAMES_TO_LOOK_FOR = 20  # images of a COCO file that are searched for to find its folder of images
_EXPECTED = (
    "expected COCO, Pascal VOC, YOLO, Darknet, MOTChallenge, CVAT XML, labelme, VIA, Open Images, or a CSV table of "
    "images and boxes, beside the images"
)
_MAX_WRAPPERS = 3  # folders around a dataset, such as an archive unpacked into a folder of its name


class Format(StrEnum):
    """The annotation format of a dataset."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"
    TABLE = "csv"
    MOT = "mot"
    CVAT = "cvat"
    LABELME = "labelme"
    VIA = "via"


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
    """All splits of a dataset, in any format of `Format`.

    Args:
        folder: the dataset, or the file that annotates or describes it.
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
    """A dataset given by its folder, without a file that describes it.

    The usual layouts come first, then a dataset in a folder of its own inside, then annotation files of any name in any
    folders.
    """
    lookup = Lookup(folder)
    source = _usual_source(folder, log)
    if source is None and not any(_kind_of(folder / name) in _READERS for name in sorted(lookup.names_in(folder))):
        source = _inner_source(folder, log)
    source = source or _source_of_files(lookup, log)
    if source is None:
        raise unknown_format(lookup, _EXPECTED)
    return source


def _usual_source(folder: Path, log: FaultLog) -> Source | None:
    """A dataset in a usual layout; None for other folders. Raises DataError when a file of the layout is broken."""
    if find_videos(folder):
        return _mot_source(folder, log)
    annotations = find_annotations(folder)
    if annotations and is_voc(annotations[0]):
        return _voc_source(folder, log)
    files = _usual_coco_files(folder)
    if not files and (find_description(folder) or is_bare_folder(folder)):
        return _yolo_source(folder, log)
    tables = {} if files else find_tables(folder)
    files = files or ([] if tables else _loose_coco_files(folder))
    if files:
        return _coco_source(folder, {name: CocoPaths(path) for name, path in _named_splits(files, folder).items()}, log)
    return _table_source(Lookup(folder), tables.items(), log) if tables else None


def _inner_source(folder: Path, log: FaultLog, depth: int = 0) -> Source | None:
    """The dataset in a usual layout inside a folder that has no other; None if there is none.

    Raises DataError when there are several.
    """
    inner = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__")) and path.is_dir()]
    found: list[tuple[Path, Source]] = []
    for path in inner:
        if path_split(path.name) is None and Lookup(path).has_images():
            source = _usual_source(path, log)
            if source is not None:
                found.append((path, source))
    if len(found) > 1:
        names = ", ".join(path.name for path, _ in found)
        raise DataError(f"{folder}: contains several datasets, {names}; name the one to use")
    if found:
        return found[0][1]
    if len(inner) == 1 and depth < _MAX_WRAPPERS and path_split(inner[0].name) is None:
        return _inner_source(inner[0], log, depth + 1)
    return None


def _source_of_files(lookup: Lookup, log: FaultLog) -> Source | None:
    """A dataset by its annotation files, which may have any names and lie in any folders; None if it has none."""
    description = the_description(lookup.folder, descriptions_in(lookup))
    if description:
        return _yolo_source(description, log, lookup.folder)
    files: dict[str, list[Path]] = {}
    for path in lookup.files(".json", ".xml", *TABLE_SUFFIXES):
        files.setdefault(_kind_of(path), []).append(path)
    for kind, source in _READERS.items():
        if kind in files:
            return source(lookup, files[kind], log)
    return _yolo_source(lookup.folder, log) if has_labels(lookup) else None


def _kind_of(path: Path) -> str:
    """What a file is, as a key of `_READERS`; other texts for other files."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return json_kind(path)
    if suffix == ".xml":
        return f"<{root_tag(path)}>"
    if suffix in TABLE_SUFFIXES:
        return JsonKind.VIA if is_via_file(path) else Format.TABLE if is_table(path) else ""
    return ""


def _source_of_file(path: Path, log: FaultLog) -> Source:
    """A dataset given by the file that describes or annotates it."""
    suffix = path.suffix.lower()
    if suffix in (*YAML_SUFFIXES, DARKNET_SUFFIX, ".txt"):
        return _yolo_source(path, log, path.parent)
    lookup = Lookup(_dataset_of(path))
    reader = _READERS.get(_kind_of(path))
    if reader is None:  # the reader of the suffix names the fault
        reader = {".json": _coco_source_of_files, ".xml": _voc_source_of_files}.get(suffix, _table_source_of_files)
    return reader(lookup, [path], log)


def _dataset_of(path: Path) -> Path:
    """The folder of the dataset that an annotation file belongs to: the nearest one around it with images."""
    folders = [path.parent, path.parent.parent]
    return next((folder for folder in folders if Lookup(folder).has_images()), path.parent)


def _yolo_source(source: Path, log: FaultLog, folder: Path | None = None) -> Source:
    yolo = parse_yolo(source, log, folder)
    return Source(
        Format.YOLO, tuple(yolo.splits), lambda splits: {split: read_yolo(yolo, split, log) for split in splits}
    )


def _annotated_source(to: Format, data: AnnotatedFolder, log: FaultLog) -> Source:
    return Source(to, data.splits, lambda splits: {split: read_annotated(data, split, log) for split in splits})


def _table_source(lookup: Lookup, files: Iterable[tuple[str, Path]], log: FaultLog) -> Source:
    return _annotated_source(Format.TABLE, parse_tables(lookup, files, log), log)


def _cvat_source(lookup: Lookup, files: Sequence[Path], log: FaultLog) -> Source:
    return _annotated_source(Format.CVAT, parse_cvat(lookup, files, log), log)


def _via_source(lookup: Lookup, files: Sequence[Path], log: FaultLog) -> Source:
    return _annotated_source(Format.VIA, parse_via(lookup, files, log), log)


def _labelme_source(lookup: Lookup, files: Sequence[Path], log: FaultLog) -> Source:
    return _annotated_source(Format.LABELME, parse_labelme(lookup, files, log), log)


def _voc_source_of_files(lookup: Lookup, files: Sequence[Path], log: FaultLog) -> Source:
    return _voc_source(lookup.folder, log, files)


def _table_source_of_files(lookup: Lookup, files: Sequence[Path], log: FaultLog) -> Source:
    splits = [file_split(path, lookup.folder) or SINGLE_SPLIT for path in files]
    return _table_source(lookup, zip(splits, files, strict=True), log)


def _coco_source_of_files(lookup: Lookup, files: Sequence[Path], log: FaultLog) -> Source:
    named = _named_splits(_only_coco(list(files)) if len(files) > 1 else files, lookup.folder)
    return _coco_source(lookup.folder, {name: CocoPaths(path) for name, path in named.items()}, log)


# What files of any name are, in the order of preference -> the reader of all such files.
_READERS: dict[str, Callable[[Lookup, Sequence[Path], FaultLog], Source]] = {
    JsonKind.COCO: _coco_source_of_files,
    "<annotations>": _cvat_source,
    "<annotation>": _voc_source_of_files,
    JsonKind.VIA: _via_source,
    Format.TABLE: _table_source_of_files,
    JsonKind.LABELME: _labelme_source,
}


def _mot_source(folder: Path, log: FaultLog) -> Source:
    mot = parse_mot(folder, log)
    return Source(Format.MOT, tuple(mot.splits), lambda splits: {split: read_mot(mot, split, log) for split in splits})


def _voc_source(folder: Path, log: FaultLog, files: Sequence[Path] = ()) -> Source:
    voc = parse_voc(folder, log, files)
    return Source(Format.VOC, tuple(voc.splits), lambda splits: {split: read_voc(voc, split, log) for split in splits})


def _coco_source(folder: Path, files: Mapping[str, CocoPaths], log: FaultLog, *, masks: bool = False) -> Source:
    def read(splits: tuple[str, ...]) -> dict[str, DetectionData]:
        parsed = {}
        for split in splits:
            with log:
                coco = parse_coco(files[split].annotations)
                parsed[split] = with_sources(coco, [files[split].images or folder, folder / "images"])
        categories = _common_categories(parsed.values())
        lookup = Lookup(folder)
        data = {}
        for split, coco in parsed.items():
            with log:
                images = files[split].images or _images_folder(coco, split, lookup)
                renamed: list[DataFault] = []
                coco, images = with_found_names(coco, images, lookup, renamed, log)  # noqa: PLW2901
                reader: Callable[..., DetectionData] = read_coco
                if is_panoptic(coco):
                    reader = partial(read_panoptic, maps_folder=files[split].maps, masks=masks)
                elif is_captioned(coco):
                    reader = read_captions
                elif has_videos(coco):
                    reader = read_videos
                read_split = reader(coco, images, split=split, folder=folder, categories=categories, log=log)
                data[split] = replace(read_split, fault_counts=read_split.fault_counts + count_faults(renamed))
        return data

    panoptic = any(paths.maps or paths.annotations.name.startswith(PREFIX) for paths in files.values())
    return Source(Format.COCO, tuple(files), read, panoptic)


def _usual_coco_files(folder: Path) -> list[Path]:
    """COCO files with the standard names, or with those of Roboflow."""
    return sorted((folder / "annotations").glob("instances_*.json")) + sorted(folder.glob("*/_annotations.coco.json"))


def _loose_coco_files(folder: Path) -> list[Path]:
    """COCO files of any name; panoptic ones only if there are no others."""
    paths = json_files(sorted((folder / "annotations").glob("*.json")) + sorted(folder.glob("*.json")), JsonKind.COCO)
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
    return file_split(path, folder) or (path.parent.name if in_split_folder else _stem(path))


def _stem(path: Path) -> str:
    """The name of a file without its suffix and the prefix that COCO puts before the name of the split."""
    return path.stem.removeprefix("instances_").removeprefix(PREFIX)


def _images_folder(coco: CocoFile, split: str, lookup: Lookup) -> Path:
    """The folder with the images of a COCO file. Raises DataError that names the searched folders.

    It is the dataset itself if the images have to be looked for by the ends of their names.
    """
    folder = lookup.folder
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
    if images_folder is None and any(lookup.image(name, [], coco.path) for name in names):
        return folder
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
