"""The parts of a dataset: what they are called, and how a whole is divided so that every part is like it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count

from opendetr.data.records import DataError, DetectionData, ImageRecord

ALL = "all"  # the one split of a dataset that has no splits
# How files and folders spell the usual ones.
SPELLINGS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
             "test": "test", "testing": "test", "trainval": "trainval"}  # fmt: skip
_NOTHING = -1  # stands for a class in images without objects: they are divided evenly, too


def usual_split(name: str) -> str:
    """The split that a file or folder of this name holds: "train" for "instances_train2017", else the name itself."""
    words = re.split(r"[\W_]+", re.sub(r"\d{4}$", "", name).lower())
    return next((SPELLINGS[word] for word in words if word in SPELLINGS), name)


def chance(seed: int, name: str) -> bytes:
    """A number between 0 and 1, as bytes to sort by, from seed and name alone: the order of files does not matter."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def pooled(splits: Mapping[str, DetectionData]) -> DetectionData:
    """The images of all splits as one, each once; numbered anew where files of one dataset use the same ids twice."""
    first = next(iter(splits.values()))
    images = list({image.path: image for data in splits.values() for image in data.images}.values())
    if len({image.id for image in images}) < len(images):
        images = [replace(image, id=number) for number, image in enumerate(images, start=1)]
    things = [thing.id for image in images for thing in image.objects]
    if len(set(things)) < len(things):
        numbers = count(1)
        images = [
            replace(image, objects=tuple(replace(thing, id=next(numbers)) for thing in image.objects))
            for image in images
        ]
    return first.subset(sorted(images, key=lambda image: image.id), ALL)


def stratified(
    images: Sequence[ImageRecord], fractions: Mapping[str, float], seed: int
) -> dict[str, list[ImageRecord]]:
    """Images divided into parts in which every class has about its share.

    The image goes, rarest class first, to the part that lacks most images of that class: iterative stratification
    (Sechidis, Tsoumakas and Vlahavas, 2011, algorithm 1).

    Args:
        images: what to divide; the file names and the seed alone decide between equals.
        fractions: the parts' names and shares, which add up to 1.
        seed: of the order in which images of a class are given out.

    Returns the images of each part in the order in which they came. Raises DataError for shares that do not add up, and
    when a part gets no image.
    """
    _check_fractions(fractions)
    objects = [{thing.category_id for thing in image.objects} for image in images]
    classes = {index: found or {_NOTHING} for index, found in enumerate(objects)}
    waiting = sorted(classes, key=lambda index: chance(seed, images[index].path.name))
    left = Counter(label for labels in classes.values() for label in labels)
    wanted = {part: {label: share * count for label, count in left.items()} for part, share in fractions.items()}
    room = {part: share * len(images) for part, share in fractions.items()}
    chosen: dict[str, list[int]] = {part: [] for part in fractions}
    while waiting:
        rarest = min((label for label in left if left[label]), key=lambda label: (left[label], label))
        taken = [index for index in waiting if rarest in classes[index]]
        for index in taken:
            part = max(fractions, key=lambda part: (wanted[part][rarest], room[part]))
            chosen[part].append(index)
            room[part] -= 1
            for label in classes[index]:
                wanted[part][label] -= 1
                left[label] -= 1
        gone = set(taken)
        waiting = [index for index in waiting if index not in gone]
    for part, indices in chosen.items():
        if not indices:
            raise DataError(f"{len(images)} images are too few: '{part}' would get none; give it more, or leave it out")
    return {part: [images[index] for index in sorted(indices)] for part, indices in chosen.items()}


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for part, share in fractions.items():
        if not part.isidentifier():
            raise DataError(f"the split {part!r} names files; use letters, digits and _")
        if not 0 < share <= 1:
            raise DataError(f"the share of '{part}' is {share:g}; give one above 0 and up to 1")
    total = sum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"the shares add up to {total:g}; make them add up to 1")
