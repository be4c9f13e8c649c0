"""Precision, recall and F1 of boxes at the score threshold that maximises F1, for each class and for all together.

Shape letters: n detections and m objects of one class in one image; N detections of one class in all images.
Frame: a box is x, y, w, h in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from opendetr.evaluation.matching import box_overlaps, match_overlaps
from opendetr.scoring import ScoreThresholds

MATCH_IOU = 0.5
"""A detection and an object match at this IoU or above."""


@dataclass(frozen=True)
class OperatingPoint:
    """A score threshold and its results. All values are in 0..1.

    Attributes:
        threshold: detections with a lower score are dropped. None if F1 is 0 at every threshold.
        precision: fraction of the kept detections that match an object. None if no detection is kept.
        recall: fraction of the objects that are detected. None without objects.
        f1: harmonic mean of precision and recall. None without objects.
    """

    threshold: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True)
class OperatingPoints:
    """The operating points of a detector on a dataset.

    Attributes:
        per_class: the operating point of each class, with its own threshold, by name.
        overall: the operating point of all classes with one common threshold.
    """

    per_class: dict[str, OperatingPoint] = field(default_factory=dict)
    overall: OperatingPoint = OperatingPoint()

    @property
    def thresholds(self) -> ScoreThresholds | None:
        """The thresholds to predict with. None if no detection matches.

        A class without a threshold of its own has the common threshold.
        """
        if self.overall.threshold is None:
            return None
        by_class = {name: point.threshold for name, point in self.per_class.items() if point.threshold is not None}
        return ScoreThresholds(self.overall.threshold, by_class)


class Matched(NamedTuple):
    """The detections of one class, matched with the ground truth.

    Attributes:
        scores: (N,) float64, in any order.
        correct: (N,) bool, whether the detection matches an object.
        num_objects: number of objects, without crowd regions.
    """

    scores: np.ndarray
    correct: np.ndarray
    num_objects: int


def match_boxes(boxes: np.ndarray, scores: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> Matched:
    """Match the detections of one class in one image with its objects, as COCO does.

    In descending order of the score, each detection matches the free object with the highest IoU. A detection without
    an object that lies in a crowd region is not part of the result. Detections below a threshold do not change the
    matches of those above it, so one matching is valid for all thresholds.

    Args:
        boxes: (n, 4) of the detections.
        scores: (n,) of the detections.
        objects: (m, 4) boxes of the annotations.
        crowd: (m,) bool, whether the annotation is a crowd region.
    """
    order = np.argsort(-scores, kind="stable")
    overlaps = box_overlaps(boxes[order], objects, crowd)
    (matches,) = match_overlaps(overlaps, crowd, crowd, np.array([MATCH_IOU]))
    ignored = np.append(crowd, False)[matches]  # index -1 is no object
    correct = (matches >= 0) & ~ignored
    return Matched(scores[order][~ignored], correct[~ignored], int((~crowd).sum()))


def concatenate_matches(parts: list[Matched]) -> Matched:
    """The detections of several images or classes together."""
    return Matched(
        np.concatenate([np.empty(0), *(part.scores for part in parts)]),
        np.concatenate([np.empty(0, bool), *(part.correct for part in parts)]),
        sum(part.num_objects for part in parts),
    )


def operating_point(matched: Matched) -> OperatingPoint:
    """The operating point with the highest F1. Of several with the same F1, it is the one with the highest threshold.

    The threshold is the mean of the lowest kept score and the highest dropped score.
    """
    scores, correct, num_objects = matched
    if not num_objects:
        return OperatingPoint()
    if not correct.any():
        return OperatingPoint(recall=0.0, f1=0.0)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(correct[order])
    ends = np.flatnonzero(
        np.append(scores[1:] < scores[:-1], True)
    )  # detections of equal score are kept or dropped together
    f1 = 2 * hits[ends] / (ends + 1 + num_objects)  # 2 TP / (TP + FP + TP + FN)
    best = int(np.argmax(f1))
    end = int(ends[best])
    dropped = scores[end + 1] if end + 1 < len(scores) else scores[end]
    # Predictions compare scores in float32. There the mean may equal the dropped score.
    threshold = np.float32((scores[end] + dropped) / 2)
    threshold = threshold if dropped < threshold <= scores[end] else scores[end]
    return OperatingPoint(
        float(threshold), float(hits[end] / (end + 1)), float(hits[end] / num_objects), float(f1[best])
    )


def operating_points(matched: Mapping[str, Matched]) -> OperatingPoints:
    """The operating points of each class, by name, and of all classes together."""
    per_class = {name: operating_point(of_class) for name, of_class in matched.items()}
    return OperatingPoints(per_class, operating_point(concatenate_matches(list(matched.values()))))
