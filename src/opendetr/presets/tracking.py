"""What the presets of video models have in common."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from torch import Tensor

from opendetr.categories import Categories
from opendetr.config import MissingPackageError
from opendetr.data import DetectionData, VideoDataConfig, has_tracks
from opendetr.evaluation import Evaluator, TrackingEvaluator, tracking_metric_names
from opendetr.losses import DenseSupervision
from opendetr.models import (
    DeformableDETRConfig,
    Detector,
    Session,
    TrackerConfig,
    TrackingRules,
    TrackingSession,
    VideoModel,
)
from opendetr.presets.preset import Preset
from opendetr.presets.tracker_fitting import fit_tracker


@dataclass(frozen=True, kw_only=True)
class TrackingPreset(Preset):
    """The configuration of a model that tracks objects through a video.

    On datasets without videos it is trained on still images, and evaluated as a detector.

    Attributes:
        data: image sizes, augmentation, and the frames of clips.
        tracker: when a track begins, continues and ends.
        fit_tracker: whether a run chooses birth, keep and patience of `tracker` on training videos before each
            evaluation, and stores them with the weights. False keeps those of `tracker`.

    Raises:
        ValueError: it has a mask head.
    """

    data: VideoDataConfig
    tracker: TrackerConfig = field(default_factory=lambda: TrackerConfig(birth=0.4, keep=0.4, patience=32))
    fit_tracker: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_masks:
            raise ValueError(f"{self.name}: a tracker has no mask head; leave masks.enabled false")

    @abstractmethod
    def rules(self, tracker: TrackerConfig) -> TrackingRules:
        """The rules by which queries become tracks."""

    def categories_of(self, state: Mapping[str, Tensor]) -> Categories:
        """The published classes for as many class rows; else those of the detector that the tracker starts from."""
        published = self.published_categories()
        rows = {len(value) for name, value in state.items() if name.startswith(("class_embed.", "class_heads."))}
        return published if rows == {len(published)} else super().categories_of(state)

    def can_start_from(self, other: Preset) -> bool:
        """Whether the other model is a Deformable DETR with refinement."""
        return isinstance(other.model, DeformableDETRConfig) and other.model.refine and not _is_tracker(other)

    def like_trained(self, other: Preset) -> Self:
        """The preset with the architecture and the image size of the weights that it starts from."""
        if _is_tracker(other):
            return super().like_trained(other)
        model, detector = cast(DeformableDETRConfig, self.model), cast(DeformableDETRConfig, other.model)
        model = replace(model, backbone=detector.backbone, transformer=detector.transformer)
        return replace(self, model=model, data=self.data.sized_like(other.data))

    def session(self, model: Detector) -> Session:
        """The session that follows the objects of a video."""
        return TrackingSession(_as_video_model(model), self.rules(self.tracker))

    def fitted(self, model: Detector, data: DetectionData, num_images: int | None = None) -> Self:
        """The preset with birth, keep and patience chosen on training videos, if `fit_tracker` is set."""
        if not self.fit_tracker or not has_tracks(data):
            return self
        device = next(model.parameters()).device
        tracker = fit_tracker(
            _as_video_model(model), self.rules, self.tracker, data, self.data, num_images=num_images, device=device
        )
        return replace(self, tracker=tracker)

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> Evaluator:
        """The evaluator of tracks and detections; without videos, that of a detector.

        Raises:
            MissingPackageError: the extra `track` is not installed.
        """
        if not has_tracks(data):
            return super().evaluator(categories, data, **options)
        _require_trackeval(self.name)
        return TrackingEvaluator(categories, data, self.rules(self.tracker), **options)

    def class_differences(self, categories: Categories, data: DetectionData) -> list[str]:
        """Lines about classes that differ; in videos, a single class is paired with a single class of any name."""
        is_single = sum(categories.used) == len(data.categories) == 1
        return [] if is_single and has_tracks(data) else super().class_differences(categories, data)

    def metrics(self, data: DetectionData) -> list[str]:
        """The names of the metrics, the main one first: HOTA for videos, else AP.

        Raises:
            MissingPackageError: the extra `track` is not installed.
        """
        names = tracking_metric_names(data)
        if names:
            _require_trackeval(self.name)
        return [*names, *super().metrics(data)]

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        """The names of the metrics shown in progress lines and curves."""
        return ("HOTA", "DetA", "AssA", "AP") if has_tracks(data) else super().headlines(data)

    @property
    def example(self) -> str:
        """The command that tracks the objects of a video."""
        return "track clip.mp4"

    @property
    def follows_objects(self) -> bool:
        """Whether the session gives the objects of a video ids: True."""
        return True

    def with_tracker(self, config: TrackerConfig) -> Self:
        """The preset with other thresholds for tracks."""
        return replace(self, tracker=config)

    def of_classes(self, categories: Categories) -> Self:
        """The preset that tracks the used classes only, as the published trackers do, unless classes are chosen."""
        if self.tracker.classes or all(categories.used):
            return self
        used = tuple(label for label, is_used in enumerate(categories.used) if is_used)
        return replace(self, tracker=replace(self.tracker, classes=used))

    def _dense(self, num_classes: int) -> DenseSupervision | None:
        """Dense supervision of the encoder, if it is enabled."""
        if not self.dense.weight > 0:
            return None
        return DenseSupervision(self.dense, self.model.transformer.width, num_classes)


def _as_video_model(model: Detector) -> VideoModel:
    return cast(VideoModel, model)


def _require_trackeval(name: str) -> None:
    if not importlib.util.find_spec("trackeval"):
        raise MissingPackageError(f"evaluation of {name} on videos", "trackeval")


def _is_tracker(preset: Preset) -> bool:
    return isinstance(preset, TrackingPreset)
