"""Opening a data set folder: its format is recognised by looking, its splits are found or made."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opendetr.categories import Categories
from opendetr.data.coco import CocoFile, NotCocoError, parse_coco, read_coco
from opendetr.data.paths import first_folder_holding, inside, require_folder
from opendetr.data.records import DataError, DetectionData, ImageRecord, Kind, Remark, count_findings
from opendetr.data.voc import ALL, parse_voc, read_voc

_TRAIN_NAMES = ("train", "trainval", ALL)
_VAL_NAMES = ("val",)
_NAMES_TO_LOOK_FOR = 20  # images of a COCO file that tell which folder it means
# How files and folders spell the usual splits.
_SPELLINGS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
              "test": "test", "testing": "test", "trainval": "trainval"}  # fmt: skip
_EXPECTED = (
    "expected COCO (annotations/instances_*.json, or a JSON file beside the images) "
    "or Pascal VOC (Annotations/*.xml and JPEGImages/)"
)


@dataclass(frozen=True)
class _Source:
    """A folder whose format is known: the names of its splits, and how to read some of them with common classes."""

    splits: tuple[str, ...]
    read: Callable[[tuple[str, ...]], dict[str, DetectionData]]


def open_data(
    folder: str | Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    train_split: str | None = None,
    val_split: str | None = None,
    strict: bool = False,
) -> dict[str, DetectionData]:
    """All splits of a data set folder, in COCO or Pascal VOC format.

    Args:
        folder: the data set.
        val_fraction: share of the training images that becomes "val" where the data set has no such split.
        seed: chooses those images; with the names of the files alone, so that their order does not matter.
        train_split: the split to give as "train"; else "train", "trainval" or the only one there is.
        val_split: the split to give as "val".
        strict: refuse boxes with NaN, negative or inverted sides and image files of zero bytes instead of skipping.

    Returns the splits by name; "train" and "val" are always among them. Raises DataError, one line, for whatever is
    wrong with the folder.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"the share of images for validation is {val_fraction}; give one between 0 and 1")
    source = _recognise(Path(folder))
    data = source.read(source.splits)
    train = data[_chosen(train_split, _TRAIN_NAMES, source.splits, Path(folder), "train")]
    if val_split is None and not set(_VAL_NAMES) & set(source.splits):
        train, val = _divided(train, val_fraction, seed)
    else:
        val = data[_chosen(val_split, _VAL_NAMES, source.splits, Path(folder), "val")]
    others = {name: part for name, part in data.items() if name not in ("train", "val", ALL)}
    for part in (train, val):
        _require_objects(part)
    if strict:
        for part in data.values():
            part.require_no_faults()
    return {"train": train, "val": _with_overlap(val, train), **others}


def open_split(
    folder: str | Path, split: str, *, val_fraction: float = 0.1, seed: int = 0, strict: bool = False
) -> DetectionData:
    """One split of a data set folder, other splits unread where they can be; "all" is the whole of a set without any.

    A "train" or "val" that the folder does not hold is made as `open_data` makes it. Raises DataError.
    """
    source = _recognise(Path(folder))
    if split in source.splits and not (split == "train" and "val" not in source.splits):
        data = source.read((split,))[split]
        _require_objects(data)
        if strict:
            data.require_no_faults()
        return data
    if split not in ("train", "val"):
        raise DataError(f"{folder}: no split '{split}'; it has {', '.join(source.splits)}")
    return open_data(folder, val_fraction=val_fraction, seed=seed, strict=strict)[split]


def _recognise(folder: Path) -> _Source:
    require_folder(folder)
    if (folder / "Annotations").is_dir() and any((folder / "Annotations").glob("*.xml")):
        return _voc_source(folder)
    files = _coco_files(folder)
    if not files:
        raise DataError(f"{folder}: holds no annotations; {_EXPECTED}")
    return _coco_source(folder, files)


def _voc_source(folder: Path) -> _Source:
    voc = parse_voc(folder)
    return _Source(tuple(voc.splits), lambda splits: {split: read_voc(voc, split) for split in splits})


def _coco_source(folder: Path, files: Mapping[str, Path]) -> _Source:
    def read(splits: tuple[str, ...]) -> dict[str, DetectionData]:
        parsed = {split: parse_coco(files[split]) for split in splits}
        categories = _common_categories(parsed.values())
        return {
            split: read_coco(
                coco, _images_folder(coco, split, folder), split=split, folder=folder, categories=categories
            )
            for split, coco in parsed.items()
        }

    return _Source(tuple(files), read)


def _coco_files(folder: Path) -> dict[str, Path]:
    """Split name -> annotation file. Files of COCO's usual names go first; without any, all that are COCO count."""
    annotations = folder / "annotations"
    paths = sorted(annotations.glob("instances_*.json")) + sorted(folder.glob("*/_annotations.coco.json"))
    if not paths:
        paths = sorted(annotations.glob("*.json")) + sorted(folder.glob("*.json"))
        paths = paths if len(paths) == 1 else _only_coco(paths)
    names = [_split_name(path, folder) for path in paths]
    if len(names) == 1 and names[0] not in _SPELLINGS.values():
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
    name = path.parent.name if beside_images else path.stem.removeprefix("instances_")
    words = re.split(r"[\W_]+", re.sub(r"\d{4}$", "", name).lower())
    return next((_SPELLINGS[word] for word in words if word in _SPELLINGS), name)


def _images_folder(coco: CocoFile, split: str, folder: Path) -> Path:
    """The folder with the file's images. Raises DataError that names the folders looked into."""
    stem = coco.path.stem.removeprefix("instances_")
    spellings = (stem, split, *(word for word, meaning in _SPELLINGS.items() if meaning == split))
    named = [base / name for base in (folder, folder / "images") for name in dict.fromkeys(spellings)]
    candidates = [*named, coco.path.parent, coco.path.parent / "images", folder / "images", folder]
    names = coco.file_names[:_NAMES_TO_LOOK_FOR]
    if not names:
        raise DataError(f"{coco.path}: holds no images")
    for index, name in enumerate(names):
        inside(folder, name, f"{coco.path}: images[{index}]")
    holder = first_folder_holding(names, candidates)
    if holder is None:
        looked = ", ".join(str(path) for path in dict.fromkeys(candidates) if path.is_dir())
        raise DataError(f"{coco.path}: its images ({names[0]}, ...) are missing; put them into one of {looked}")
    return holder


def _common_categories(files: Iterable[CocoFile]) -> Categories:
    """The classes of all files, in the order of their ids. Raises DataError when one id has two names."""
    rows: dict[int, dict[str, Any]] = {}
    for coco in files:
        for row in coco.category_rows:
            known = rows.setdefault(row["id"], row)
            if known["name"] != row["name"]:
                names = f"'{row['name']}' here and '{known['name']}' in another split"
                raise DataError(f"{coco.path}: category {row['id']} is {names}; give it one name")
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
        return hashlib.sha256(f"{seed}:{image.path.name}".encode()).digest(), whole.file_name(image)

    num_val = max(1, round(len(whole) * val_fraction))
    if num_val >= len(whole):
        raise DataError(f"{whole.folder}: {len(whole)} images are too few to set some aside; name a validation split")
    chosen = {image.id for image in sorted(whole.images, key=rank)[:num_val]}
    val = whole.subset([image for image in whole.images if image.id in chosen], "val")
    train = whole.subset([image for image in whole.images if image.id not in chosen], "train")
    of_files = tuple(finding for finding in whole.findings if finding.kind is Kind.EMPTY_FILE)
    return replace(train, findings=of_files + train.findings), val


def _with_overlap(val: DetectionData, train: DetectionData) -> DetectionData:
    """Validation data with a finding when training sees some of its images."""
    trained_on = {image.path for image in train.images}
    shared = count_findings(Remark(Kind.IN_TRAINING, str(i.path)) for i in val.images if i.path in trained_on)
    return replace(val, findings=val.findings + shared)


def _require_objects(data: DetectionData) -> None:
    if not data.num_objects:
        raise DataError(f"{data.folder}: no annotations: the split '{data.split}' has {len(data)} images and no object")
