"""Opening a dataset folder: its format is recognised by looking, its splits are found or made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.data.config import Masks
from opendetr.data.faults import Effect
from opendetr.data.formats.coco import CocoFile, NotCocoError, parse_coco, read_coco
from opendetr.data.formats.coco_panoptic import (
    PREFIX,
    CocoPaths,
    described_files,
    is_panoptic,
    panoptic_files,
    read_panoptic,
)
from opendetr.data.formats.splits import ALL, SPELLINGS, chance, usual_split
from opendetr.data.formats.table import TABLE_SUFFIXES, find_tables, parse_tables, read_table
from opendetr.data.formats.voc import parse_voc, read_voc
from opendetr.data.formats.yolo import find_description, is_bare_folder, parse_yolo, read_yolo
from opendetr.data.masks import with_outlines
from opendetr.data.paths import first_folder_holding, is_file, is_inside, require_folder
from opendetr.data.records import (
    STOP_AT_FAULTS,
    DataError,
    DataFault,
    DetectionData,
    FaultError,
    FaultLog,
    ImageRecord,
    Kind,
    count_findings,
)

TRAIN_NAMES = ("train", "trainval", ALL)
VAL_NAMES = ("val",)
_NAMES_TO_LOOK_FOR = 20  # images of a COCO file that tell which folder it means
_EXPECTED = (
    "expected COCO (annotations/instances_*.json, or a JSON file beside the images), Pascal VOC (Annotations/*.xml and "
    "JPEGImages/), YOLO (data.yaml, or images/ and labels/*.txt) or a CSV table of images and boxes"
)


class Format(StrEnum):
    """How a dataset is written down."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"
    TABLE = "csv"


@dataclass(frozen=True)
class Source:
    """A dataset whose format is known.

    Attributes:
        format: what it is.
        splits: the names of its splits.
        read: gives some of them, with common classes.
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
    masks: Masks = "none",
) -> dict[str, DetectionData]:
    """All splits of a dataset, in COCO, Pascal VOC or YOLO format, or as a table.

    Args:
        folder: the dataset; or the YAML file or CSV table that describes it.
        val_fraction: share of the training images that becomes "val" where the dataset has no such split.
        seed: chooses those images; with the names of the files alone, so that their order does not matter.
        train_split: the split to give as "train"; else "train", "trainval" or the only one there is.
        val_split: the split to give as "val".
        strict: refuse faults such as boxes with NaN and image files of zero bytes instead of skipping them.
        masks: what masks to read, as `DataConfig.masks`.

    Returns the splits by name; "train" and "val" are always among them. Raises DataError, one line, for whatever is
    wrong with the folder.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"the share of images for validation is {val_fraction}; give one between 0 and 1")
    source = recognise(folder, masks=masks)
    data = source.read(source.splits)
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
) -> dict[str, DetectionData]:
    """What `open_data` gives, made of all splits of a dataset as they stand. Raises DataError as it does."""
    train = data[_chosen(train_split, TRAIN_NAMES, tuple(data), Path(folder), "train")]
    if val_split is None and not set(VAL_NAMES) & data.keys():
        train, val = _divided(train, val_fraction, seed)
    else:
        val = data[_chosen(val_split, VAL_NAMES, tuple(data), Path(folder), "val")]
    others = {name: part for name, part in data.items() if name not in ("train", "val", ALL)}
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
    masks: Masks = "none",
) -> DetectionData:
    """One split of a dataset folder, other splits unread where they can be; "all" is the whole of a set without any.

    A "train" or "val" that the folder does not hold is made as `open_data` makes it. The other arguments are its own.
    Raises DataError.
    """
    source = recognise(folder, masks=masks)
    if split in source.splits and not (split == "train" and "val" not in source.splits):
        data = source.read((split,))[split]
        _require_objects(data)
        if strict:
            data.require_no_faults()
        return data
    if split not in ("train", "val"):
        raise DataError(f"{folder}: no split '{split}'; it has {', '.join(source.splits)}")
    return open_data(folder, val_fraction=val_fraction, seed=seed, strict=strict, masks=masks)[split]


def read_splits(
    folder: str | Path, log: FaultLog = STOP_AT_FAULTS, *, masks: Masks = "none"
) -> dict[str, DetectionData]:
    """All splits of a dataset folder as they stand: none is chosen, made or required to hold objects.

    What `open_data` would stop at goes to the log; a split that cannot be read at all is left out.
    """
    with log:
        source = recognise(folder, log, masks=masks)
        return source.read(source.splits)
    return {}


def recognise(folder: str | Path, log: FaultLog = STOP_AT_FAULTS, *, masks: Masks = "none") -> Source:
    """The format of a dataset, by looking. What names itself goes first, then what merely lies there.

    Args:
        folder: the dataset; or the file that describes it.
        log: what to do at a fault.
        masks: what masks to read, as `DataConfig.masks`; without them such files are read where no others are.

    Raises DataError when the format is none that is known, or when it has no such masks.
    """
    folder = Path(folder)
    require_folder(folder)
    panoptic = find_panoptic(folder) if masks in ("auto", "panoptic") else {}
    if panoptic:
        return _coco_source(folder if folder.is_dir() else folder.parent, panoptic, log, masks=True)
    if masks == "panoptic":
        raise DataError(
            f"{folder}: holds no panoptic annotations (annotations/{PREFIX}train.json and its maps); set data.masks to "
            "auto to read outlines"
        )
    source = _without_maps(folder, log)
    return source if masks == "none" else replace(source, read=lambda splits: _with_outlines(source, splits))


def find_panoptic(folder: str | Path) -> dict[str, CocoPaths]:
    """Split name -> the panoptic annotations of a dataset; empty where there are none."""
    folder = Path(folder)
    described = described_files(folder)
    if described:
        return {split: paths for split, paths in described.items() if paths.maps is not None}
    files = panoptic_files(folder) if folder.is_dir() else []
    return {split: CocoPaths(path) for split, path in _named_splits(files, folder).items()}


def _with_outlines(source: Source, splits: tuple[str, ...]) -> dict[str, DetectionData]:
    return {name: with_outlines(data) for name, data in source.read(splits).items()}


def _without_maps(folder: Path, log: FaultLog) -> Source:
    """The dataset as boxes, with outlines where it has some."""
    described = described_files(folder)
    if described:
        return _coco_source(folder if folder.is_dir() else folder.parent, described, log)
    if is_file(folder):
        return _source_of_file(folder, log)
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
        tables = {ALL: others[0]}  # reading it says which columns are missing
    if not tables:
        raise FaultError(Kind.NO_DATA, folder, "", f"holds no annotations; {_EXPECTED}")
    return _table_source(folder, tables, log)


def _source_of_file(path: Path, log: FaultLog) -> Source:
    """A dataset that is named by the file that describes it."""
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _table_source(path.parent, {ALL: path}, log)
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


def _voc_source(folder: Path, log: FaultLog) -> Source:
    voc = parse_voc(folder, log)
    return Source(Format.VOC, tuple(voc.splits), lambda splits: {split: read_voc(voc, split, log) for split in splits})


def _coco_source(folder: Path, files: Mapping[str, CocoPaths], log: FaultLog, *, masks: bool = False) -> Source:
    def read(splits: tuple[str, ...]) -> dict[str, DetectionData]:
        parsed = {}
        for split in splits:
            with log:
                parsed[split] = parse_coco(files[split].annotations)
        categories = _common_categories(parsed.values())
        data = {}
        for split, coco in parsed.items():
            with log:
                images = files[split].images or _images_folder(coco, split, folder)
                reader: Callable[..., DetectionData] = read_coco
                if is_panoptic(coco):
                    reader = partial(read_panoptic, maps_folder=files[split].maps, masks=masks)
                data[split] = reader(coco, images, split=split, folder=folder, categories=categories, log=log)
        return data

    panoptic = any(paths.maps or paths.annotations.name.startswith(PREFIX) for paths in files.values())
    return Source(Format.COCO, tuple(files), read, panoptic)


def _usual_coco_files(folder: Path) -> list[Path]:
    """Files of COCO's own names, and of those that Roboflow gives."""
    return sorted((folder / "annotations").glob("instances_*.json")) + sorted(folder.glob("*/_annotations.coco.json"))


def _loose_coco_files(folder: Path) -> list[Path]:
    """JSON files of any name that are COCO; panoptic ones where there are no others."""
    paths = sorted((folder / "annotations").glob("*.json")) + sorted(folder.glob("*.json"))
    found = paths if len(paths) == 1 else _only_coco(paths)
    return [path for path in found if not path.name.startswith(PREFIX)] or found


def _named_splits(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Split name -> annotation file."""
    names = [_split_name(path, folder) for path in paths]
    if len(names) == 1 and names[0] not in SPELLINGS.values():
        names = [ALL]
    return {name if names.count(name) == 1 else path.stem: path for name, path in zip(names, paths, strict=True)}


def _only_coco(paths: list[Path]) -> list[Path]:
    """Those of several JSON files that are COCO's. Raises the first file's error when none is."""
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
    """Such as "train" of instances_train2017.json, "val" of valid/_annotations.coco.json, "cells" of cells.json."""
    beside_images = path.name.startswith("_annotations") and path.parent != folder
    name = path.parent.name if beside_images else _stem(path)
    return usual_split(name)


def _stem(path: Path) -> str:
    """A file's name without what COCO puts before that of the split."""
    return path.stem.removeprefix("instances_").removeprefix(PREFIX)


def _images_folder(coco: CocoFile, split: str, folder: Path) -> Path:
    """The folder with the file's images. Raises DataError that names the folders looked into."""
    stem = _stem(coco.path)
    spellings = (stem, split, *(word for word, meaning in SPELLINGS.items() if meaning == split))
    named = [base / name for base in (folder, folder / "images") for name in dict.fromkeys(spellings)]
    candidates = [*named, coco.path.parent, coco.path.parent / "images", folder / "images", folder]
    names = coco.file_names[:_NAMES_TO_LOOK_FOR]
    if not coco.images:
        raise FaultError(Kind.NO_DATA, coco.path, "", "holds no images")
    holder = first_folder_holding([name for name in names if is_inside(name)], candidates)
    if holder is None and not any(map(is_inside, names)):
        return folder  # reading the images says what is wrong with their names
    if holder is None:
        looked = ", ".join(str(path) for path in dict.fromkeys(candidates) if path.is_dir())
        detail = f"its images ({names[0]}, ...) are missing; put them into one of {looked}"
        raise FaultError(Kind.MISSING_IMAGE, coco.path, "", detail)
    return holder


def _common_categories(files: Iterable[CocoFile]) -> Categories:
    """The classes of all files, in the order of their ids. Raises DataError when one id has two names."""
    rows: dict[int, dict[str, Any]] = {}
    for coco in files:
        for row in coco.category_rows:
            known = rows.setdefault(row["id"], row)
            if known["name"] != row["name"]:
                names = f"'{row['name']}' here and '{known['name']}' in another split"
                detail = f"category {row['id']} is {names}; give it one name"
                raise FaultError(Kind.BAD_CLASSES, coco.path, "", detail)
    return Categories.from_coco(rows.values())


def _chosen(wanted: str | None, usual: tuple[str, ...], splits: tuple[str, ...], folder: Path, role: str) -> str:
    candidates = usual if wanted is None else (wanted,)
    chosen = next((name for name in candidates if name in splits), None)
    if chosen is None:
        problem = f"no split '{wanted}'" if wanted is not None else f"no split to use as '{role}'"
        raise DataError(f"{folder}: {problem}; it has {', '.join(splits)}: name one of them as the {role} split")
    return chosen


def _divided(whole: DetectionData, val_fraction: float, seed: int) -> tuple[DetectionData, DetectionData]:
    """Training and validation images, chosen by a hash of seed and file name: whatever order the files come in."""

    def rank(image: ImageRecord) -> tuple[bytes, str]:
        return chance(seed, image.path.name), whole.file_name(image)

    num_val = max(1, round(len(whole) * val_fraction))
    if num_val >= len(whole):
        raise DataError(f"{whole.folder}: {len(whole)} images are too few to set some aside; name a validation split")
    chosen = {image.id for image in sorted(whole.images, key=rank)[:num_val]}
    val = whole.subset([image for image in whole.images if image.id in chosen], "val")
    train = whole.subset([image for image in whole.images if image.id not in chosen], "train")
    of_images = {fault.kind for image in whole.images for fault in image.faults}
    of_whole = tuple(finding for finding in whole.findings if finding.kind not in of_images)
    return replace(train, findings=of_whole + train.findings), val


def _with_overlap(val: DetectionData, train: DetectionData) -> DetectionData:
    """Validation data with a finding when training sees some of its images."""
    trained_on = {image.path for image in train.images}
    shared = count_findings(DataFault(Kind.IN_TRAINING, str(i.path)) for i in val.images if i.path in trained_on)
    return replace(val, findings=val.findings + shared)


def _require_objects(data: DetectionData) -> None:
    if not data.num_objects:
        lost = (finding for finding in data.findings if finding.kind.effect is Effect.SKIPS)
        reasons = (f"; {finding}: {finding.faults[0].detail}".removesuffix(": ") for finding in lost)
        detail = f"no annotations: {len(data)} images and no object{''.join(reasons)}"
        raise FaultError(Kind.NO_LABELS, data.folder, f"split '{data.split}'", detail)
