"""What the presets of video models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self, cast

from torch import Tensor

from opendetr.categories import Categories
from opendetr.losses import DenseSupervision
from opendetr.models import DeformableDETRConfig, TrackerConfig
from opendetr.presets.preset import Preset


@dataclass(frozen=True, kw_only=True)
class TrackingPreset(Preset):
    """The configuration of a model that tracks objects through a video.

    Attributes:
        tracker: when a track begins, continues and ends.

    Raises:
        ValueError: it has a mask head.
    """

    tracker: TrackerConfig = field(default_factory=lambda: TrackerConfig(birth=0.4, keep=0.4, patience=32))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_masks:
            raise ValueError(f"{self.name}: a tracker has no mask head; leave masks.enabled false")

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


def _is_tracker(preset: Preset) -> bool:
    return isinstance(preset, TrackingPreset)
