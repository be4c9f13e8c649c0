"""A detector at the score thresholds that maximise F1: confusions, worst images; its precision-recall and calibration.

Shape letters: K labels, n detections, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opendetr.evaluation.average_precision import Matches, match_found, mean_over, precision_at_recalls
from opendetr.evaluation.detected import DatasetDetections
from opendetr.evaluation.matching import box_overlaps, match_overlaps
from opendetr.evaluation.thresholds import Matched, OperatingPoints, operating_points
from opendetr.visualize import draw_curves, draw_matrix

_MATCH_IOU = 0.5
_USUAL_THRESHOLD = 0.5  # if no detection is correct
_CURVE_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
_NUM_BINS = 10
_MOST_CONFUSIONS = 40  # classes of the matrix; of more, those with the most confusions are shown


@dataclass(frozen=True)
class ImageErrors:
    """The errors in one image at the thresholds.

    Attributes:
        image: the index of the image.
        objects: number of objects.
        wrong: number of detections that match no object of their class.
        missed: number of objects that no detection of their class matches.
    """

    image: int
    objects: int
    wrong: int
    missed: int


@dataclass(frozen=True)
class Operation:
    """A detector at its score thresholds.

    Attributes:
        points: for each class and for all together, the threshold that maximises F1, with precision, recall and F1.
        names: the names of the classes with objects or detections.
        confusion: the number of detections of each true class (rows) and predicted class (columns); the last row are
            detections without an object, the last column objects without a detection.
        images: the errors in each image.
        curves: mean precision over the classes at 101 recall levels, by IoU.
        calibration: for each interval of the score with detections: its lower end, the mean score, the share of correct
            detections, and the number of detections.
        calibration_error: the mean difference between score and share of correct detections.
    """

    points: OperatingPoints
    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    images: tuple[ImageErrors, ...]
    curves: dict[str, tuple[float, ...]]
    calibration: tuple[tuple[float, float, float, int], ...]
    calibration_error: float | None


def analyse_operation(dataset: DatasetDetections) -> Operation:
    """Analyse the last layer at the thresholds that maximise F1 on this dataset."""
    thresholds = np.array(_CURVE_IOUS)
    matches = match_found(dataset.objects, dataset.found, dataset.num_images, thresholds=thresholds)
    points = best_points(dataset, matches)
    by_label, _ = label_thresholds(dataset, points)
    labels, confusion = _confusion(dataset, by_label)
    curves = [precision_at_recalls(one) for one in matches.of_classes(dataset.labels)]
    mean_curves = mean_over(np.stack(curves), 0) if curves else np.zeros((len(thresholds), 0))
    bins, error = _calibration(matches)
    return Operation(
        points,
        tuple(dataset.names[label] for label in labels),
        tuple(tuple(row) for row in confusion.tolist()),
        tuple(_image_errors(dataset, matches, by_label)),
        {f"IoU {iou:.1f}": tuple(curve.tolist()) for iou, curve in zip(_CURVE_IOUS, mean_curves, strict=True)},
        bins,
        error,
    )


def best_points(dataset: DatasetDetections, matches: Matches) -> OperatingPoints:
    """The operating points at IoU 0.5, the first threshold of the matches."""
    parts = {}
    for label in range(len(dataset.names)):
        one = matches.of_class(label)
        kept = ~one.ignored[0]
        if one.num_objects.any() or kept.any():
            parts[dataset.names[label]] = Matched(one.score[kept], one.correct[0, kept], int(one.num_objects.sum()))
    return operating_points(parts)


def label_thresholds(dataset: DatasetDetections, points: OperatingPoints) -> tuple[np.ndarray, float]:
    """The threshold of each label of the dataset, (K,), and that of all other classes."""
    chosen = points.thresholds
    if chosen is None:
        return np.full(len(dataset.names), _USUAL_THRESHOLD), _USUAL_THRESHOLD
    return np.array([chosen.of(name) for name in dataset.names]), chosen.default


def _confusion(dataset: DatasetDetections, thresholds: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The labels, and the counts (k + 1, k + 1) of true and predicted classes.

    Each detection takes the free object of any class with the highest IoU of at least 0.5, in descending order of the
    score. A detection that takes a crowd region does not count.
    """
    objects, found = dataset.objects, dataset.found
    found = found[found.score >= thresholds[found.label]]
    pairs = []
    for image in range(dataset.num_images):
        rows, own = np.flatnonzero(found.image == image), np.flatnonzero(objects.image == image)
        rows = rows[np.argsort(-found.score[rows], kind="stable")]
        crowd = objects.crowd[own]
        (matched,) = match_overlaps(
            box_overlaps(found.box[rows], objects.box[own], crowd), crowd, crowd, np.array([_MATCH_IOU])
        )
        true = np.append(objects.label[own], -1)[matched]
        counted = ~np.append(crowd, False)[matched]
        pairs += list(zip(true[counted].tolist(), found.label[rows[counted]].tolist(), strict=True))
        free = np.setdiff1d(np.flatnonzero(~crowd), matched)
        pairs += [(label, -1) for label in objects.label[own[free]].tolist()]
    labels = sorted({label for pair in pairs for label in pair if label >= 0})
    position = {label: index for index, label in enumerate(labels)} | {-1: len(labels)}
    counts = np.zeros((len(labels) + 1, len(labels) + 1), np.int64)
    for true_label, label in pairs:
        counts[position[true_label], position[label]] += 1
    return labels, counts


def _image_errors(dataset: DatasetDetections, matches: Matches, thresholds: np.ndarray) -> list[ImageErrors]:
    """The errors in each image, in the order of the images."""
    found, objects = matches.found, matches.objects
    kept = (found.score >= thresholds[found.label]) & ~matches.ignored[0]
    correct = kept & (matches.object[0] >= 0)
    size = dataset.num_images
    wrong = np.bincount(found.image[kept & ~correct], minlength=size)
    detected = np.bincount(found.image[correct], minlength=size)
    total = np.bincount(objects.image[matches.counted], minlength=size)
    rows = zip(total.tolist(), wrong.tolist(), (total - detected).tolist(), strict=True)
    return [ImageErrors(image, *row) for image, row in enumerate(rows)]


def worst_images(operation: Operation, count: int) -> list[ImageErrors]:
    """The images with the most errors, worst first; those without errors are left out."""
    ranked = sorted(operation.images, key=lambda image: -(image.wrong + image.missed))
    return [image for image in ranked[:count] if image.wrong + image.missed]


def _calibration(matches: Matches) -> tuple[tuple[tuple[float, float, float, int], ...], float | None]:
    """The intervals of the score and the mean difference; see `Operation`."""
    counted = ~matches.ignored[0]
    scores, correct = matches.found.score[counted], matches.object[0, counted] >= 0
    if not len(scores):
        return (), None
    index = np.minimum((scores * _NUM_BINS).astype(int), _NUM_BINS - 1)
    bins = []
    for number in np.unique(index).tolist():
        own = index == number
        bins.append((number / _NUM_BINS, float(scores[own].mean()), float(correct[own].mean()), int(own.sum())))
    error = sum(abs(mean - share) * count for _, mean, share, count in bins) / len(scores)
    return tuple(bins), float(error)


def draw_precision_recall(operation: Operation) -> Image.Image:
    """Mean precision by recall, a line for each IoU."""
    recalls = np.linspace(0, 1, 101)
    lines = {
        f"{name}: AP {np.mean(curve):.3f}": list(zip(recalls.tolist(), curve, strict=True))
        for name, curve in operation.curves.items()
        if curve
    }
    return draw_curves(
        lines,
        "Precision by recall, mean over the classes",
        x_label="recall",
        y_label="precision",
        x_range=(0, 1),
        smooth=False,
        last_values=False,
    )


def draw_calibration(operation: Operation) -> Image.Image:
    """The share of correct detections by score, with the diagonal on which both agree."""
    points = [(mean, share) for _, mean, share, _ in operation.calibration]
    lines = {"detections of this score that are correct": points, "calibrated": [(0.0, 0.0), (1.0, 1.0)]}
    return draw_curves(
        lines,
        "Calibration of the scores",
        x_label="score",
        y_label="share of correct detections",
        x_range=(0, 1),
        last_values=False,
    )


def draw_confusion(operation: Operation) -> Image.Image:
    """The confusion matrix; the shade of a cell is its share of the objects of the row."""
    counts = np.array(operation.confusion)
    names = list(operation.names)
    chosen = _most_confused(counts)
    counts = counts[np.ix_(chosen, chosen)]
    rows = [[*names, "no object"][index] for index in chosen]
    columns = [[*names, "missed"][index] for index in chosen]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = [[str(value) if value else "" for value in row] for row in counts.tolist()]
    title = "Confusion matrix at the thresholds of best F1"
    if len(names) + 1 > len(chosen):
        title += f": the {len(chosen) - 1} of {len(names)} classes that are confused most"
    return draw_matrix(shares, rows, columns, title, x_label="predicted class", y_label="true class", texts=texts)


def _most_confused(counts: np.ndarray) -> Sequence[int]:
    """The indices to show, in ascending order; the last row and column is always one of them."""
    last = len(counts) - 1
    if last <= _MOST_CONFUSIONS:
        return range(last + 1)
    off = counts[:last, :last] * (1 - np.eye(last, dtype=int))
    ranked = np.argsort(-(off.sum(0) + off.sum(1)), kind="stable")[:_MOST_CONFUSIONS]
    return [*np.sort(ranked).tolist(), last]
