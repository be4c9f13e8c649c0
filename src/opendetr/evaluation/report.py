"""The sections of a report on a detector: metrics, classes, confusion matrix, precision and recall, worst images.

`training`, `opendetr eval`, `opendetr demo` and `analysis` make their pages of these sections; see `write_page`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Protocol

import torch
from PIL import Image

from opendetr.data import DataStatistics, DetectionData, ImageError, read_record, things_of
from opendetr.evaluation.detected import DatasetDetections, Found, Objects
from opendetr.evaluation.detection import Evaluation
from opendetr.evaluation.names import describe_metric
from opendetr.evaluation.operation import (
    Operation,
    analyse_operation,
    draw_calibration,
    draw_confusion,
    draw_precision_recall,
    label_thresholds,
    worst_images,
)
from opendetr.evaluation.page import Section, chart_figure, images_section, note, text_block, value_table
from opendetr.evaluation.videos import TrackingEvaluation, is_count
from opendetr.results import Detections, draw_detections
from opendetr.visualize import draw_statistics, draw_truth

_HEADLINES = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "AR100": "recall, 100 detections",
    "mask_AP": "masks, IoU 0.50 to 0.95",
    "PQ": "panoptic quality",
    "P@1": "expressions found, IoU 0.50",
    "R@1": "phrases found, IoU 0.50",
    "accuracy": "questions answered right",
    "majority": "always the most frequent answer",
}
_NUM_WORST = 6
_SHOWN_SIDE = 640  # longer side of a worst image in pixels; two fit side by side
_CONFUSION = (
    "At the thresholds of best F1, each detection takes the free object of any class with the highest IoU of at least "
    "0.5. Last row: detections without an object. Last column: objects without a detection. The shade is the "
    "share of the row."
)


class Scored(Protocol):
    """An evaluation of any evaluator."""

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """The metrics by name."""
        ...


def dataset_detections(scores: Scored, data: DetectionData) -> DatasetDetections | None:
    """The detections of an evaluation on a dataset; None for an evaluation of something else, such as captions."""
    if not isinstance(scores, Evaluation):
        return None
    return DatasetDetections(data, Objects.of(data), Found.of_coco(data, scores.results))


def report_sections(scores: Scored, detections: DatasetDetections | None) -> list[Section]:
    """The sections of an evaluation.

    Args:
        scores: the evaluation.
        detections: the result of `dataset_detections`; without it, there are only metrics. The worst images are read
            from the dataset. Those that cannot be read are left out.
    """
    of_detections = [] if detections is None else detection_sections(detections, analyse_operation(detections))
    return [*score_sections(scores), *of_detections]


def score_sections(scores: Scored) -> list[Section]:
    """The most important metrics, all metrics, and those of each class, video and decoder layer."""
    sections = [("Scores", _tiles(scores.metrics)), ("Metrics", _metrics_section(scores.metrics))]
    if isinstance(scores, Evaluation):
        quality = {name: of_class["PQ"] for name, of_class in scores.panoptic_per_class.items()}
        sections += [
            ("AP by class", _classes_section(scores.per_class)),
            ("Mask AP by class", _classes_section(scores.mask_per_class)),
            ("PQ by class", _classes_section(quality)),
        ]
        if scores.per_layer:
            rows = [(str(number), ap) for number, ap in enumerate(scores.per_layer, 1)]
            sections.append(("Decoder layers", value_table(("decoder layer", "AP"), rows)))
    if isinstance(scores, TrackingEvaluation) and scores.sequences:
        names = list(next(iter(scores.sequences.values())))
        videos = [(video, *(_number(name, own[name]) for name in names)) for video, own in scores.sequences.items()]
        sections.append(("Videos", value_table(("video", *names), videos)))
    return sections


def operation_charts(operation: Operation) -> dict[str, Image.Image]:
    """The charts of `detection_sections` by name."""
    return {
        "confusion": draw_confusion(operation),
        "precision-recall": draw_precision_recall(operation),
        "calibration": draw_calibration(operation),
    }


def detection_sections(
    dataset: DatasetDetections, operation: Operation, charts: Mapping[str, Image.Image] | None = None
) -> list[Section]:
    """Confusion matrix, thresholds, precision and recall, calibration, and the images with the most errors.

    Args:
        dataset: ground truth and detections.
        operation: their analysis at the thresholds of best F1.
        charts: the result of `operation_charts`, if it is known already.
    """
    charts = charts or operation_charts(operation)
    curves = chart_figure(
        charts["precision-recall"], "Precision by recall at several IoU thresholds, mean over the classes"
    )
    return [
        ("Confusion", chart_figure(charts["confusion"], _CONFUSION)),
        ("Thresholds", _thresholds_section(operation)),
        ("Precision, recall and calibration", curves + _calibration_section(operation, charts["calibration"])),
        ("Worst images", _worst_section(dataset, operation)),
    ]


def dataset_section(splits: Mapping[str, DetectionData]) -> Section:
    """The statistics of the labels of some splits."""
    chart = draw_statistics({name: DataStatistics.of(data) for name, data in splits.items()}, stacked=True)
    return "Dataset", chart_figure(chart, "Objects by class, sizes of boxes, objects per image")


def settings_section(settings: str) -> Section:
    """The settings of a run, as text."""
    return "Settings", text_block(settings, "Settings")


def _thresholds_section(operation: Operation) -> str:
    points = {**operation.points.per_class, "all classes": operation.points.overall}
    rows = [(name, point.threshold, point.precision, point.recall, point.f1) for name, point in points.items()]
    text = "The score threshold that maximises F1 on these images (IoU 0.5), for each class and common to all."
    return note(text) + value_table(("class", "threshold", "precision", "recall", "F1"), rows)


def _calibration_section(operation: Operation, chart: Image.Image) -> str:
    if operation.calibration_error is None:
        return note("There are no detections.")
    text = (
        f"Scores differ from the share of correct detections by {operation.calibration_error:.3f} on average. Points "
        "below the diagonal: the scores are too high."
    )
    rows = [(f"{low:.1f} to {low + 0.1:.1f}", mean, share, count) for low, mean, share, count in operation.calibration]
    return (
        chart_figure(chart, "Share of correct detections (IoU 0.5) by score")
        + note(text)
        + value_table(("score", "mean score", "correct", "detections"), rows)
    )


def _worst_section(dataset: DatasetDetections, operation: Operation) -> str:
    """The images with the most errors: the ground truth, and the detections at the thresholds, side by side."""
    data, found = dataset.data, dataset.found
    thresholds, _ = label_thresholds(dataset, operation.points)
    figures = []
    for each in worst_images(operation, _NUM_WORST):
        record = data.images[each.image]
        try:
            pixels = read_record(record)
        except ImageError:
            continue  # the evaluation has already reported it
        own = found[(found.image == each.image) & (found.score >= thresholds[found.label])]
        corners = torch.from_numpy(own.box)
        corners[:, 2:] += corners[:, :2]
        detections = Detections(
            corners, torch.from_numpy(own.score), torch.from_numpy(own.label), data.categories, pixels.shape[:2]
        )
        scale = _SHOWN_SIDE / max(detections.size)
        caption = f"{data.file_name(record)}: {each.objects} objects, {each.missed} missed, {each.wrong} wrong"
        truth = draw_truth(pixels, things_of(record, data.categories), data.categories, scale=scale)
        images = [("ground truth", truth), ("prediction", draw_detections(detections, pixels, scale=scale))]
        figures.append((caption, images))
    return images_section(figures)


def _tiles(metrics: Mapping[str, float | None]) -> str:
    """The most important metrics in large digits."""
    tiles = (
        f'<div class="tile">{name}<b>{_number(name, metrics[name])}</b><span>{meaning}</span></div>'
        for name, meaning in _HEADLINES.items()
        if name in metrics
    )
    body = "".join(tiles)
    return f'<div class="tiles">{body}</div>' if body else ""


def _metrics_section(metrics: Mapping[str, float | None]) -> str:
    """All metrics with their meanings, in two columns."""
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(describe_metric(name))}</td>'
        f'<td class="number">{_number(name, value)}</td></tr>'
        for name, value in metrics.items()
    ]
    return _columns(rows, "meanings")


def _classes_section(per_class: Mapping[str, float | None]) -> str:
    """The metric of each class with a bar, in descending order. Classes without a value are last."""
    ranked = sorted(per_class.items(), key=lambda item: -1.0 if item[1] is None else item[1], reverse=True)
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td class="wide">{_bar(value)}</td>'
        f'<td class="number">{_number("AP", value)}</td></tr>'
        for name, value in ranked
    ]
    missing = note('"-": the dataset has no object of this class.') if None in per_class.values() else ""
    return _columns(rows, "classes") + missing


def _columns(rows: Sequence[str], style: str) -> str:
    """Table rows in two tables, side by side if the page is wide enough."""
    if not rows:
        return ""
    half = -(-len(rows) // 2)
    parts: Iterable[Sequence[str]] = (part for part in (rows[:half], rows[half:]) if part)
    tables = (f'<table class="{style}">{"".join(part)}</table>' for part in parts)
    return f'<div class="columns">{"".join(tables)}</div>'


def _bar(value: float | None) -> str:
    width = 0.0 if value is None else 100 * min(1.0, max(0.0, value))
    return f'<span class="track"><i style="width: {width:.1f}%"></i></span>'


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{int(value):,}" if is_count(name) else f"{value:.3f}"
