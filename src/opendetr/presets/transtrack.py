"""The presets of TransTrack."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from opendetr.categories import Categories
from opendetr.data import DetectionData, PairDataConfig, has_tracks
from opendetr.losses import CriterionConfig, SetCriterion
from opendetr.models import (
    BoxAssociation,
    DeformableTransformerConfig,
    Detector,
    TrackerConfig,
    TransTrack,
    TransTrackConfig,
)
from opendetr.presets.deformable import deformable_detr_tiny
from opendetr.presets.preset import FOCAL_CRITERION
from opendetr.presets.tracking import TrackingPreset
from opendetr.recipe import Recipe
from opendetr.tasks import PairConfig, TransTrackTask

_PUBLISHED_CLASSES = 20  # of which only number 1 is used


@dataclass(frozen=True, kw_only=True)
class TransTrackPreset(TrackingPreset):
    """The configuration of a TransTrack and its training.

    Attributes:
        model: architecture.
        tracking: how it learns from still images.
        data: image sizes, augmentation, and the frames of clips.
    """

    model: TransTrackConfig = field(default_factory=TransTrackConfig)
    data: PairDataConfig = field(default_factory=PairDataConfig)
    criterion: CriterionConfig = FOCAL_CRITERION
    tracking: PairConfig = field(default_factory=PairConfig)

    def published_categories(self) -> Categories:
        """The classes of the published weights: a person."""
        names = tuple("person" if label == 1 else "N/A" for label in range(_PUBLISHED_CLASSES))
        return Categories(names, tuple(range(_PUBLISHED_CLASSES)), used=tuple(name != "N/A" for name in names))

    def build_task(self, model: Detector, num_classes: int) -> TransTrackTask:
        """The model with its losses, ready for the trainer."""
        criterion = SetCriterion(self.criterion)
        return TransTrackTask(cast(TransTrack, model), criterion, self.tracking, self._dense(num_classes))

    def rules(self, tracker: TrackerConfig) -> BoxAssociation:
        """The rules by which queries become tracks."""
        return BoxAssociation(tracker)

    def advice(self, data: DetectionData) -> str | None:
        """Still images have no motion of objects."""
        if has_tracks(data):
            return None
        return (
            "the training images are no frames of videos with tracks, so it learns motion from shifted copies of them; "
            "give videos in MOTChallenge format, or COCO with video, frame_id and track_id, for the motion of objects"
        )


def transtrack_r50() -> TransTrackPreset:
    """TransTrack with ResNet-50: a second decoder finds the objects of the frame before."""
    recipe = Recipe(
        learning_rate=2e-4,
        backbone_learning_rate=2e-5,
        sampling_rate_factor=0.1,
        batch_size=16,
        epochs=150,
        step_at=100 / 150,
        best_by="auto",
    )
    return TransTrackPreset(name="transtrack-r50", recipe=recipe)


def transtrack_tiny() -> TransTrackPreset:
    """A TransTrack of about the size of `deformable_detr_tiny`, for small images and training without a GPU."""
    tiny = deformable_detr_tiny()
    model = TransTrackConfig(
        backbone=tiny.model.backbone,
        transformer=cast(DeformableTransformerConfig, tiny.model.transformer),
        num_queries=tiny.model.num_queries,
    )
    return TransTrackPreset(
        name="transtrack-tiny",
        model=model,
        data=PairDataConfig(**vars(tiny.data)),
        recipe=replace(tiny.recipe, best_by="auto"),
        fit_tracker=True,
        tracking=PairConfig(max_shift=32),  # as large as 100 pixels in an image of 800
    )
