"""COCO evaluation of 5,000 images with 100 detections each, compared with pycocotools, and of masks.

Both begin with the detections in memory and end with the twelve metrics, which must be equal to 1e-9. OpenDETR begins
with `Detections`, pycocotools with the rows of a COCO results file, the form that its `loadRes` takes. The index of the
ground truth of pycocotools is not measured. For masks, both begin with RLE.

The objects resemble those of COCO: 80 classes, 7 objects an image on average, 60 % of them in 8 classes, crowd regions
in one image of ten. Three of four objects are detected, some twice or as another class; the rest of the detections has
random places and low scores.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from opendetr.bench.figure import Figure
from opendetr.bench.measuring import interleaved
from opendetr.categories import Categories
from opendetr.evaluation import DETECTION_METRICS, CocoEvaluator
from opendetr.results import Detections

_HEIGHT, _WIDTH, _NUM_CLASSES, _SEED = 480, 640, 80, 0
_IMAGES, _DETECTIONS = 5000, 100  # of boxes
_MASK_IMAGES, _MASK_DETECTIONS = 500, 20
_CATEGORIES = Categories(tuple(f"class {number}" for number in range(_NUM_CLASSES)), tuple(range(1, _NUM_CLASSES + 1)))


def measure(repeats: int) -> Iterator[Figure]:
    """Yield the seconds of the evaluation of boxes and of masks."""
    rng = np.random.default_rng(_SEED)
    truth, images = _drawn(rng, _IMAGES, _DETECTIONS)
    rows = [row for image_id, found in images.items() for row in found.to_coco(image_id)]
    what = f"boxes, {_IMAGES:,} images"
    yield _compared(what, truth, rows, repeats, lambda: _filled(truth, images), expected=50.0)

    truth, images = _drawn(rng, _MASK_IMAGES, _MASK_DETECTIONS, masks=True)
    rows = [row for image_id, found in images.items() for row in found.to_coco(image_id)]
    for row in rows:
        del row["bbox"]  # pycocotools would take the area of the box
    evaluator = _filled(truth, images, masks=True)
    what = f"masks, {_MASK_IMAGES} images, {_MASK_DETECTIONS} detections each"
    yield _compared(what, truth, rows, repeats, lambda: evaluator, expected=10.0)


def _compared(
    what: str, truth: dict[str, Any], rows: list[dict[str, Any]], repeats: int, filled: Any, expected: float
) -> Figure:
    """The seconds of both. Asserts that their twelve metrics are equal.

    Args:
        what: the quantity measured.
        truth: the ground truth.
        rows: the detections, in the form that pycocotools takes.
        repeats: the number of rounds.
        filled: returns an evaluator with the same detections.
        expected: the smallest factor that OpenDETR promises.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    masks = "segmentation" in rows[0]
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
    metrics: dict[str, Sequence[float]] = {}

    def ours() -> None:
        values = filled().compute()
        metrics["opendetr"] = [values[name] for name in DETECTION_METRICS]

    def theirs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(index, index.loadRes([dict(row) for row in rows]), "segm" if masks else "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        metrics["pycocotools"] = evaluation.stats

    seconds = interleaved({"opendetr": ours, "pycocotools": theirs}, repeats)
    np.testing.assert_allclose(metrics["opendetr"], metrics["pycocotools"], rtol=0, atol=1e-9)
    return Figure.of_seconds(what, seconds, expected)


def _filled(truth: dict[str, Any], images: dict[int, Detections], *, masks: bool = False) -> CocoEvaluator:
    """An evaluator with the detections of all images."""
    evaluator = CocoEvaluator(truth, masks=masks)
    evaluator.update([*images], [*images.values()])
    return evaluator


def _drawn(
    rng: np.random.Generator, num_images: int, num_detections: int, *, masks: bool = False
) -> tuple[dict[str, Any], dict[int, Detections]]:
    """A ground truth, and the detections of each image by its id. With `masks`, all objects are ellipses."""
    shares = np.r_[np.full(8, 0.6 / 8), np.full(_NUM_CLASSES - 8, 0.4 / (_NUM_CLASSES - 8))]
    annotations: list[dict[str, Any]] = []
    images: dict[int, Detections] = {}
    for image_id in range(1, num_images + 1):
        count = int(rng.poisson(7))
        labels, boxes = rng.choice(_NUM_CLASSES, count, p=shares), _boxes(rng, count)
        crowd = np.zeros(count, bool)
        crowd[:1] = rng.random() < 0.1
        outlines = _outlines(boxes) if masks else None
        for number, (label, box) in enumerate(zip(labels.tolist(), boxes.tolist(), strict=True)):
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            x0, y0, x1, y1 = box
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": int(crowd[number])}
            if outlines is not None:
                row |= {"segmentation": outlines[number], "area": _area(outlines[number])}
            annotations.append(row)
        images[image_id] = _detected(rng, labels, boxes, num_detections, masks=masks)
    truth = {
        "images": [{"id": image_id, "height": _HEIGHT, "width": _WIDTH} for image_id in images],
        "categories": [{"id": id_, "name": _CATEGORIES.names[id_ - 1]} for id_ in _CATEGORIES.ids],
        "annotations": annotations,
        "info": {},
    }
    return truth, images


def _detected(
    rng: np.random.Generator, labels: np.ndarray, boxes: np.ndarray, count: int, *, masks: bool
) -> Detections:
    """Detections of most of the objects, and of nothing."""
    found = np.flatnonzero(rng.random(len(labels)) < 0.75)
    found = np.concatenate([found, found[rng.random(len(found)) < 0.2]])[:count]
    sides = (boxes[found, 2:] - boxes[found, :2])[:, [0, 1, 0, 1]]
    moved = boxes[found] + rng.normal(0, 0.06, (len(found), 4)) * sides
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    right = np.where(rng.random(len(found)) < 0.85, labels[found], rng.integers(_NUM_CLASSES, size=len(found)))
    rest = count - len(found)
    all_boxes = np.concatenate([moved, _boxes(rng, rest)])
    scores = np.concatenate([rng.beta(5, 2, len(found)), rng.beta(1, 6, rest)])
    all_labels = np.concatenate([right, rng.integers(_NUM_CLASSES, size=rest)])
    return Detections(
        torch.tensor(all_boxes, dtype=torch.float32),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(all_labels),
        _CATEGORIES,
        (_HEIGHT, _WIDTH),
        masks=torch.from_numpy(_ellipses(all_boxes)) if masks else None,
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x0, y0, x1, y1 in pixels; the logarithm of the side is normal, as for objects of COCO."""
    sides = np.exp(rng.normal(4.1, 0.9, (count, 2))).clip(4, [_WIDTH - 1, _HEIGHT - 1])
    corners = rng.random((count, 2)) * (np.array([_WIDTH, _HEIGHT]) - sides)
    return np.concatenate([corners, corners + sides], 1)


def _ellipses(boxes: np.ndarray) -> np.ndarray:
    """(n, H, W) bool: the ellipse in each box."""
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    y, x = np.mgrid[:_HEIGHT, :_WIDTH] + 0.5
    return ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25


def _outlines(boxes: np.ndarray) -> list[dict[str, Any]]:
    """The RLE of the ellipse in each box."""
    from opendetr.results import run_lengths

    return [run_lengths(mask) for mask in torch.from_numpy(_ellipses(boxes))]


def _area(outline: dict[str, Any]) -> float:
    """The pixels of an RLE."""
    from pycocotools import mask

    return float(mask.area(outline))
