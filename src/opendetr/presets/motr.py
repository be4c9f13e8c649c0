"""The presets of MOTR."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from opendetr.categories import Categories
from opendetr.losses import CriterionConfig, TrackCriterion
from opendetr.models import (
    MOTR,
    DeformableTransformerConfig,
    Detector,
    MOTRConfig,
    QueryLifetime,
    Session,
    TrackerConfig,
    TrackingSession,
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
    """

    model: MOTRConfig = field(default_factory=MOTRConfig)
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

    def untrained(self) -> str:
        """Training uses single images, in which no object can be followed."""
        return "it is trained on single images: it learns to detect, but not to follow objects from frame to frame"

    def session(self, model: Detector) -> Session:
        """The session that follows the objects of a video."""
        return TrackingSession(cast(MOTR, model), QueryLifetime(self.tracker))


def motr_r50() -> MOTRPreset:
    """MOTR with ResNet-50: a query that finds an object follows it through the video."""
    recipe = Recipe(
        learning_rate=2e-4,
        backbone_learning_rate=2e-5,
        sampling_rate_factor=0.1,
        batch_size=8,
        epochs=200,
        step_at=100 / 200,
    )
    preset = MOTRPreset(name="motr-r50", recipe=recipe)
    return replace(preset, data=replace(preset.data, max_size=1536))


def motr_tiny() -> MOTRPreset:
    """A MOTR of about the size of `deformable_detr_tiny`, for small images and training without a GPU."""
    tiny = deformable_detr_tiny()
    model = MOTRConfig(
        backbone=tiny.model.backbone,
        transformer=cast(DeformableTransformerConfig, tiny.model.transformer),
        num_queries=tiny.model.num_queries,
    )
    return MOTRPreset(name="motr-tiny", model=model, data=tiny.data, recipe=tiny.recipe)
