"""Bootstrap intervals of AP: objects and detections are matched once, and images are drawn again and again.

Shape letters: I images, S resamples, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opendetr.analysis.predictions import Collected
from opendetr.evaluation import SIZES, ClassMatches, average_precisions, defined, match_found, mean_over
from opendetr.visualize import draw_bars

NUM_RESAMPLES = 1000
_NUM_HALVES = 100
LEVEL = 0.95
"""The intervals contain the true value with this probability."""
_METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
_AT_50, _AT_75 = 0, 5  # indices of the IoU thresholds


@dataclass(frozen=True)
class Estimate:
    """A metric with the interval that contains its true value with a probability of 95 %.

    Attributes:
        value: on the dataset; None without objects.
        low, high: the ends of the interval; None without objects.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Intervals:
    """The metrics and the AP of each class, with their intervals.

    Attributes:
        metrics: AP, AP50, AP75, AP_S, AP_M and AP_L.
        per_class: AP of each class with objects.
        resamples: number of resamples.
    """

    metrics: dict[str, Estimate]
    per_class: dict[str, Estimate]
    resamples: int


def analyse_intervals(collected: Collected, *, resamples: int = NUM_RESAMPLES, seed: int = 0) -> Intervals:
    """The interval of each metric, with resamples of the images."""
    counts = resampled(collected.num_images, resamples, seed)
    values = {name: estimate(samples, lowest=0.0) for name, samples in metric_samples(collected, counts)}
    metrics = {name: values.pop(name) for name in _METRICS}
    names = {collected.names[label]: values[label] for label in collected.labels}
    return Intervals(metrics, names, resamples)


def resampled(num_images: int, resamples: int, seed: int) -> np.ndarray:
    """(1 + S + H, I) how often each image occurs: once in the first row, as often as it is drawn in the next S.

    The last H = 100 rows are random halves of the images, from which `estimate` gets the bias of AP.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples)
    ranks = rng.random((_NUM_HALVES, num_images)).argsort(1).argsort(1)
    halves = ranks < -(-num_images // 2)
    return np.concatenate((np.ones((1, num_images), drawn.dtype), drawn, halves))


def metric_samples(collected: Collected, counts: np.ndarray) -> Iterator[tuple[str | int, np.ndarray]]:
    """Yield each metric by name, and the AP of each class by label: a value for each row of `counts`."""
    labels = collected.labels
    return samples_of_classes({size: class_matches(collected, labels, size) for size in SIZES}, labels, counts)


def class_matches(collected: Collected, labels: Sequence[int], size: str) -> list[ClassMatches]:
    """The matches of some classes, for a size of `SIZES`."""
    matches = match_found(collected.objects, collected.found, collected.num_images, size=SIZES[size])
    return matches.of_classes(labels)


def samples_of_classes(
    by_size: Mapping[str, Sequence[ClassMatches]], labels: Sequence[int], counts: np.ndarray
) -> Iterator[tuple[str | int, np.ndarray]]:
    """As `metric_samples`, of the matches of each class by size."""
    missing = np.full(counts.shape[0], np.nan)
    for size, classes in by_size.items():
        values = [average_precisions(one, counts) for one in classes]
        stacked = np.stack(values) if values else np.full((1, 10, len(missing)), np.nan)  # classes, T, rows
        if size == "all":
            yield "AP", mean_over(stacked, (0, 1))
            yield "AP50", mean_over(stacked[:, _AT_50], 0)
            yield "AP75", mean_over(stacked[:, _AT_75], 0)
            yield from ((label, value.mean(0)) for label, value in zip(labels, values, strict=True))
        else:
            yield f"AP_{size[0].upper()}", mean_over(stacked, (0, 1))


def estimate(samples: np.ndarray, *, lowest: float) -> Estimate:
    """The value and its interval, of a metric for each row of `resampled`; rows without objects are left out.

    The metric is at least `lowest`: 0, or -1 for a difference.

    AP of few images is too high on average, because the curve of precision is replaced by its envelope. The bias is
    about inversely proportional to the number of images, so half of them have twice the bias, and the difference
    between both is the bias itself. The interval is that of the bootstrap around the value without it.
    """
    value, drawn, halves = samples[0], samples[1:-_NUM_HALVES], samples[-_NUM_HALVES:]
    drawn, halves = drawn[~np.isnan(drawn)], halves[~np.isnan(halves)]
    if np.isnan(value) or not len(drawn):
        return Estimate(defined(value), None, None)
    bias = halves.mean() - value if len(halves) else 0.0
    shift = value - bias - drawn.mean()
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) + shift
    return Estimate(float(value), float(np.clip(low, lowest, value)), float(np.clip(high, value, 1)))


def draw_intervals(intervals: Intervals) -> Image.Image:
    """Bars of the metrics and of the classes, with their intervals."""
    estimates = {
        **intervals.metrics,
        **dict(sorted(intervals.per_class.items(), key=lambda item: -(item[1].value or 0.0))),
    }
    ends = {
        name: (each.low, each.high)
        for name, each in estimates.items()
        if each.low is not None and each.high is not None
    }
    values = {name: each.value for name, each in estimates.items()}
    return draw_bars({"AP": values}, "AP with 95 % intervals", intervals={"AP": ends}, limit=1.0)
