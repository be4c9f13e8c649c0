"""Tracking metrics: HOTA, CLEAR MOT and identity F1, computed by trackeval (extra `track`).

HOTA: Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking", 2021. CLEAR: Bernardin and
Stiefelhagen, 2008. Identity: Ristani et al., 2016.

Shape letters: T frames of a sequence, n objects of all its frames, g ground-truth and r predicted objects of a frame.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from opendetr.config import MissingPackageError

TRACKING_METRICS = {
    "HOTA": "higher order tracking accuracy: sqrt(DetA * AssA), mean over IoU thresholds 0.05 to 0.95",
    "DetA": "detection accuracy: TP / (TP + FN + FP), mean over the thresholds",
    "AssA": "association accuracy: how well ids follow objects, mean over the thresholds",
    "LocA": "localization accuracy: mean IoU of the matches, mean over the thresholds",
    "MOTA": "(TP - FP - id switches) / objects at IoU 0.5; negative if there are many false positives",
    "IDF1": "F1 score of the detections with the right id at IoU 0.5",
    "switches": "number of times that an object gets another id",
    "fragmentations": "number of times that the track of an object is interrupted",
    "mostly_tracked": "number of objects that are matched in more than 80 % of their frames",
    "mostly_lost": "number of objects that are matched in less than 20 % of their frames",
    "objects": "number of ground-truth tracks",
}
"""The names of the metrics, each with a description. The first six are fractions, the others are counts."""

MATCHED_IOU = 0.5 - np.finfo(np.float64).eps
"""The lowest IoU of a match."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Tracks:
    """The objects of a sequence, one row per object and frame.

    Attributes:
        frames: frame of each row, (n,) integers, in 0..T-1.
        ids: id of the track, (n,) integers. A frame has each id at most once.
        boxes: (n, 4) x0, y0, x1, y1 in pixels.
    """

    frames: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]

    def __post_init__(self) -> None:
        pairs = np.stack((self.frames, self.ids), axis=1)
        unique, counts = np.unique(pairs, axis=0, return_counts=True)
        if (counts > 1).any():
            frame, track = unique[counts > 1][0]
            raise ValueError(f"frame {frame} has id {track} more than once; an id is one object in each frame")


@dataclass(frozen=True, eq=False, kw_only=True)
class TrueTracks(Tracks):
    """The ground truth of a sequence.

    Attributes:
        ignored: whether a row is not evaluated, (n,). A prediction that matches it is a false positive.
        distractors: whether a row is of a class that is similar to the evaluated one, (n,), such as a reflection. It is
            not evaluated either, but a prediction that matches it is removed.
    """

    ignored: NDArray[np.bool_]
    distractors: NDArray[np.bool_]


@dataclass(frozen=True)
class TrackingReport:
    """The metrics of a tracker.

    Attributes:
        combined: the metrics of all sequences together; names as in `TRACKING_METRICS`.
        sequences: the metrics of each sequence.
        details: everything that trackeval computes, by sequence and metric family ("HOTA", "CLEAR", "Identity",
            "Count"); "combined" are all sequences.
    """

    combined: dict[str, float]
    sequences: dict[str, dict[str, float]]
    details: dict[str, dict[str, dict[str, Any]]] = field(repr=False)


class TrackingMetrics:
    """Collects the tracks of sequences and computes their metrics. Classes are not distinguished.

    Example:
        >>> metrics = TrackingMetrics()
        >>> metrics.add("street", 30, truth, predicted)
        >>> metrics.compute().combined["HOTA"]

    Raises:
        MissingPackageError: the extra `track` is not installed.
    """

    def __init__(self) -> None:
        if not importlib.util.find_spec("trackeval"):
            raise MissingPackageError("tracking metrics", "trackeval")
        from trackeval.metrics import CLEAR, HOTA, Count, Identity

        quiet = {"PRINT_CONFIG": False}
        self._families = {"HOTA": HOTA(), "CLEAR": CLEAR(quiet), "Identity": Identity(quiet), "Count": Count()}
        self._results: dict[str, dict[str, dict[str, Any]]] = {}

    def add(self, name: str, num_frames: int, truth: TrueTracks, predicted: Tracks) -> None:
        """Add a sequence.

        Args:
            name: its name, new to this object.
            num_frames: number of its frames, T.
            truth: the ground truth.
            predicted: the tracks of the tracker.

        Raises:
            ValueError: `name` is known, or a frame is outside 0..T-1.
        """
        if name in self._results:
            raise ValueError(f"sequence {name!r} was added before")
        for what, tracks in (("the ground truth", truth), ("the prediction", predicted)):
            if len(tracks.frames) and not 0 <= tracks.frames.min() <= tracks.frames.max() < num_frames:
                raise ValueError(f"{name}: {what} has objects outside its {num_frames} frames")
        data = _sequence(num_frames, truth, predicted)
        self._results[name] = {key: family.eval_sequence(data) for key, family in self._families.items()}

    def compute(self) -> TrackingReport:
        """The metrics. Raises ValueError if no sequence was added."""
        if not self._results:
            raise ValueError("no sequence was added")
        details = dict(self._results)
        details["combined"] = {
            key: family.combine_sequences({name: result[key] for name, result in self._results.items()})
            for key, family in self._families.items()
        }
        by_name = {name: _summary(result) for name, result in details.items()}
        return TrackingReport(by_name.pop("combined"), by_name, details)


def _summary(result: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The metrics in `TRACKING_METRICS` from those of trackeval."""
    hota, clear, identity = result["HOTA"], result["CLEAR"], result["Identity"]
    means = {name: float(np.mean(hota[name])) for name in ("HOTA", "DetA", "AssA", "LocA")}
    counts = {"switches": "IDSW", "fragmentations": "Frag", "mostly_tracked": "MT", "mostly_lost": "ML"}
    return {
        **means,
        "MOTA": float(clear["MOTA"]),
        "IDF1": float(identity["IDF1"]),
        **{name: float(clear[theirs]) for name, theirs in counts.items()},
        "objects": float(clear["MT"] + clear["PT"] + clear["ML"]),
    }


def _sequence(num_frames: int, truth: TrueTracks, predicted: Tracks) -> dict[str, Any]:
    """A sequence as trackeval's metrics take it, without the objects that are not evaluated."""
    frames = list(evaluated_frames(range(num_frames), truth, predicted))
    true_ids, num_true_ids = _contiguous([truth.ids[true_rows] for true_rows, _, _ in frames])
    ids, num_ids = _contiguous([predicted.ids[rows] for _, rows, _ in frames])
    return {
        "num_timesteps": num_frames,
        "gt_ids": true_ids,
        "tracker_ids": ids,
        "num_gt_ids": num_true_ids,
        "num_tracker_ids": num_ids,
        "num_gt_dets": sum(map(len, true_ids)),
        "num_tracker_dets": sum(map(len, ids)),
        "similarity_scores": [iou for _, _, iou in frames],
    }


def evaluated_frames(
    frames: Iterable[int], truth: TrueTracks, predicted: Tracks
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Yield what is evaluated in each frame: rows (g,) of the ground truth, rows (r,) of the prediction, IoU (g, r).

    Predictions that match distractors are left out.
    """
    nothing = np.zeros(0, np.int64)
    all_true_rows, all_rows = _rows_by_frame(truth.frames), _rows_by_frame(predicted.frames)
    for frame in frames:
        true_rows, rows = all_true_rows.get(frame, nothing), all_rows.get(frame, nothing)
        iou = box_ious(truth.boxes[true_rows], predicted.boxes[rows])
        removed = _matched_to(truth.distractors[true_rows], iou)
        evaluated = ~(truth.ignored | truth.distractors)[true_rows]
        yield true_rows[evaluated], np.delete(rows, removed), np.delete(iou, removed, axis=1)[evaluated]


def _rows_by_frame(frames: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Frame -> its rows in ascending order."""
    order = np.argsort(frames, kind="stable")
    numbers, starts = np.unique(frames[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts)[1:], strict=True))


def box_ious(true_boxes: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of all pairs, (g, r), from (g, 4) and (r, 4). Boxes are continuous; those without area have IoU 0."""
    low = np.maximum(true_boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(true_boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=2)
    true_area, area = (np.prod(np.maximum(each[:, 2:] - each[:, :2], 0), axis=1) for each in (true_boxes, boxes))
    union = true_area[:, None] + area[None] - intersection
    has_area = (true_area[:, None] > 0) & (area[None] > 0)
    return np.divide(intersection, union, out=np.zeros_like(union), where=has_area)


def _matched_to(chosen: NDArray[np.bool_], iou: NDArray[np.float64]) -> NDArray[np.int64]:
    """The predictions of a frame whose best assignment is one of the chosen ground-truth objects.

    Args:
        chosen: (g,).
        iou: (g, r).
    """
    if not chosen.any():
        return np.zeros(0, np.int64)
    gated = np.where(iou < MATCHED_IOU, 0.0, iou)
    true, matched = linear_sum_assignment(-gated)
    return matched[(gated[true, matched] > np.finfo(np.float64).eps) & chosen[true]]


def _contiguous(frames: list[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], int]:
    """The ids of each frame, numbered from 0 without gaps, and the number of different ids."""
    unique, numbers = np.unique(np.concatenate([*frames, np.zeros(0, np.int64)]), return_inverse=True)
    ends = np.cumsum([len(ids) for ids in frames])
    return np.split(numbers, ends[:-1]), len(unique)
