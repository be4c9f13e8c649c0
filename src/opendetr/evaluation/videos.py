"""Evaluate a tracker on the videos of a dataset: tracking metrics of each video and of all, and AP of its detections.

Shape letters: n objects or tracks of one frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from opendetr.categories import Categories
from opendetr.data import DISTRACTOR, TRACK, DetectionData, ImageRecord, Videos, has_tracks
from opendetr.distributed import gather
from opendetr.evaluation.detection import DetectionEvaluator, Evaluation, ImageResult
from opendetr.evaluation.tracking import (
    TRACKING_METRICS,
    TrackingMetrics,
    TrackingReport,
    Tracks,
    TrueTracks,
)
from opendetr.models import TrackingRules
from opendetr.postprocess import tracked_objects
from opendetr.results import Detections
from opendetr.scoring import ScoreThresholds
from opendetr.structures import Batch, ImageBatch, Output, TrackingOutput

FRACTIONS = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1")
"""The tracking metrics that are fractions, the main one first. The others are counts."""


class VideoTracks:
    """Collects the tracks of the videos of a dataset, frame by frame, and compares them with the ground truth.

    Args:
        data: images that all belong to a video; see `data.has_tracks`.
    """

    def __init__(self, data: DetectionData) -> None:
        self._data, self._videos = data, Videos(data)
        self._frames: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, image_id: int, objects: Detections) -> None:
        """Add the objects of a frame, which have track ids."""
        assert objects.track_ids is not None
        self._frames[image_id] = (objects.track_ids.numpy(), objects.boxes.double().numpy())

    def gather(self) -> None:
        """Combine the tracks that all processes have collected."""
        self._frames = {image_id: tracks for frames in gather(self._frames) for image_id, tracks in frames.items()}

    def report(self) -> TrackingReport | None:
        """The metrics; None for a dataset without tracks. Frames that were not added have no tracks."""
        metrics, has_objects = TrackingMetrics(), False
        for name, indices in zip(self._videos.names, self._videos.frames, strict=True):
            records = [self._data.images[index] for index in indices]
            truth = true_tracks(records)
            has_objects = has_objects or not (truth.ignored | truth.distractors).all()
            metrics.add(name, len(records), truth, self._tracks(records))
        return metrics.compute() if has_objects else None

    def _tracks(self, records: Sequence[ImageRecord]) -> Tracks:
        nothing = (np.zeros(0, np.int64), np.zeros((0, 4)))
        own = [self._frames.get(record.id, nothing) for record in records]
        frames = np.repeat(np.arange(len(own)), [len(ids) for ids, _ in own])
        return Tracks(
            frames=frames,
            ids=np.concatenate([ids for ids, _ in own]),
            boxes=np.concatenate([boxes for _, boxes in own]),
        )


def true_tracks(records: Sequence[ImageRecord], numbers: Sequence[int] | None = None) -> TrueTracks:
    """The ground truth of a video, given its frames in their order. Their default `numbers` are 0, 1, ...

    Objects with a negative track id have no track, and are not evaluated.
    """
    numbers = range(len(records)) if numbers is None else numbers
    objects = [(number, obj) for number, record in zip(numbers, records, strict=True) for obj in record.objects]
    boxes = np.array([obj.box for _, obj in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = np.array([obj.extras[TRACK] for _, obj in objects], np.int64)
    distractors = np.array([bool(obj.extras.get(DISTRACTOR)) for _, obj in objects], bool)
    crowds = np.array([obj.crowd for _, obj in objects], bool)
    return TrueTracks(
        frames=np.array([frame for frame, _ in objects], np.int64),
        ids=np.where(ids < 0, -1 - np.arange(len(ids)), ids),  # a frame has each id once
        boxes=boxes,
        ignored=(crowds | (ids < 0)) & ~distractors,
        distractors=distractors,
    )


@dataclass(frozen=True)
class TrackingEvaluation(Evaluation):
    """The metrics of a tracker on a dataset of videos. `metrics` begins with those of `TRACKING_METRICS`.

    Attributes:
        sequences: the tracking metrics of each video.
    """

    sequences: dict[str, dict[str, float]] = field(default_factory=dict)

    def tables(self) -> Iterator[list[tuple[str | float | None, ...]]]:
        """Yield tables to print: the metrics; the videos; then the tables about detections of `Evaluation`."""
        metrics, *others = super().tables()
        yield [(name, _cell(str(name), value), text) for name, value, text in metrics]
        names = [name for name in TRACKING_METRICS if name in self.metrics]
        rows: dict[str, Mapping[str, float | None]] = {**self.sequences, "all videos": self.metrics}
        yield [
            ("video", *names),
            *((video, *(_cell(name, own[name]) for name in names)) for video, own in rows.items()),
        ]
        yield from others


def _cell(name: str, value: str | float | None) -> str | float | None:
    """A metric of a table: counts are whole numbers."""
    return f"{int(value):,}" if is_count(name) and isinstance(value, (int, float)) else value


@dataclass(frozen=True)
class FrameResult:
    """The results of a tracker on one frame.

    Attributes:
        image: the detections, as for a single image.
        objects: the objects with track ids.
    """

    image: ImageResult
    objects: Detections


class TrackingEvaluator:
    """Evaluates tracks and detections on the videos of a dataset; see `Evaluator`.

    Tracking metrics do not distinguish classes. Tracks of classes that the dataset lacks are left out. If model and
    dataset have one class each, these are the same class, even with two names such as "person" and "pedestrian".

    Args:
        categories: the categories of the model's labels.
        data: the ground truth; see `data.has_tracks`.
        rules: the rules of the session.
        options: those of `DetectionEvaluator`.

    Raises:
        DataError: model and dataset have no class in common.
        MissingPackageError: the extra `track` is not installed.
    """

    def __init__(self, categories: Categories, data: DetectionData, rules: TrackingRules, **options: Any) -> None:
        self._categories = _paired(categories, data.categories)
        self._detection = DetectionEvaluator(self._categories, data, **options)
        self._tracks, self._rules = VideoTracks(data), rules

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[FrameResult]:
        """Yield the result of each frame. `output` is that of a `TrackingSession`."""
        sizes = torch.tensor([target.original_size for target in batch.targets])
        tracked = tracked_objects(cast(TrackingOutput, output), sizes, self._categories, self._rules)
        for image, (objects, _) in zip(self._detection.results(output, images, batch), tracked, strict=True):
            yield FrameResult(image, objects[self._detection.things[objects.labels] >= 0])

    def update(self, batch: Batch, results: Iterable[FrameResult]) -> None:
        """Add the results of a batch."""
        found = list(results)
        self._detection.update(batch, [result.image for result in found])
        for result, target in zip(found, batch.targets, strict=True):
            self._tracks.add(target.image_id, result.objects)

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Count unreadable frames as frames without tracks."""
        self._detection.leave_out(image_ids)

    def gather(self) -> None:
        """Combine the results that all processes have collected."""
        self._detection.gather()
        self._tracks.gather()

    def compute(self) -> dict[str, float | None]:
        """The metrics of the results collected so far, with the AP of each class."""
        return {**_summary(self._tracks.report())[0], **self._detection.compute()}

    def score_thresholds(self) -> ScoreThresholds | None:
        """The score thresholds of boxes that maximise F1; None without ground truth."""
        return self._detection.score_thresholds()

    def evaluation(self, seconds_per_image: float = 0.0, unreadable: Iterable[str] = ()) -> TrackingEvaluation:
        """The metrics of the results collected so far; the arguments are those of `DetectionEvaluator`."""
        metrics, sequences = _summary(self._tracks.report())
        detection = self._detection.evaluation(seconds_per_image, unreadable)
        own = {**vars(detection), "metrics": {**metrics, **detection.metrics}}
        return TrackingEvaluation(**own, sequences=sequences)


def tracking_metric_names(data: DetectionData) -> list[str]:
    """The names of the tracking metrics by which weights can be selected, the main one first."""
    return list(FRACTIONS) if has_tracks(data) else []


def _summary(report: TrackingReport | None) -> tuple[dict[str, float | None], dict[str, dict[str, float]]]:
    """The tracking metrics of all videos, None without tracks, and those of each video."""
    if report is None:
        return dict.fromkeys(TRACKING_METRICS), {}
    return {**report.combined}, report.sequences


def _paired(ours: Categories, theirs: Categories) -> Categories:
    """The categories of the model; a single class gets the name of the single class of the dataset."""
    if sum(ours.used) != 1 or len(theirs) != 1:
        return ours
    names = (theirs.names[0] if used else name for name, used in zip(ours.names, ours.used, strict=True))
    return replace(ours, names=tuple(names))


def is_count(name: str) -> bool:
    """Whether a metric is a number of things, not a fraction."""
    return name in TRACKING_METRICS and name not in FRACTIONS
