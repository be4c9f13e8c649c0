"""Reads a folder of images without annotations, for pre-training.

The folder is searched recursively. Images are read from their headers only, so a large folder opens fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from opendetr.categories import patch_categories
from opendetr.data.formats.recognise import choose_splits
from opendetr.data.formats.splits import SINGLE_SPLIT, SPLIT_SPELLINGS
from opendetr.data.images import ImageFileError, image_size
from opendetr.data.listing import images_in
from opendetr.data.paths import require_folder
from opendetr.data.records import DataError, DataFault, DetectionData, FaultKind, ImageRecord
from opendetr.files import IMAGE_SUFFIXES

MIN_SIDE = 17
"""Images with a shorter side, in pixels, are skipped: patches of 8 pixels or more need room to move."""
# Folders of datasets that contain maps, not images.
_MAP_FOLDERS = frozenset({"annotations", "segmentationclass", "segmentationobject"})


def open_images(
    folder: str | Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    train_split: str | None = None,
    val_split: str | None = None,
    strict: bool = False,
) -> dict[str, DetectionData]:
    """The splits of a folder of images. Annotations are not read.

    A folder named as a split contains the images of that split, as in "val/n01440764/1.jpg" or
    "images/val2017/1.jpg". Other images belong to the training split. Without a validation split, some of the images
    are held out, chosen by a hash of seed and file name. Hidden files and the maps of segmentation datasets are not
    used. Images that are unreadable, or too small to cut patches from, are skipped.

    Args:
        folder: the folder with the images.
        val_fraction: fraction of the training images that becomes "val" if no folder is named so.
        seed: determines these images, together with the file names.
        train_split: the split to return as "train".
        val_split: the split to return as "val".
        strict: raise an error for an unreadable image instead of skipping it.

    Returns the splits by name; they always include "train" and "val". Raises DataError with one line for any fault of
    the folder.
    """
    folder = Path(folder)
    require_folder(folder, "images")
    if not folder.is_dir():
        raise DataError(f"{folder}: a file, not a folder; pass a folder of images")
    by_split: dict[str, list[Path]] = {}
    for path in _images(folder):
        by_split.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if "train" in by_split and SINGLE_SPLIT in by_split:
        by_split["train"] = sorted(by_split["train"] + by_split.pop(SINGLE_SPLIT))
    if not by_split:
        suffixes = " ".join(IMAGE_SUFFIXES)
        raise DataError(f"{folder}: contains no images ({suffixes}), nor do its subfolders; pass a folder of images")
    read = {name: _read(folder, name, paths) for name, paths in by_split.items()}
    splits = {name: split for name, split in read.items() if len(split)}
    if not splits:
        counts = "; ".join(str(entry) for split in read.values() for entry in split.fault_counts)
        raise DataError(f"{folder}: none of its images can be used: {counts}")
    if strict:
        for split in splits.values():
            split.require_no_faults()
    return choose_splits(
        splits,
        folder,
        val_fraction=val_fraction,
        seed=seed,
        train_split=train_split,
        val_split=val_split,
        annotated=False,
    )


def _images(folder: Path) -> Iterator[Path]:
    """The images in a folder and its subfolders, without hidden ones and maps."""
    for path in images_in(folder):
        *folders, name = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in (*folders, name))
        if not hidden and not any(part.lower() in _MAP_FOLDERS for part in folders):
            yield path


def _split_of(path: Path) -> str:
    """The split that one of the two outer folders of a relative path is named after, else the only split."""
    for name in path.parts[:-1][:2]:
        word = re.sub(r"\d{4}$", "", name.lower())
        if word in SPLIT_SPELLINGS:
            return SPLIT_SPELLINGS[word]
    return SINGLE_SPLIT


def _read(folder: Path, split: str, paths: list[Path]) -> DetectionData:
    """The usable images of a split, and the faults of the others."""
    images: list[ImageRecord] = []
    faults: list[DataFault] = []
    for path in paths:
        try:
            height, width = image_size(path)
        except ImageFileError as error:
            faults.append(error.fault)
            continue
        if min(height, width) < MIN_SIDE:
            faults.append(DataFault(FaultKind.TINY_IMAGE, str(path), detail=f"{width}x{height} pixels"))
            continue
        images.append(ImageRecord(id=len(images) + 1, path=path, height=height, width=width, source=str(path)))
    return DetectionData.from_records(split, folder, patch_categories(), images, faults, annotated=False)
