"""Evaluate a tracker on the videos of a dataset: tracking metrics of each video and of all, and AP of its detections.

Shape letters: n objects or tracks of one frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy
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

    def add(self, image_id: int, ids: np.ndarray, boxes: np.ndarray) -> None:
        """Add the tracks of a frame.

        Args:
            image_id: the image.
            ids: (n,) integers, each at most once.
            boxes: (n, 4) x0, y0, x1, y1 in pixels of the original image.
        """
        self._frames[image_id] = (np.asarray(ids, np.int64), np.asarray(boxes, np.float64).reshape(-1, 4))

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


def true_tracks(records: Sequence[ImageRecord]) -> TrueTracks:
    """The ground truth of a video, given its frames in their order."""
    objects = [(frame, obj) for frame, record in enumerate(records) for obj in record.objects]
    boxes = np.array([obj.box for _, obj in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    distractors = np.array([bool(obj.extras.get(DISTRACTOR)) for _, obj in objects], bool)
    return TrueTracks(
        frames=np.array([frame for frame, _ in objects], np.int64),
        ids=np.array([obj.extras[TRACK] for _, obj in objects], np.int64),
        boxes=boxes,
        ignored=np.array([obj.crowd for _, obj in objects], bool) & ~distractors,
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
        yield [(name, _cell(str(name), value), text) for name, value, text in metrics]  # type: ignore[arg-type]
        names = [name for name in TRACKING_METRICS if name in self.metrics]
        rows: dict[str, Mapping[str, float | None]] = {**self.sequences, "all videos": self.metrics}
        yield [
            ("video", *names),
            *((video, *(_cell(name, own[name]) for name in names)) for video, own in rows.items()),
        ]
        yield from others


def _cell(name: str, value: float | None) -> str | float | None:
    """A metric of a table: counts are whole numbers."""
    return f"{int(value):,}" if _is_count(name) and value is not None else value


@dataclass(frozen=True)
class FrameResult:
    """The results of a tracker on one frame.

    Attributes:
        detections: the detections, as for an image.
        ids: (n,) the reported tracks.
        boxes: (n, 4) theirs, x0, y0, x1, y1 in pixels of the original image.
    """

    detections: ImageResult
    ids: np.ndarray
    boxes: np.ndarray


class TrackingEvaluator:
    """Evaluates tracks and detections on the videos of a dataset; see `Evaluator`.

    Tracking metrics do not distinguish classes. Tracks of classes that the dataset lacks are left out. A model with one
    class and a dataset with one class are paired whatever the classes are called, such as "person" and "pedestrian".

    Args:
        categories: the categories of the model's labels.
        data: the ground truth; see `data.has_tracks`.
        options: those of `DetectionEvaluator`.

    Raises:
        DataError: model and dataset have no class in common.
        MissingPackageError: the extra `track` is not installed.
    """

    def __init__(self, categories: Categories, data: DetectionData, **options: Any) -> None:
        self._detection = DetectionEvaluator(_paired(categories, data.categories), data, **options)
        self._tracks = VideoTracks(data)

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[FrameResult]:
        """Yield the result of each frame. `output` is that of a `TrackingSession`."""
        ids = cast(TrackingOutput, output).track_ids
        labels = output.final.scoring.best(output.final.logits)[1]
        for index, detections in enumerate(self._detection.results(output, images, batch)):
            height, width = batch.targets[index].original_size
            known = self._detection.things.to(labels.device)[labels[index]] >= 0
            chosen = (ids[index] >= 0) & known
            yield FrameResult(detections, *tracks_of(output, index, ids[index], chosen, (height, width)))

    def update(self, batch: Batch, results: Iterable[FrameResult]) -> None:
        """Add the results of a batch."""
        found = list(results)
        self._detection.update(batch, [result.detections for result in found])
        for result, target in zip(found, batch.targets, strict=True):
            self._tracks.add(target.image_id, result.ids, result.boxes)

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


def tracks_of(
    output: Output, index: int, ids: Tensor, chosen: Tensor, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and boxes of the chosen queries of a frame.

    Args:
        output: of the model.
        index: of the image in the batch.
        ids: (R,) the track of each query.
        chosen: (R,) bool.
        size: height and width of the original image, in pixels.
    """
    height, width = size
    boxes = cxcywh_to_xyxy(output.final.boxes[index, chosen].double())
    pixels = boxes * torch.tensor([width, height] * 2, dtype=boxes.dtype, device=boxes.device)
    return ids[chosen].cpu().numpy(), pixels.cpu().numpy()


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


def _is_count(name: str) -> bool:
    return name in TRACKING_METRICS and name not in FRACTIONS
