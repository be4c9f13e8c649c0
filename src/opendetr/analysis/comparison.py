"""Compare two detectors on the same images: paired differences, their intervals, and a paired test.

Shape letters: I images, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from opendetr.analysis.intervals import NUM_RESAMPLES, Estimate, class_matches, estimate, resampled, samples_of_classes
from opendetr.analysis.predictions import Collected
from opendetr.config import ConfigError
from opendetr.evaluation import SIZES, ClassMatches, ImageErrors, analyse_operation
from opendetr.visualize import draw_bars

SIGNIFICANT = 0.05
"""Differences with a lower p-value are called significant."""


@dataclass(frozen=True)
class Difference:
    """A metric of two detectors.

    Attributes:
        a, b: the values of both; None without objects.
        difference: b - a, with its 95 % interval.
        p: the probability of a difference this large if the detectors are equally good: the share of 1000 random
            exchanges of their predictions, image by image, after which the difference is at least as large.
        significant: whether the detectors differ; for classes with Holm's correction for the number of classes.
    """

    a: float | None
    b: float | None
    difference: Estimate
    p: float | None
    significant: bool


@dataclass(frozen=True)
class ImageChange:
    """An image in which two detectors make different numbers of errors.

    Attributes:
        image: the index of the image.
        errors_a, errors_b: wrong detections and missed objects, each at the detector's own thresholds of best F1.
    """

    image: int
    errors_a: int
    errors_b: int


@dataclass(frozen=True)
class Comparison:
    """The differences between detector B and detector A.

    Attributes:
        images: number of images.
        metrics: AP, AP50, AP75, AP_S, AP_M and AP_L.
        per_class: AP of each class with objects that both detectors know.
        changes: the images in which they differ, those with the largest differences first.
        resamples: number of resamples.
    """

    images: int
    metrics: dict[str, Difference]
    per_class: dict[str, Difference]
    changes: tuple[ImageChange, ...]
    resamples: int


def compare_collected(a: Collected, b: Collected, *, resamples: int = NUM_RESAMPLES, seed: int = 0) -> Comparison:
    """Compare what two detectors predict for the same dataset. Only classes that both know count."""
    assert len(a.data) == len(b.data)
    labels = [label for label in a.labels if label in a.known & b.known]
    by_size = {
        size: [
            _joined(*pair) for pair in zip(class_matches(a, labels, size), class_matches(b, labels, size), strict=True)
        ]
        for size in SIZES
    }
    once = resampled(a.num_images, resamples, seed)
    nothing = np.zeros_like(once)
    swapped = np.random.default_rng(seed + 1).random((resamples, a.num_images)) < 0.5

    def samples(of_a: np.ndarray, of_b: np.ndarray) -> dict[str | int, np.ndarray]:
        return dict(samples_of_classes(by_size, labels, np.concatenate((of_a, of_b), 1)))

    values_a, values_b = samples(once, nothing), samples(nothing, once)
    exchanged_a, exchanged_b = samples(~swapped, swapped), samples(swapped, ~swapped)
    differences = {
        name: _difference(values_a[name], values_b[name], exchanged_b[name] - exchanged_a[name]) for name in values_a
    }
    of_classes = {a.names[label]: differences[label] for label in labels}
    metrics = {str(name): each for name, each in differences.items() if isinstance(name, str)}
    return Comparison(a.num_images, metrics, _corrected(of_classes), _changes(a, b), resamples)


def require_common_classes(a: Sequence[str], b: Sequence[str], names: tuple[str, str]) -> None:
    """Raise ConfigError unless two detectors have a class in common.

    Args:
        a: the classes of the first.
        b: those of the second.
        names: what messages call the two detectors.
    """
    if not set(a) & set(b):
        raise ConfigError(
            f"{names[0]} has {', '.join(a[:5])}, {names[1]} has {', '.join(b[:5])}: no class in common; compare runs "
            "that were trained on the same classes"
        )


def _joined(a: ClassMatches, b: ClassMatches) -> ClassMatches:
    """The detections of both detectors, as those of 2 I images: the images of A, then those of B."""
    num_images = len(a.num_objects)
    score = np.concatenate((a.score, b.score))
    order = np.argsort(-score, kind="stable")
    return ClassMatches(
        np.concatenate((a.image, b.image + num_images))[order],
        score[order],
        np.concatenate((a.correct, b.correct), 1)[:, order],
        np.concatenate((a.ignored, b.ignored), 1)[:, order],
        np.concatenate((a.num_objects, b.num_objects)),
    )


def _difference(a: np.ndarray, b: np.ndarray, exchanged: np.ndarray) -> Difference:
    """The difference of two metrics.

    Args:
        a: the metric of detector A for each row of `resampled`.
        b: likewise of detector B on the same images.
        exchanged: (S,) differences after random exchanges.
    """
    found = estimate(b - a, lowest=-1.0)
    if found.value is None:
        return Difference(None, None, found, None, significant=False)
    rounding = 1e-12  # sums in another order
    p = float((1 + (np.abs(exchanged) >= abs(found.value) - rounding).sum()) / (1 + len(exchanged)))
    return Difference(float(a[0]), float(b[0]), found, p, significant=p < SIGNIFICANT)


def _corrected(differences: dict[str, Difference]) -> dict[str, Difference]:
    """The differences of classes, significant by the method of Holm (1979)."""
    tested = sorted((each.p, name) for name, each in differences.items() if each.p is not None)
    significant = set()
    for rank, (p, name) in enumerate(tested):
        if p * (len(tested) - rank) >= SIGNIFICANT:
            break
        significant.add(name)
    return {name: replace(each, significant=name in significant) for name, each in differences.items()}


def _changes(a: Collected, b: Collected) -> tuple[ImageChange, ...]:
    pairs = zip(analyse_operation(a).images, analyse_operation(b).images, strict=True)
    changes = [ImageChange(one.image, _total(one), _total(other)) for one, other in pairs]
    ranked = sorted(changes, key=lambda change: -abs(change.errors_b - change.errors_a))
    return tuple(change for change in ranked if change.errors_a != change.errors_b)


def _total(errors: ImageErrors) -> int:
    return errors.wrong + errors.missed


def draw_comparison(comparison: Comparison, names: tuple[str, str]) -> Image.Image:
    """Bars of the metrics and classes of both detectors."""
    rows = comparison.metrics | comparison.per_class
    series = {
        names[0]: {name: row.a for name, row in rows.items()},
        names[1] if names[1] != names[0] else f"{names[1]} (B)": {name: row.b for name, row in rows.items()},
    }
    return draw_bars(series, "AP of both detectors", limit=1.0)
