"""Splits of a dataset: their names, and stratified division of images into splits."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from opendetr.config import SettingError
from opendetr.data.formats.coco_videos import VIDEO
from opendetr.data.records import DataError, DetectionData, ImageRecord

SINGLE_SPLIT = "all"  # the only split of a dataset without splits
# Spellings of the usual splits in names of files and folders -> the split.
SPLIT_SPELLINGS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
             "test": "test", "testing": "test", "trainval": "trainval"}  # fmt: skip
_NO_OBJECTS = -1  # the class of images without objects, so that they are divided evenly too


def usual_split(name: str) -> str:
    """The split that a file or folder name stands for: "train" for "instances_train2017"; else the name itself."""
    words = re.split(r"[\W_]+", re.sub(r"\d{4}$", "", name).lower())
    return next((SPLIT_SPELLINGS[word] for word in words if word in SPLIT_SPELLINGS), name)


def folder_split(name: str) -> str | None:
    """The split that a folder is named after, perhaps with a year: "train" for "train2017"; None for other names."""
    return SPLIT_SPELLINGS.get(re.sub(r"[\W_]*\d{4}$", "", name).lower())


def path_split(folder: str) -> str | None:
    """The split that a path in a dataset belongs to, by the innermost folder named after one; None if there is none.

    `folder` has forward slashes.
    """
    return next((split for part in reversed(folder.split("/")) if (split := folder_split(part))), None)


def file_split(path: Path, folder: Path) -> str | None:
    """The split of an annotation file by its name, or else by the folders that it lies in; None if they name none."""
    by_name = usual_split(path.stem)
    if by_name in SPLIT_SPELLINGS.values():
        return by_name
    return path_split(path.parent.relative_to(folder).as_posix()) if path.is_relative_to(folder) else None


def split_folders(names: Iterable[str]) -> dict[str, str]:
    """Folder name -> the split that it holds: "train" for "train" or "train2017"; else its own name.

    If several folders stand for one split, that without a year has it, and the others keep their names.
    """
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(folder_split(name) or name, []).append(name)
    found: dict[str, str] = {}
    for split, folders in by_split.items():
        without_year = [name for name in folders if name.lower() in SPLIT_SPELLINGS]
        own = folders if len(folders) == 1 else without_year[:1]
        found |= {name: split if name in own else name for name in folders}
    return found


def chance(seed: int, name: str) -> bytes:
    """A hash of seed and name as a random sort key. It does not depend on the order of the files."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def pooled(splits: Mapping[str, DetectionData]) -> DetectionData:
    """The images of all splits as one split, each image once; an image with several captions once for each.

    If the splits use the same id for two images, all images get new ids. The same applies to objects.
    """
    first = next(iter(splits.values()))
    records = (image for data in splits.values() for image in data.images)
    images = list({(image.path, image.extras.get("caption")): image for image in records}.values())
    if len({image.id for image in images}) < len(images):
        images = [replace(image, id=number) for number, image in enumerate(images, start=1)]
    object_ids = [obj.id for image in images for obj in image.objects]
    if len(set(object_ids)) < len(object_ids):
        numbers = count(1)
        images = [
            replace(image, objects=tuple(replace(obj, id=next(numbers)) for obj in image.objects)) for image in images
        ]
    return first.subset(sorted(images, key=lambda image: image.id), SINGLE_SPLIT)


def stratified(
    images: Sequence[ImageRecord], fractions: Mapping[str, float], seed: int
) -> dict[str, list[ImageRecord]]:
    """Divide images into parts so that every class is divided in about the same proportions.

    This is iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011, algorithm 1). It starts with the rarest
    class. Each image of the class goes to the part that lacks most images of it.

    The frames of a video are in the same part, and so are the entries of one image file, such as its captions.

    Args:
        images: the images to divide.
        fractions: name of each part -> its fraction of the images. The fractions must add up to 1.
        seed: determines the order of the images of a class, together with the file names.

    Returns the images of each part in their original order. Raises SettingError when the fractions do not add up to 1,
    and DataError when a part gets no image.
    """
    _check_fractions(fractions)
    groups: dict[str, list[ImageRecord]] = {}
    for image in images:
        groups.setdefault(_group(image), []).append(image)
    if len(groups) < len(images):
        whole = [
            replace(own[0], objects=tuple(obj for image in own for obj in image.objects)) for own in groups.values()
        ]
        parts = stratified(whole, fractions, seed)
        return {part: [image for one in chosen for image in groups[_group(one)]] for part, chosen in parts.items()}
    category_sets = [{obj.category_id for obj in image.objects} for image in images]
    classes = {index: category_ids or {_NO_OBJECTS} for index, category_ids in enumerate(category_sets)}
    unassigned = sorted(classes, key=lambda index: chance(seed, Path(_group(images[index])).name))
    remaining = Counter(label for labels in classes.values() for label in labels)
    wanted = {
        part: {label: fraction * count for label, count in remaining.items()} for part, fraction in fractions.items()
    }
    room = {part: fraction * len(images) for part, fraction in fractions.items()}
    assigned_to: dict[str, list[int]] = {part: [] for part in fractions}
    while unassigned:
        rarest = min((label for label in remaining if remaining[label]), key=lambda label: (remaining[label], label))
        members = [index for index in unassigned if rarest in classes[index]]
        for index in members:
            part = max(fractions, key=lambda part: (wanted[part][rarest], room[part]))
            assigned_to[part].append(index)
            room[part] -= 1
            for label in classes[index]:
                wanted[part][label] -= 1
                remaining[label] -= 1
        assigned = set(members)
        unassigned = [index for index in unassigned if index not in assigned]
    for part, indices in assigned_to.items():
        if not indices:
            detail = f"'{part}' would get none; increase its fraction, or omit it"
            raise DataError(f"{len(images)} images are too few: {detail}")
    return {part: [images[index] for index in sorted(indices)] for part, indices in assigned_to.items()}


def _group(image: ImageRecord) -> str:
    """What stays in one part: the video of an image, or its file."""
    return image.extras.get(VIDEO) or str(image.path)


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for part, fraction in fractions.items():
        if not part.isidentifier():
            raise _wrong(f"the split {part!r} cannot be part of a file name; use letters, digits and _")
        if not 0 < fraction <= 1:
            raise _wrong(f"the fraction of '{part}' is {fraction:g}; it must be above 0 and at most 1")
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise _wrong(f"the fractions add up to {total:g}; they must add up to 1")


def _wrong(text: str) -> SettingError:
    return SettingError(text, argument="fractions")
