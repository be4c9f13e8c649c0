"""The presets of UP-DETR: pre-training on unlabelled images, and the detector that is trained from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from torch import Tensor

from opendetr.categories import Categories, patch_categories
from opendetr.config import ConfigError
from opendetr.data import DetectionData, PatchDataConfig, PatchEvaluationBatch
from opendetr.evaluation import PATCH_METRICS, PatchEvaluator
from opendetr.losses import PatchSupervision, ReconstructionConfig, SetCriterion
from opendetr.models import (
    UPDETR,
    ControlledPatches,
    Detector,
    DETRConfig,
    ModelConfig,
    PatchSession,
    Session,
    UPDETRConfig,
)
from opendetr.nn import BackboneConfig, TransformerConfig
from opendetr.presets.detr import detr_tiny
from opendetr.presets.preset import Preset
from opendetr.recipe import Recipe
from opendetr.structures import Batch
from opendetr.tasks import PretrainingTask, Task


@dataclass(frozen=True, kw_only=True)
class PretrainingPreset(Preset):
    """The configuration of pre-training on the patches of unlabelled images.

    Attributes:
        model: architecture.
        fine_tuned: the catalogue's name of the detector that is trained from the pre-trained weights.
        reconstruction: settings of the feature reconstruction.
        own_queries: match a patch only with the queries that were given it; see `PretrainingTask`.
    """

    model: UPDETRConfig = field(default_factory=UPDETRConfig)
    data: PatchDataConfig = field(default_factory=PatchDataConfig)
    fine_tuned: str = "up-detr-r50-finetuned"
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    own_queries: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_masks:
            raise ValueError(f"{self.name}: is trained without masks; set masks.enabled for {self.fine_tuned} instead")
        if self.data.num_patches > self.model.num_patches:
            raise ValueError(
                f"data.num_patches: {self.data.num_patches} patches of an image are more than the "
                f"{self.model.num_patches} of model.num_patches"
            )
        if self.data.patch_size > self.data.image_size:
            raise ValueError(
                f"data.patch_size: patches of {self.data.patch_size} pixels are larger than the images, whose short "
                f"side is {self.data.image_size} (data.image_size)"
            )

    def num_classes(self, categories: Categories) -> int:
        """K = 2, whatever the dataset; see `patch_categories`."""
        return len(self.published_categories())

    def published_categories(self) -> Categories:
        """The class "patch"."""
        return patch_categories()

    def categories_of(self, state: Mapping[str, Tensor]) -> Categories:
        """The class "patch"."""
        return self.published_categories()

    def build_task(self, model: Detector, num_classes: int) -> Task:
        """The model with its losses, ready for the trainer."""
        criterion, updetr, dense = SetCriterion(self.criterion), cast(UPDETR, model), None
        if self.dense.weight > 0:
            dense = PatchSupervision(self.dense, self.model.transformer.width, updetr.patch_projection.in_features)
        return PretrainingTask(updetr, criterion, self.reconstruction, dense, own_queries=self.own_queries)

    def trained_from_nothing(self) -> Self:
        """The preset with a backbone that is trained from scratch.

        The features of the patches are standardised, and the reconstruction target is detached. Dense supervision of
        the encoder is switched on.
        """
        preset = super().trained_from_nothing()
        return replace(
            preset,
            model=replace(preset.model, patch_norm=True),
            reconstruction=replace(preset.reconstruction, detach_target=True),
        )

    def session(self, model: Detector) -> Session:
        """The session, whose prompt are patches."""
        return PatchSession(cast(UPDETR, model))

    def prompt(self, batch: Batch) -> ControlledPatches:
        """The patches of an evaluation batch, and those of other images."""
        patches = cast(PatchEvaluationBatch, batch)
        return ControlledPatches(patches.patches, patches.control)

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> PatchEvaluator:
        """The evaluator of the located patches.

        Raises:
            ConfigError: `num_layers` is set; only the last layer is evaluated.
        """
        if options.get("num_layers") is not None:
            raise ConfigError(f"layers: {self.name} is evaluated in its last layer only; leave it out")
        return PatchEvaluator(data)

    def class_differences(self, categories: Categories, data: DetectionData) -> list[str]:
        """Nothing, because the model detects what patches show, not classes."""
        return []

    def metrics(self, data: DetectionData) -> list[str]:
        """The names of the metrics, first the fraction of the patches that are located."""
        return list(PATCH_METRICS)

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        """All metrics."""
        return tuple(PATCH_METRICS)

    def trained_into(self) -> tuple[str, ModelConfig]:
        """The detector that is trained from the weights of this model."""
        return self.fine_tuned, self.model.detector()

    @property
    def untransferred(self) -> tuple[str, ...]:
        """The decoder and its box head, if each query has its own patch.

        Such a decoder tells queries apart by their patches, and not by their learned queries. Without patches, all
        queries predict nearly the same box. A detector learns more slowly from it than from random weights.
        """
        one_per_patch = self.model.num_patches == self.model.num_queries
        return ("queries", "decoder", "box_head") if one_per_patch else ()

    @property
    def example(self) -> str:
        """The command that locates a patch."""
        return "predict photo.jpg --patch crop.jpg"

    @property
    def draws_predictions(self) -> bool:
        """False: predictions need patches."""
        return False

    def miniature(self) -> Self:
        """The preset with smaller sizes and 2 patches, for tests."""
        small = replace(
            self, model=replace(self.model, num_patches=2), data=replace(self.data, num_patches=2, patch_size=32)
        )
        return super(PretrainingPreset, small).miniature()


def up_detr_r50() -> PretrainingPreset:
    """The pre-training of UP-DETR with ResNet-50 on unlabelled images; the backbone is frozen."""
    return PretrainingPreset(
        name="up-detr-r50",
        model=UPDETRConfig(backbone=BackboneConfig(frozen_stages=5), transformer=TransformerConfig(norm_first=True)),
        recipe=Recipe(batch_size=256, epochs=60, step_at=40 / 60, best_by="auto"),
    )


def up_detr_r50_finetuned() -> Preset:
    """A pre-norm DETR with ResNet-50 that is trained from the weights of `up-detr-r50`."""
    return Preset(
        name="up-detr-r50-finetuned",
        model=DETRConfig(transformer=TransformerConfig(norm_first=True)),
        recipe=Recipe(batch_size=16, backbone_learning_rate=5e-5),
    )


def up_detr_tiny() -> PretrainingPreset:
    """The pre-training of `detr-tiny` on unlabelled images, with its backbone, from scratch and without a GPU."""
    tiny = detr_tiny()
    model = cast(DETRConfig, tiny.model)
    return PretrainingPreset(
        name="up-detr-tiny",
        model=UPDETRConfig(
            backbone=model.backbone,
            transformer=model.transformer,
            num_queries=model.num_queries,
            num_patches=model.num_queries,  # one query for each: a group learns several guesses, and not which is best
            query_shuffle=True,  # trains all queries with fewer patches than queries
            patch_content=True,
        ),
        # Patches already have all sizes relative to their image, and the smallest images would have few cells.
        data=PatchDataConfig(
            side_multiple=tiny.data.side_multiple,
            patch_size=64,
            augmentation=replace(PatchDataConfig().augmentation, multi_scale=False),
        ).resized(tiny.data.image_size),
        recipe=replace(tiny.recipe, best_by="auto"),
        fine_tuned=tiny.name,
        own_queries=True,
        reconstruction=ReconstructionConfig(detach_target=True),
    )
