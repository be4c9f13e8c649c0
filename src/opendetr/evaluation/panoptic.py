"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", 2019), with the rules of COCO.

A ground-truth and a predicted segment of one class match if their IoU is above 0.5. Neither can then match another
segment. For a class with TP matches, FP unmatched predicted segments and FN unmatched ground-truth segments:

    SQ = mean IoU of the matches        RQ = TP / (TP + FP / 2 + FN / 2)        PQ = SQ * RQ

Shape letters: H W image, r runs of pixels, n ground-truth and m predicted segments, K classes. In names, "true" means
the ground truth.
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
    "SQ": "segmentation quality: mean IoU of the matches",
    "RQ": "recognition quality: F1 score of the matches",
    "PQ_things": "panoptic quality of things",
    "SQ_things": "segmentation quality of things",
    "RQ_things": "recognition quality of things",
    "PQ_stuff": "panoptic quality of stuff",
    "SQ_stuff": "segmentation quality of stuff",
    "RQ_stuff": "recognition quality of stuff",
}
"""The nine metrics in the order of COCO, each with a description."""

_MATCHED_IOU = 0.5  # segments match if their IoU is above it
_MAX_IGNORED_FRACTION = 0.5  # a predicted segment with more of its area on void and crowd is no false positive
_VOID = 0
_NUM_IDS = 2**24  # number of segment ids that COCO's PNG format can store
_MIN_TABLE_SIZE = 256
_NO_ID = -1  # not the id of any segment


class PredictedSegment(Protocol):
    """The attributes of a predicted segment that the evaluation uses."""

    @property
    def id(self) -> int:
        """Its id in the map."""
        ...

    @property
    def label(self) -> int:
        """Its class, in 0..K-1."""
        ...


class AnnotatedSegment(PredictedSegment, Protocol):
    """The attributes of a ground-truth segment that the evaluation uses."""

    @property
    def crowd(self) -> bool:
        """Whether it is a region of many things, which is never a false negative."""
        ...


class Quality(NamedTuple):
    """Panoptic, segmentation and recognition quality of one class, in 0..1."""

    PQ: float
    SQ: float
    RQ: float


class PanopticEvaluator:
    """Compares panoptic maps with their ground truth. Memory use does not grow with the number of maps.

    Example:
        >>> evaluator = PanopticEvaluator(data.categories)
        >>> evaluator.update(*panoptic_truth(image, data.categories), panoptic.segments.numpy(), panoptic.info)
        >>> evaluator.compute()["PQ"]
        0.434
    """

    def __init__(self, categories: Categories) -> None:
        """Create an evaluator of maps with the labels of `categories`."""
        self.categories = categories
        self._counts = np.zeros((3, len(categories)), dtype=np.int64)  # matches, false positives, false negatives
        self._iou = np.zeros(len(categories))

    def update(
        self,
        true_segments: np.ndarray,
        true_info: Sequence[AnnotatedSegment],
        segments: np.ndarray,
        info: Sequence[PredictedSegment],
    ) -> None:
        """Add an image.

        Args:
            true_segments: (H, W) integers, the id of the ground-truth segment of each pixel, below 2^24. Void pixels
                are 0 or any id that `true_info` does not list.
            true_info: the ground-truth segments.
            segments: (H, W) integers, the id of the predicted segment of each pixel, below 2^24. 0 is no segment
                unless `info` lists it.
            info: the predicted segments. Segments without pixels are ignored.

        Raises:
            ValueError: the maps differ in size, `segments` contains an id that `info` does not list, or an id is listed
                twice or is too large.
        """
        if true_segments.shape != segments.shape:
            expected, got = ("x".join(map(str, shape[::-1])) for shape in (true_segments.shape, segments.shape))
            raise ValueError(
                f"the predicted map has {got} pixels, the ground truth {expected}; resize the predicted map"
            )
        runs = _Runs.of(true_segments.ravel(), segments.ravel())
        rows = _positions(runs.true, _segment_ids(true_info, "ground-truth"))
        columns = _positions(runs.predicted, _segment_ids(info, "predicted"))
        unknown = runs.predicted[(columns == 0) & (runs.predicted != _VOID)]
        if len(unknown):
            raise ValueError(f"the predicted map has a segment {unknown[0]}, which `info` does not list")
        shape = (len(true_info) + 1, len(info) + 1)
        pixels = np.bincount(rows * shape[1] + columns, weights=runs.lengths, minlength=math.prod(shape)).reshape(shape)
        true_labels = np.array([segment.label for segment in true_info], dtype=np.intp)
        crowd = np.array([segment.crowd for segment in true_info], dtype=bool)
        self._count(pixels, true_labels, crowd, np.array([segment.label for segment in info], dtype=np.intp))

    def _count(self, pixels: np.ndarray, true_labels: np.ndarray, crowd: np.ndarray, labels: np.ndarray) -> None:
        """Add the matches and errors of an image.

        Args:
            pixels: (1 + n, 1 + m) number of pixels in the intersection of each pair of segments. Row 0 and column 0 are
                void.
            true_labels: (n,) labels of the ground-truth segments.
            crowd: (n,) whether they are crowd regions.
            labels: (m,) labels of the predicted segments.
        """
        area, true_area = pixels[:, 1:].sum(0), pixels[1:].sum(1)
        shared, on_void = pixels[1:, 1:], pixels[0, 1:]
        union = true_area[:, None] + area - shared - on_void
        comparable = (true_labels[:, None] == labels) & ~crowd[:, None]
        iou = np.where(comparable, shared, 0) / union.clip(1)
        true, predicted = np.nonzero(iou > _MATCHED_IOU)

        ignored = on_void + _on_crowd(shared, true_labels, crowd, labels)
        false_positives = (area > 0) & (ignored <= _MAX_IGNORED_FRACTION * area)
        false_positives[predicted] = False
        false_negatives = ~crowd
        false_negatives[true] = False
        np.add.at(self._iou, labels[predicted], iou[true, predicted])
        groups = (labels[predicted], labels[false_positives], true_labels[false_negatives])
        for counts, group in zip(self._counts, groups, strict=True):
            np.add.at(counts, group, 1)

    def gather(self) -> None:
        """Add the counts of the other processes. All processes call it, once, after their last `update`."""
        parts = gather((self._counts, self._iou))
        self._counts, self._iou = (np.sum([part[index] for part in parts], axis=0) for index in (0, 1))

    def compute(self) -> dict[str, Any]:
        """The metrics of the maps collected so far.

        Returns:
            The metrics of `PANOPTIC_METRICS`, in 0..1. Each is the mean over the classes that are annotated or
            predicted in at least one image, or None if there is no such class. Under "per_class" the PQ of each class
            by name, None for a class that is neither annotated nor predicted.
        """
        isthing = dict(zip(self.categories.distinct_names, self.categories.isthing, strict=True))
        per_class = self.per_class()
        metrics: dict[str, Any] = {}
        for suffix, isthing_values in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            rows = [quality for name, quality in per_class.items() if quality and isthing[name] in isthing_values]
            means = np.mean(rows, axis=0).tolist() if rows else (None, None, None)
            metrics |= {f"{name}{suffix}": mean for name, mean in zip(Quality._fields, means, strict=True)}
        metrics["per_class"] = {name: quality and quality.PQ for name, quality in per_class.items()}
        return metrics

    def per_class(self) -> dict[str, Quality | None]:
        """The quality of each class by name; None for a class that is neither annotated nor predicted."""
        per_class: dict[str, Quality | None] = {}
        for label, name in enumerate(self.categories.distinct_names):
            matched, false_positives, false_negatives = self._counts[:, label].tolist()
            denominator = matched + (false_positives + false_negatives) / 2
            iou = float(self._iou[label])
            quality = Quality(iou / denominator, iou / max(matched, 1), matched / denominator) if denominator else None
            if quality or self.categories.used[label]:
                per_class[name] = quality
        return per_class


def _segment_ids(info: Sequence[PredictedSegment], kind: str) -> np.ndarray:
    """(n,) the ids of segments. Raises ValueError if one is listed twice or is out of range."""
    ids = np.array([segment.id for segment in info], dtype=np.intp)
    if len(ids) and not 0 <= ids.min() <= ids.max() < _NUM_IDS:
        raise ValueError(f"the {kind} segments have ids up to {ids.max()}; give ids from 0 to {_NUM_IDS - 1}")
    if len(set(ids.tolist())) < len(ids):
        twice = next(id_ for id_ in ids.tolist() if (ids == id_).sum() > 1)
        raise ValueError(f"the {kind} segment {twice} is listed twice; give each segment its own id")
    return ids


def _positions(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(r,) the position in `ids` (n,) of each of the `values` (r,), counted from 1; 0 for values that are not in `ids`.

    This uses a table that is indexed by the last bits of an id, which is several times as fast as a search. The number
    of bits is chosen so that all ids have different last bits.
    """
    size = _MIN_TABLE_SIZE
    while len(set((ids & (size - 1)).tolist())) < len(ids):
        size *= 2
    table = np.zeros(size, dtype=np.intp)
    table[ids & (size - 1)] = np.arange(1, len(ids) + 1)
    positions = table.take(values & (size - 1))
    others = np.append(_NO_ID, ids).take(positions) != values
    if others.any():
        positions[others] = 0
    return positions


class _Runs(NamedTuple):
    """Two maps as runs of pixels that are constant in both. Most neighbouring pixels are equal, so runs are few.

    Attributes:
        true: (r,) the segment id in the ground truth.
        predicted: (r,) the segment id in the predicted map.
        lengths: (r,) number of pixels.
    """

    true: np.ndarray
    predicted: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, true: np.ndarray, predicted: np.ndarray) -> _Runs:
        """The runs of two flattened maps of equal size."""
        begins = np.ones(true.size, dtype=bool)
        np.not_equal(true[1:], true[:-1], out=begins[1:])
        begins[1:] |= predicted[1:] != predicted[:-1]
        starts = np.flatnonzero(begins)
        lengths = np.empty_like(starts)
        np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
        lengths[-1:] = true.size - starts[-1:]
        return cls(true.take(starts).astype(np.intp), predicted.take(starts).astype(np.intp), lengths)


def _on_crowd(shared: np.ndarray, true_labels: np.ndarray, crowd: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(m,) pixels of each predicted segment on the crowd region of its class.

    Of several regions of a class, only the last one counts, as in COCO.
    """
    last = {int(true_labels[position]): position for position in np.flatnonzero(crowd)}
    pixels = np.zeros(len(labels))
    for label, position in last.items():
        pixels += np.where(labels == label, shared[position], 0)
    return pixels
