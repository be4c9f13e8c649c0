"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", 2019), counted as COCO counts it.

A true and a predicted segment of one class match when their IoU is above 0.5; then nothing else can match either. Of a
class with p matches, a of them unmatched predictions and m unmatched true segments:

    SQ = mean IoU of the matches        RQ = p / (p + a / 2 + m / 2)        PQ = SQ RQ

Shape letters: H W image, r runs of pixels, n true and m predicted segments, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from opendetr.categories import Categories
from opendetr.distributed import gather

PANOPTIC_METRICS = {
    "PQ": "panoptic quality, mean over classes",
    "SQ": "segmentation quality: the IoU of what was matched",
    "RQ": "recognition quality: an F-score of what was matched",
    "PQ_things": "panoptic quality of things",
    "SQ_things": "segmentation quality of things",
    "RQ_things": "recognition quality of things",
    "PQ_stuff": "panoptic quality of stuff",
    "SQ_stuff": "segmentation quality of stuff",
    "RQ_stuff": "recognition quality of stuff",
}
"""The nine numbers in their customary order, each with what it says."""

_MATCHED_IOU = 0.5  # above it
_IGNORED_SHARE = 0.5  # of a segment on void and crowd, above which it is no mistake
_VOID = 0
_NUM_NUMBERS = 2**24  # of segments that a map can tell apart, as COCO's PNG
_SMALLEST_TABLE = 256
_NOWHERE = -1  # in place of the number of no segment


class FoundSegment(Protocol):
    """What is read of a predicted segment."""

    @property
    def id(self) -> int:
        """Its number in the map."""
        ...

    @property
    def label(self) -> int:
        """Its class, in 0..K-1."""
        ...


class AnnotatedSegment(FoundSegment, Protocol):
    """What is read of a true segment."""

    @property
    def crowd(self) -> bool:
        """Whether it is a region of many things, which need not be found."""
        ...


class Quality(NamedTuple):
    """The three numbers of one class, in 0..1: panoptic, segmentation and recognition quality."""

    PQ: float
    SQ: float
    RQ: float


class PanopticEvaluation:
    """Collects panoptic maps and scores them; what it holds does not grow with their number.

    Example:
        >>> evaluation = PanopticEvaluation(data.categories)
        >>> evaluation.update(*panoptic_truth(image, data.categories), found.segments.numpy(), found.info)
        >>> evaluation.compute()["PQ"]
        0.434
    """

    def __init__(self, categories: Categories) -> None:
        """Score against maps whose labels are those of `categories`, predicted ones too."""
        self.categories = categories
        self._counts = np.zeros((3, len(categories)), dtype=np.int64)  # matched, found in vain, missed
        self._iou = np.zeros(len(categories))

    def update(
        self,
        truth_segments: np.ndarray,
        truth_info: Sequence[AnnotatedSegment],
        segments: np.ndarray,
        info: Sequence[FoundSegment],
    ) -> None:
        """Add an image.

        Args:
            truth_segments: (H, W) whole numbers of `truth_info`, below 2^24; 0 is void, and so is what is not listed.
            truth_info: the true segments.
            segments: (H, W) whole numbers of `info`, likewise; 0 is no segment unless it is listed.
            info: the predicted segments; one without pixels counts for nothing.

        Raises:
            ValueError: maps of two sizes, a number of `segments` that is not listed, one that stands twice or is too
                large.
        """
        if truth_segments.shape != segments.shape:
            expected, got = ("x".join(map(str, shape[::-1])) for shape in (truth_segments.shape, segments.shape))
            raise ValueError(f"a panoptic map of {got} pixels, the true one has {expected}; resize it to that")
        runs = _Runs.of(truth_segments.ravel(), segments.ravel())
        rows = _positions(runs.truth, _numbers(truth_info, "true"))
        columns = _positions(runs.found, _numbers(info, "predicted"))
        unknown = runs.found[(columns == 0) & (runs.found != _VOID)]
        if len(unknown):
            raise ValueError(f"the predicted map has a segment {unknown[0]}, which is not listed")
        shape = (len(truth_info) + 1, len(info) + 1)
        pixels = np.bincount(rows * shape[1] + columns, weights=runs.lengths, minlength=math.prod(shape)).reshape(shape)
        truth_labels = np.array([segment.label for segment in truth_info], dtype=np.intp)
        crowd = np.array([segment.crowd for segment in truth_info], dtype=bool)
        self._count(pixels, truth_labels, crowd, np.array([segment.label for segment in info], dtype=np.intp))

    def _count(self, pixels: np.ndarray, truth_labels: np.ndarray, crowd: np.ndarray, labels: np.ndarray) -> None:
        """Count the segments of an image; `pixels` (1 + n, 1 + m) are those that two of them share, void is first."""
        area, truth_area = pixels[:, 1:].sum(0), pixels[1:].sum(1)
        shared, on_void = pixels[1:, 1:], pixels[0, 1:]
        union = truth_area[:, None] + area - shared - on_void
        comparable = (truth_labels[:, None] == labels) & ~crowd[:, None]
        iou = np.where(comparable, shared, 0) / union.clip(1)
        truth, found = np.nonzero(iou > _MATCHED_IOU)

        ignored = on_void + _on_crowd(shared, truth_labels, crowd, labels)
        in_vain = (area > 0) & (ignored <= _IGNORED_SHARE * area)
        in_vain[found] = False
        missed = ~crowd
        missed[truth] = False
        np.add.at(self._iou, labels[found], iou[truth, found])
        for counts, counted in zip(self._counts, (labels[found], labels[in_vain], truth_labels[missed]), strict=True):
            np.add.at(counts, counted, 1)

    def gather(self) -> None:
        """Take in what the other processes have counted on other images; once, at the end."""
        parts = gather((self._counts, self._iou))
        self._counts, self._iou = (np.sum([part[index] for part in parts], axis=0) for index in (0, 1))

    def compute(self) -> dict[str, Any]:
        """The score of what was collected so far.

        Returns:
            The numbers of `PANOPTIC_METRICS`, in 0..1, each a mean over the classes that were annotated or predicted
            somewhere and None where there is none; under "per_class" the PQ of each class by name, None for one that
            was neither.
        """
        isthing = dict(zip(self.categories.distinct_names, self.categories.isthing, strict=True))
        per_class = self.per_class()
        metrics: dict[str, Any] = {}
        for suffix, kinds in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            rows = [quality for name, quality in per_class.items() if quality and isthing[name] in kinds]
            means = np.mean(rows, axis=0).tolist() if rows else (None, None, None)
            metrics |= {f"{name}{suffix}": mean for name, mean in zip(Quality._fields, means, strict=True)}
        metrics["per_class"] = {name: quality and quality.PQ for name, quality in per_class.items()}
        return metrics

    def per_class(self) -> dict[str, Quality | None]:
        """The three numbers of each class by name; None for one that was neither annotated nor predicted."""
        per_class: dict[str, Quality | None] = {}
        for label, name in enumerate(self.categories.distinct_names):
            matched, in_vain, missed = self._counts[:, label].tolist()
            size = matched + (in_vain + missed) / 2
            iou = float(self._iou[label])
            quality = Quality(iou / size, iou / max(matched, 1), matched / size) if size else None
            if quality or self.categories.used[label]:
                per_class[name] = quality
        return per_class


def _numbers(info: Sequence[FoundSegment], what: str) -> np.ndarray:
    """(n,) the numbers of segments. Raises ValueError when one stands twice, or is none that a map can hold."""
    numbers = np.array([segment.id for segment in info], dtype=np.intp)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < _NUM_NUMBERS:
        raise ValueError(f"the {what} segments have numbers up to {numbers.max()}; give them 0 to {_NUM_NUMBERS - 1}")
    if len(set(numbers.tolist())) < len(numbers):
        twice = next(number for number in numbers.tolist() if (numbers == number).sum() > 1)
        raise ValueError(f"the {what} segment {twice} is listed twice; give every segment a number of its own")
    return numbers


def _positions(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(r,) values -> the position of each in `numbers` (n,), counted from 1, and 0 for what is not there.

    A table of their last bits, as many as tell them apart, finds them several times as fast as a search.
    """
    size = _SMALLEST_TABLE
    while len(set((numbers & (size - 1)).tolist())) < len(numbers):
        size *= 2
    table = np.zeros(size, dtype=np.intp)
    table[numbers & (size - 1)] = np.arange(1, len(numbers) + 1)
    positions = table.take(values & (size - 1))
    others = np.append(_NOWHERE, numbers).take(positions) != values
    if others.any():
        positions[others] = 0
    return positions


class _Runs(NamedTuple):
    """Two maps as runs of pixels that are alike in both: maps are flat almost everywhere.

    Attributes:
        truth: (r,) the number in the true map.
        found: (r,) the number in the predicted map.
        lengths: (r,) pixels.
    """

    truth: np.ndarray
    found: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, found: np.ndarray) -> _Runs:
        """The runs of two flat maps of one size."""
        begins = np.ones(truth.size, dtype=bool)
        np.not_equal(truth[1:], truth[:-1], out=begins[1:])
        begins[1:] |= found[1:] != found[:-1]
        starts = np.flatnonzero(begins)
        lengths = np.empty_like(starts)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1:] = truth.size - starts[-1:]
        return cls(truth.take(starts).astype(np.intp), found.take(starts).astype(np.intp), lengths)


def _on_crowd(shared: np.ndarray, truth_labels: np.ndarray, crowd: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(m,) pixels of each predicted segment on the crowd region of its class; of several COCO counts the last alone."""
    last = {int(truth_labels[position]): position for position in np.flatnonzero(crowd)}
    pixels = np.zeros(len(labels))
    for label, position in last.items():
        pixels += np.where(labels == label, shared[position], 0)
    return pixels
