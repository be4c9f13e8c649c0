"""Panoptic quality of 1,000 images of 640x480 pixels, beside the usual loop, in turns image by image.

The usual loop takes the areas of true segments from the annotation, counts those of predicted ones with `np.unique`,
joins the numbers of both maps to one for each pixel, counts these the same way, and goes through the pairs. Its result
is compared: every number is equal to 1e-9. Maps are drawn as they are in COCO: 2 to 6 regions of stuff, 1 to 15 things,
void around them, a crowd region in one image of ten, numbers of 24 bits in the truth; the predicted ones are moved,
relabelled, joined and left out in part.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from opendetr.bench.figure import Figure
from opendetr.categories import Categories, coco_panoptic_categories
from opendetr.evaluation import PanopticEvaluation

_NUM_IMAGES, _HEIGHT, _WIDTH = 1000, 480, 640
_OFFSET = 2**24


class _Segment(NamedTuple):
    """One segment of a map."""

    id: int
    label: int
    crowd: bool = False
    area: int = 0


class _Pair(NamedTuple):
    """A true and a predicted map with what their numbers stand for."""

    truth: np.ndarray
    truth_info: list[_Segment]
    found: np.ndarray
    found_info: list[_Segment]


def _used_categories() -> Categories:
    """COCO panoptic's 133 classes."""
    rows = coco_panoptic_categories()
    kept = [label for label, used in enumerate(rows.used) if used]
    return Categories(
        tuple(rows.names[label] for label in kept),
        tuple(rows.ids[label] for label in kept),
        isthing=tuple(rows.isthing[label] for label in kept),
    )


def _drawn(rng: np.random.Generator, categories: Categories) -> _Pair:
    """A true map, and one as a model might give."""
    index, labels = _drawn_index(rng, categories)
    truth_ids = np.concatenate([[0], rng.choice(2**24 - 1, len(labels), replace=False) + 1]).astype(np.int32)
    crowd = rng.integers(len(labels)) if rng.random() < 0.1 else -1
    areas = np.bincount(index.ravel(), minlength=len(labels) + 1).tolist()
    truth_info = [
        _Segment(int(truth_ids[n]), label, n - 1 == crowd, areas[n]) for n, label in enumerate(labels, start=1)
    ]
    shift = rng.integers(-4, 5, 2)
    found = np.roll(index, shift, (0, 1)).astype(np.int32)
    kept = rng.random(len(labels)) < 0.85
    found = np.where(np.concatenate([[True], kept])[found], found, 1 if kept[0] else 0)
    present = set(np.unique(found).tolist()) - {0}
    found_info = [
        _Segment(n + 1, label if rng.random() < 0.9 else int(rng.integers(len(categories))))
        for n, label in enumerate(labels)
        if n + 1 in present
    ]
    return _Pair(truth_ids[index], truth_info, found, found_info)


def _drawn_index(rng: np.random.Generator, categories: Categories) -> tuple[np.ndarray, list[int]]:
    """A map (H, W) of segments counted from 1 that can all be seen, 0 for void; their labels."""
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
        self.counts: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])  # matched, in vain, missed, IoU

    def update(
        self, truth: np.ndarray, truth_info: list[_Segment], found: np.ndarray, found_info: list[_Segment]
    ) -> None:
        """Add an image."""
        true_segments, found_segments = ({segment.id: segment for segment in info} for info in (truth_info, found_info))
        areas = dict(zip(*(part.tolist() for part in np.unique(found, return_counts=True)), strict=True))
        joint = truth.astype(np.uint64) * _OFFSET + found.astype(np.uint64)
        pairs: dict[tuple[int, int], int] = {}
        for number, pixels in zip(*np.unique(joint, return_counts=True), strict=True):
            pairs[int(number) // _OFFSET, int(number) % _OFFSET] = int(pixels)
        matched_true, matched_found = set(), set()
        for (true_id, found_id), pixels in pairs.items():
            true, segment = true_segments.get(true_id), found_segments.get(found_id)
            if true is None or segment is None or true.crowd or true.label != segment.label:
                continue
            union = areas[found_id] + true.area - pixels - pairs.get((0, found_id), 0)
            if pixels / union > 0.5:
                self.counts[true.label][0] += 1
                self.counts[true.label][3] += pixels / union
                matched_true.add(true_id)
                matched_found.add(found_id)
        crowds = {}
        for true in truth_info:
            if true.crowd:
                crowds[true.label] = true.id
            elif true.id not in matched_true:
                self.counts[true.label][2] += 1
        for segment in found_info:
            if segment.id not in matched_found:
                ignored = pairs.get((0, segment.id), 0)
                if segment.label in crowds:
                    ignored += pairs.get((crowds[segment.label], segment.id), 0)
                if ignored / areas[segment.id] <= 0.5:
                    self.counts[segment.label][1] += 1

    def quality(self, label: int) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ of a class."""
        matched, in_vain, missed, iou = self.counts[label]
        size = matched + (in_vain + missed) / 2
        return (iou / size, iou / matched if matched else 0.0, matched / size) if size else None


def measure(repeats: int) -> Iterator[Figure]:
    """Seconds of the updates of all images."""
    categories = _used_categories()
    seconds: dict[str, list[float]] = {"opendetr": [], "usual loop": []}
    for seed in range(repeats):
        for taken, name in zip(_updates(seed, categories), seconds, strict=True):
            seconds[name].append(taken)
    yield Figure.of_seconds(f"{_NUM_IMAGES:,} images", seconds, expected=3.0)


def _updates(seed: int, categories: Categories) -> tuple[float, float]:
    """Seconds of ours and of theirs, which find the same."""
    rng = np.random.default_rng(seed)
    ours, theirs = PanopticEvaluation(categories), _UsualLoop()
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
