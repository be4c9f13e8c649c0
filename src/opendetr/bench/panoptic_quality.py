"""Panoptic quality of 1,000 images of 640x480 pixels, compared with the usual loop, in turns image by image.

The usual loop takes the areas of ground-truth segments from the annotation and counts those of predicted segments with
`np.unique`. It combines the ids of both maps into one number per pixel, counts these the same way, and goes through
the pairs. The results of both must be equal to 1e-9.

The maps resemble those of COCO: 2 to 6 regions of stuff, 1 to 15 things, void around them, a crowd region in one image
of ten, and 24-bit ids in the ground truth. Predicted segments are moved; some are relabelled, joined or dropped.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from opendetr.bench.figure import Figure
from opendetr.categories import Categories, coco_panoptic_categories
from opendetr.evaluation import PanopticEvaluator

_NUM_IMAGES, _HEIGHT, _WIDTH = 1000, 480, 640
_OFFSET = 2**24


class _Segment(NamedTuple):
    """One segment of a map."""

    id: int
    label: int
    crowd: bool = False
    area: int = 0


class _Pair(NamedTuple):
    """A ground-truth and a predicted map, each with its segments."""

    truth: np.ndarray
    truth_info: list[_Segment]
    predicted: np.ndarray
    predicted_info: list[_Segment]


def _used_categories() -> Categories:
    """The 133 classes of COCO panoptic."""
    rows = coco_panoptic_categories()
    kept = [label for label, used in enumerate(rows.used) if used]
    return Categories(
        tuple(rows.names[label] for label in kept),
        tuple(rows.ids[label] for label in kept),
        isthing=tuple(rows.isthing[label] for label in kept),
    )


def _drawn(rng: np.random.Generator, categories: Categories) -> _Pair:
    """A ground-truth map, and a map as a model might predict it."""
    index, labels = _drawn_index(rng, categories)
    truth_ids = np.concatenate([[0], rng.choice(2**24 - 1, len(labels), replace=False) + 1]).astype(np.int32)
    crowd = rng.integers(len(labels)) if rng.random() < 0.1 else -1
    areas = np.bincount(index.ravel(), minlength=len(labels) + 1).tolist()
    truth_info = [
        _Segment(int(truth_ids[n]), label, n - 1 == crowd, areas[n]) for n, label in enumerate(labels, start=1)
    ]
    shift = rng.integers(-4, 5, 2)
    predicted = np.roll(index, shift, (0, 1)).astype(np.int32)
    kept = rng.random(len(labels)) < 0.85
    predicted = np.where(np.concatenate([[True], kept])[predicted], predicted, 1 if kept[0] else 0)
    present = set(np.unique(predicted).tolist()) - {0}
    predicted_info = [
        _Segment(n + 1, label if rng.random() < 0.9 else int(rng.integers(len(categories))))
        for n, label in enumerate(labels)
        if n + 1 in present
    ]
    return _Pair(truth_ids[index], truth_info, predicted, predicted_info)


def _drawn_index(rng: np.random.Generator, categories: Categories) -> tuple[np.ndarray, list[int]]:
    """A map (H, W) of visible segments, numbered from 1 with 0 for void, and their labels."""
    y, x = np.mgrid[:_HEIGHT, :_WIDTH].astype(np.float32)
    wave = 12 * np.sin(x / rng.uniform(15, 60)) + 6 * np.sin(x / rng.uniform(5, 15) + y / 40)
    stuff, things = rng.integers(2, 7), rng.integers(1, 16)
    borders = np.sort(rng.uniform(0, _HEIGHT, stuff - 1))
    index = 1 + np.searchsorted(borders, y + wave + x * rng.uniform(-0.3, 0.3)).astype(np.int32)
    for number in range(stuff + 1, stuff + things + 1):
        cy, cx, h, w = rng.uniform(0, _HEIGHT), rng.uniform(0, _WIDTH), rng.uniform(8, 120), rng.uniform(8, 120)
        angle = np.arctan2(y - cy, x - cx)
        radius = ((y - cy) / h) ** 2 + ((x - cx) / w) ** 2
        edge = 1 + 0.2 * np.sin(angle * rng.integers(3, 12))
        index[radius < 1.15 * edge] = 0
        index[radius < edge] = number
    seen, index = np.unique(index, return_inverse=True)
    index = index.reshape(_HEIGHT, _WIDTH) + int(seen[0] > 0)
    isthing = np.array(categories.isthing)
    of_stuff, of_things = np.flatnonzero(~isthing), np.flatnonzero(isthing)
    stuff_labels = rng.choice(of_stuff, stuff, replace=False)
    numbers = seen[seen > 0].tolist()
    return index, [int(stuff_labels[n - 1]) if n <= stuff else int(rng.choice(of_things)) for n in numbers]


class _UsualLoop:
    """The evaluation as it is usually written."""

    def __init__(self) -> None:
        self.counts: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])  # TP, FP, FN, sum of IoU

    def update(
        self, truth: np.ndarray, truth_info: list[_Segment], predicted: np.ndarray, predicted_info: list[_Segment]
    ) -> None:
        """Add an image."""
        true_segments, predicted_segments = (
            {segment.id: segment for segment in info} for info in (truth_info, predicted_info)
        )
        areas = dict(zip(*(part.tolist() for part in np.unique(predicted, return_counts=True)), strict=True))
        joint = truth.astype(np.uint64) * _OFFSET + predicted.astype(np.uint64)
        pairs: dict[tuple[int, int], int] = {}
        for number, pixels in zip(*np.unique(joint, return_counts=True), strict=True):
            pairs[int(number) // _OFFSET, int(number) % _OFFSET] = int(pixels)
        matched_true, matched_predicted = set(), set()
        for (true_id, predicted_id), pixels in pairs.items():
            true, segment = true_segments.get(true_id), predicted_segments.get(predicted_id)
            if true is None or segment is None or true.crowd or true.label != segment.label:
                continue
            union = areas[predicted_id] + true.area - pixels - pairs.get((0, predicted_id), 0)
            if pixels / union > 0.5:
                self.counts[true.label][0] += 1
                self.counts[true.label][3] += pixels / union
                matched_true.add(true_id)
                matched_predicted.add(predicted_id)
        crowds = {}
        for true in truth_info:
            if true.crowd:
                crowds[true.label] = true.id
            elif true.id not in matched_true:
                self.counts[true.label][2] += 1
        for segment in predicted_info:
            if segment.id not in matched_predicted:
                ignored = pairs.get((0, segment.id), 0)
                if segment.label in crowds:
                    ignored += pairs.get((crowds[segment.label], segment.id), 0)
                if ignored / areas[segment.id] <= 0.5:
                    self.counts[segment.label][1] += 1

    def quality(self, label: int) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ of a class."""
        matched, false_positives, false_negatives, iou = self.counts[label]
        size = matched + (false_positives + false_negatives) / 2
        return (iou / size, iou / matched if matched else 0.0, matched / size) if size else None


def measure(repeats: int) -> Iterator[Figure]:
    """Yield the seconds of the updates with all images."""
    categories = _used_categories()
    seconds: dict[str, list[float]] = {"opendetr": [], "usual loop": []}
    for seed in range(repeats):
        for taken, name in zip(_updates(seed, categories), seconds, strict=True):
            seconds[name].append(taken)
    yield Figure.of_seconds(f"{_NUM_IMAGES:,} images", seconds, expected=3.0)


def _updates(seed: int, categories: Categories) -> tuple[float, float]:
    """The seconds of OpenDETR and of the usual loop. Asserts that their results are equal."""
    rng = np.random.default_rng(seed)
    ours, theirs = PanopticEvaluator(categories), _UsualLoop()
    seconds = [0.0, 0.0]
    for number in range(_NUM_IMAGES):
        pair = _drawn(rng, categories)
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            (ours, theirs)[side].update(*pair)
            seconds[side] += time.perf_counter() - began
    for label, quality in enumerate(ours.per_class().values()):
        expected = theirs.quality(label)
        if quality is None or expected is None:
            assert quality == expected, label
        else:
            assert np.allclose(quality, expected, rtol=0, atol=1e-9), label
    return seconds[0], seconds[1]
