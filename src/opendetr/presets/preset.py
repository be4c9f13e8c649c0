"""What a preset holds, and the model and the task that are built from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from opendetr.categories import Categories
from opendetr.config import ConfigError
from opendetr.data import DataConfig, DetectionData
from opendetr.evaluation import DetectionEvaluator, headline_names, metric_names
from opendetr.losses import (
    CriterionConfig,
    DenseConfig,
    DenseSupervision,
    MaskCriterionConfig,
    MaskLoss,
    MatcherConfig,
    SetCriterion,
    SigmoidFocalClassification,
)
from opendetr.models import DeformableDETRConfig, Detector, DETRConfig, MaskedDetector, MaskHeadConfig
from opendetr.recipe import Recipe
from opendetr.tasks import DetectionTask, MaskHeadTask, Task


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One run as one tree: everything that a model and its training are made of.

    A member that is evaluated in another way, or whose model has other parts to shrink, has a subclass that overrides
    `evaluator`, `metrics` and `headlines`, or `miniature`.

    Attributes:
        name: the catalogue's name, from which the tree started.
        model: the architecture of the detector.
        masks: the mask head around it, if it is enabled.
        without_masks: the catalogue's name of the same detector without a mask head; None for one that has none.
        freeze_detector: train the mask head alone, around a detector that stays as it is.
        criterion: the set loss.
        mask_criterion: the losses of masks beside it, where there is a mask head.
        dense: supervision of the encoder beside it, off as published.
        data: sizes and augmentation.
        recipe: optimiser, schedule, length.
    """

    name: str
    model: DETRConfig | DeformableDETRConfig = field(default_factory=DETRConfig)
    masks: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    without_masks: str | None = None
    freeze_detector: bool = False
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    mask_criterion: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        off = MaskHeadConfig()
        if not self.has_masks and self.masks != off:
            name = next(name for name, value in vars(self.masks).items() if value != getattr(off, name))
            raise ValueError(f"masks.{name} is set, but there is no mask head; set masks.enabled to true, too")
        if self.freeze_detector and not self.has_masks:
            raise ValueError(f"{self.name}: has no mask head to train around a frozen detector; enable masks")

    @property
    def has_masks(self) -> bool:
        """Whether the model has a mask head."""
        return self.masks.enabled

    @property
    def detector_name(self) -> str:
        """The catalogue's name of the detector, without its mask head if it has one."""
        return self.without_masks or self.name

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> DetectionEvaluator:
        """What evaluates the model on a dataset; see `DetectionEvaluator` for the options."""
        return DetectionEvaluator(categories, data, has_masks=self.has_masks, **options)

    def metrics(self, data: DetectionData) -> list[str]:
        """The names of the metrics that the evaluator gives on a dataset, the main one first."""
        return metric_names(data, has_masks=self.has_masks)

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        """The few of these metrics that progress and curves show."""
        return headline_names(data, has_masks=self.has_masks)

    def miniature(self) -> Self:
        """The preset shrunk to test size; what it is composed of stays."""
        model: Any = self.model  # every config here has these fields, whatever else it has
        transformer = replace(
            model.transformer, width=32, num_heads=4, ffn_width=32, encoder_layers=2, decoder_layers=2
        )
        backbone = replace(model.backbone, depth=18, half_width=True)
        return replace(
            self,
            model=replace(model, backbone=backbone, transformer=transformer, num_queries=12),
            data=replace(self.data.resized(64), num_workers=0),
            recipe=replace(self.recipe, batch_size=2, epochs=1),
        )


FOCAL_CRITERION = CriterionConfig(
    classification=SigmoidFocalClassification(), matcher=MatcherConfig(class_cost=2.0), class_weight=2.0
)


def trained_from_nothing(preset: Preset) -> Preset:
    """The preset with what a randomly initialised backbone needs.

    Trainable batch norm, no frozen stage, the full learning rate for the backbone, dense supervision of the encoder.
    """
    return replace(
        preset,
        model=replace(preset.model, backbone=replace(preset.model.backbone, norm="batch", frozen_stages=0)),
        dense=replace(preset.dense, weight=1.0),
        recipe=replace(preset.recipe, backbone_learning_rate=preset.recipe.learning_rate),
    )


def with_frozen_detector(preset: Preset) -> Preset:
    """The second stage of training masks (DETR, section 4.2): the trained detector frozen, its mask head in 25 epochs.

    Raises:
        ConfigError: there is no mask head to train.
    """
    if not preset.has_masks:
        raise ConfigError(f"{preset.name}: has no mask head to train; choose a model that has one, or enable masks")
    return replace(preset, freeze_detector=True, recipe=replace(preset.recipe, epochs=25, step_at=15 / 25))


def build_model(preset: Preset, num_classes: int, *, strict_no_object: bool = False) -> Detector:
    """The model of a preset, randomly initialised.

    Args:
        preset: gives the architecture.
        num_classes: K.
        strict_no_object: see `SoftmaxNoObject.strict`.

    Raises:
        ConfigError: strict about "no object", and the model has no such class.
    """
    scoring = preset.criterion.classification.scoring()
    if strict_no_object:
        try:
            scoring = scoring.strictly()
        except ValueError as error:
            raise ConfigError(f"{preset.name}: {error}") from None
    num_logits = scoring.num_logits(num_classes)
    if not preset.has_masks:
        return preset.model.build(num_logits, scoring)
    try:
        return preset.masks.build(preset.model, num_logits, scoring)
    except ValueError as error:
        raise ConfigError(f"{preset.name}: {error}") from None


def build_task(preset: Preset, model: Detector, num_classes: int) -> Task:
    """What the trainer trains: the model with the losses of its preset."""
    criterion = SetCriterion(preset.criterion)
    masks = MaskLoss(preset.mask_criterion) if preset.has_masks else None
    if preset.freeze_detector:
        return MaskHeadTask(cast(MaskedDetector, model), criterion, cast(MaskLoss, masks))
    dense = None
    if preset.dense.weight > 0:
        dense = DenseSupervision(preset.dense, preset.model.transformer.width, num_classes)
    return DetectionTask(model, criterion, dense, masks)
