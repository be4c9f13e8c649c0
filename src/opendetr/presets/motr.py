"""The presets of MOTR."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from opendetr.categories import Categories
from opendetr.data import AugmentationConfig, ClipDataConfig, DetectionData, has_tracks
from opendetr.losses import CriterionConfig, TrackCriterion
from opendetr.models import (
    MOTR,
    DeformableTransformerConfig,
    Detector,
    MOTRConfig,
    QueryLifetime,
    TrackerConfig,
)
from opendetr.presets.deformable import deformable_detr_tiny
from opendetr.presets.preset import FOCAL_CRITERION
from opendetr.presets.tracking import TrackingPreset
from opendetr.recipe import Recipe
from opendetr.tasks import ClipConfig, MOTRTask


@dataclass(frozen=True, kw_only=True)
class MOTRPreset(TrackingPreset):
    """The configuration of a MOTR and its training.

    Attributes:
        model: architecture.
        tracking: what is done with the queries of tracks in training.
        data: image sizes, augmentation, and the frames of clips.
    """

    model: MOTRConfig = field(default_factory=MOTRConfig)
    data: ClipDataConfig = field(default_factory=ClipDataConfig)
    criterion: CriterionConfig = FOCAL_CRITERION
    tracking: ClipConfig = field(default_factory=ClipConfig)
    tracker: TrackerConfig = field(
        default_factory=lambda: TrackerConfig(birth=0.7, keep=0.6, patience=5, min_area=100.0)
    )

    def published_categories(self) -> Categories:
        """The classes of the published weights: a person."""
        return Categories.from_names(["person"])

    def build_task(self, model: Detector, num_classes: int) -> MOTRTask:
        """The model with its losses, ready for the trainer."""
        criterion = TrackCriterion(self.criterion)
        return MOTRTask(cast(MOTR, model), criterion, self.tracking, self._dense(num_classes))

    def rules(self, tracker: TrackerConfig) -> QueryLifetime:
        """The rules by which queries become tracks."""
        return QueryLifetime(tracker)

    def advice(self, data: DetectionData) -> str | None:
        """The objects of still images only move together."""
        if has_tracks(data):
            return None
        return (
            "the training images are no frames of videos with tracks, so it learns from shifted copies of them, in "
            "which all objects move together; give videos in MOTChallenge format, or COCO with video, frame_id and "
            "track_id, for objects that move by themselves"
        )


def motr_r50() -> MOTRPreset:
    """MOTR with ResNet-50: a query that finds an object follows it through the video."""
    recipe = Recipe(
        learning_rate=2e-4,
        backbone_learning_rate=2e-5,
        sampling_rate_factor=0.1,
        batch_size=8,
        epochs=200,
        step_at=100 / 200,
        best_by="auto",
    )
    augmentation = AugmentationConfig(scales=tuple(range(608, 993, 32)))
    return MOTRPreset(name="motr-r50", recipe=recipe, data=ClipDataConfig(max_size=1536, augmentation=augmentation))


def motr_tiny() -> MOTRPreset:
    """A MOTR of about the size of `deformable_detr_tiny`, for small images and training without a GPU."""
    tiny = deformable_detr_tiny()
    model = MOTRConfig(
        backbone=tiny.model.backbone,
        transformer=cast(DeformableTransformerConfig, tiny.model.transformer),
        num_queries=tiny.model.num_queries,
    )
    data = ClipDataConfig(**vars(tiny.data), max_shift=16)  # as large as 50 pixels in an image of 800
    recipe = replace(tiny.recipe, best_by="auto")
    tracker = TrackerConfig(birth=0.4, keep=0.3, patience=5)
    return MOTRPreset(name="motr-tiny", model=model, data=data, recipe=recipe, tracker=tracker, fit_tracker=True)
