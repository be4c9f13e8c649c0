"""Average precision from matches that are computed once, for any number of resamples of the images.

COCO's rules: ten IoU thresholds, 101 recall levels, at most 100 detections of a class in an image.

Shape letters: n detections, m objects, T IoU thresholds, I images, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from opendetr.evaluation.detected import DatasetDetections, Found, Objects
from opendetr.evaluation.matching import box_overlaps, match_overlaps

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's ranges of the area of an object, in pixels."""
_RECALLS = np.linspace(0, 1, 101)
_MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """The detections of all classes with the objects that they match.

    Attributes:
        found: the n detections that count: at most 100 of a class in an image, in descending order of the score.
        objects: the m objects.
        counted: (m,) bool, the objects that count: those in the range of sizes that are not crowd regions.
        object: (T, n) int64, the index of the matched object, or -1.
        ignored: (T, n) bool, the detections that are neither right nor wrong.
        thresholds: (T,) the IoU thresholds.
        num_images: I.
    """

    found: Found
    objects: Objects
    counted: np.ndarray
    object: np.ndarray
    ignored: np.ndarray
    thresholds: np.ndarray
    num_images: int

    def of_class(self, label: int) -> ClassMatches:
        """The matches of one class."""
        chosen = np.flatnonzero(self.found.label == label)
        own = self.counted & (self.objects.label == label)
        ignored = self.ignored[:, chosen]
        return ClassMatches(
            self.found.image[chosen],
            self.found.score[chosen],
            (self.object[:, chosen] >= 0) & ~ignored,
            ignored,
            np.bincount(self.objects.image[own], minlength=self.num_images),
        )

    def of_classes(self, labels: Sequence[int]) -> list[ClassMatches]:
        """The matches of several classes."""
        return [self.of_class(label) for label in labels]


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, in descending order of the score.

    Attributes:
        image: (n,) int64, the index of the image.
        score: (n,) float64.
        correct: (T, n) bool.
        ignored: (T, n) bool, the detections that are neither right nor wrong.
        num_objects: (I,) int64, the number of objects of each image.
    """

    image: np.ndarray
    score: np.ndarray
    correct: np.ndarray
    ignored: np.ndarray
    num_objects: np.ndarray


def match_found(
    objects: Objects,
    found: Found,
    num_images: int,
    *,
    size: tuple[float, float] = SIZES["all"],
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> Matches:
    """Match detections with the objects of their image and class, as COCO does."""
    found = found[_most_confident(found)]
    outside = (objects.area < size[0]) | (objects.area > size[1])
    skipped = objects.crowd | outside
    matched = np.full((len(thresholds), len(found)), -1)
    object_groups = _groups(objects.image, objects.label)
    for key, rows in _groups(found.image, found.label).items():
        own = object_groups.get(key)
        if own is None:
            continue
        overlaps = box_overlaps(found.box[rows], objects.box[own], objects.crowd[own])
        matches = match_overlaps(overlaps, objects.crowd[own], skipped[own], thresholds)
        matched[:, rows] = np.where(matches >= 0, own[matches], -1)
    areas = found.box[:, 2:].prod(1)
    off_size = (areas < size[0]) | (areas > size[1])
    ignored = np.where(matched >= 0, np.append(skipped, False)[matched], off_size)
    return Matches(found, objects, ~skipped, matched, ignored, thresholds, num_images)


def _most_confident(found: Found) -> np.ndarray:
    """The detections that count, in descending order of the score; equal scores in the order of the images."""
    order = np.lexsort((found.image, -found.score))
    groups = _groups(found.image[order], found.label[order])
    kept = np.concatenate([np.empty(0, np.int64), *(rows[:_MOST_DETECTIONS] for rows in groups.values())])
    return order[np.sort(kept)]


def _groups(image: np.ndarray, label: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """The indices of each pair of image and label, in ascending order."""
    order = np.lexsort((label, image))
    pairs = np.stack((image[order], label[order]), 1)
    starts = np.flatnonzero(np.append(True, (pairs[1:] != pairs[:-1]).any(1)))[: len(pairs)]
    parts = np.split(order, starts[1:])  # without pairs, one empty part, so the lengths may differ
    return {(int(pair[0]), int(pair[1])): np.sort(part) for pair, part in zip(pairs[starts], parts, strict=False)}


def average_precisions(matches: ClassMatches, counts: np.ndarray | None = None) -> np.ndarray:
    """AP of one class at each IoU threshold, (T, S); NaN without objects.

    Args:
        matches: the matches of the class.
        counts: (S, I), how often each image occurs in each resample. None: every image once, so S is 1.
    """
    if counts is None:
        counts = np.ones((1, len(matches.num_objects)))
    counts = counts.astype(np.float64)
    total = counts @ matches.num_objects
    result = np.zeros((len(matches.correct), len(counts)))
    for precision, correct, ignored in zip(result, matches.correct, matches.ignored, strict=True):
        image, hits = matches.image[~ignored], np.flatnonzero(correct[~ignored])
        if len(hits):
            precision[:] = _area(image, hits, counts, total)
    result[:, total == 0] = np.nan
    return result


def _area(image: np.ndarray, hits: np.ndarray, counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The mean precision over 101 recall levels of each resample, (S,).

    Only the precision at the correct detections, the `hits`, matters: between them it falls.
    """
    last = hits[-1] + 1
    interval = np.searchsorted(hits, np.arange(last))
    shape = (len(hits), counts.shape[1])
    between = sparse.csr_matrix((np.ones(last), (interval, image[:last])), shape=shape)
    num_kept = np.cumsum(between @ counts.T, 0)
    num_correct = np.cumsum(counts.T[image[hits]], 0)
    precision = np.divide(num_correct, num_kept, out=np.zeros_like(num_correct), where=num_kept > 0)
    envelope = np.maximum.accumulate(precision[::-1], 0)[::-1]
    recall = np.divide(num_correct, total, out=np.zeros_like(num_correct), where=total > 0)
    levels = np.searchsorted(_RECALLS, recall, side="right")
    return (envelope * np.diff(levels, axis=0, prepend=0)).sum(0) / len(_RECALLS)


def precision_at_recalls(matches: ClassMatches) -> np.ndarray:
    """The precision at 101 recall levels for each IoU threshold, (T, 101); NaN without objects."""
    total = matches.num_objects.sum()
    result = np.full((len(matches.correct), len(_RECALLS)), np.nan if total == 0 else 0.0)
    for row, correct, ignored in zip(result, matches.correct, matches.ignored, strict=True):
        kept = correct[~ignored]
        if total and kept.any():
            hits = np.cumsum(kept)
            precision = np.maximum.accumulate((hits / np.arange(1, len(kept) + 1))[::-1])[::-1]
            index = np.searchsorted(hits / total, _RECALLS, side="left")
            row[:] = np.append(precision, 0.0)[np.minimum(index, len(precision))]
    return result


def mean_over(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """The mean without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def summary(matches: Matches, labels: Sequence[int]) -> tuple[float | None, float | None]:
    """AP and AP50, the means over the classes."""
    values = np.stack([average_precisions(one)[:, 0] for one in matches.of_classes(labels)]) if labels else None
    if values is None:
        return None, None
    return defined(mean_over(values, (0, 1))), defined(mean_over(values[:, 0], 0))


def scores_of(dataset: DatasetDetections, found: Found) -> tuple[float | None, float | None]:
    """AP and AP50 of detections in a dataset."""
    return summary(match_found(dataset.objects, found, dataset.num_images), dataset.labels)


def defined(value: float | np.floating | np.ndarray) -> float | None:
    """A metric as a number; None for NaN, which means "not defined"."""
    return None if np.isnan(value) else float(value)
