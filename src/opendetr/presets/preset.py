"""What a preset holds, and the model and the task that are built from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from opendetr.config import ConfigError
from opendetr.data.config import DataConfig
from opendetr.losses.class_terms import SigmoidFocalClassification
from opendetr.losses.criterion import CriterionConfig, SetCriterion
from opendetr.losses.dense import DenseConfig, DenseSupervision
from opendetr.losses.masks import MaskCriterionConfig, MaskLoss
from opendetr.losses.matcher import MatcherConfig
from opendetr.models.deformable import DeformableDETRConfig
from opendetr.models.detector import Detector
from opendetr.models.detr import DETRConfig
from opendetr.models.masks import MaskedDetector, MaskHeadConfig
from opendetr.recipe import Recipe
from opendetr.tasks import DetectionTask, MaskHeadTask, Task

WITH_MASKS = "-panoptic"  # at the end of the name of a detector that has a mask head
DETECTOR = "detector"  # the part of a model with a mask head that is the model without


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One run as one tree: everything that a model and its training are made of.

    Attributes:
        name: the catalogue's name, from which the tree started.
        model: the architecture of the detector.
        masks: the mask head around it, or None.
        criterion: the set loss.
        mask_criterion: the losses of masks beside it, where there is a mask head.
        dense: supervision of the encoder beside it, off as published.
        data: sizes and augmentation.
        recipe: optimiser, schedule, length.
    """

    name: str
    model: DETRConfig | DeformableDETRConfig = field(default_factory=DETRConfig)
    masks: MaskHeadConfig | None = None
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    mask_criterion: MaskCriterionConfig = field(default_factory=MaskCriterionConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: Recipe = field(default_factory=Recipe)


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
    if preset.masks is None:
        raise ConfigError(f"{preset.name}: has no mask head to train; choose a model whose name ends in {WITH_MASKS}")
    return frozen(replace(preset, recipe=replace(preset.recipe, epochs=25, step_at=15 / 25)))


def frozen(preset: Preset) -> Preset:
    """The preset with the detector in it frozen, so that its mask head alone is trained."""
    freeze = tuple(dict.fromkeys((*preset.recipe.freeze, DETECTOR)))
    return replace(preset, recipe=replace(preset.recipe, freeze=freeze))


def has_frozen_detector(preset: Preset) -> bool:
    """Whether the mask head alone is trained."""
    return preset.masks is not None and DETECTOR in preset.recipe.freeze


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
    if preset.masks is None:
        return preset.model.build(num_logits, scoring)
    try:
        return preset.masks.build(preset.model, num_logits, scoring)
    except ValueError as error:
        raise ConfigError(f"{preset.name}: {error}") from None


def build_task(preset: Preset, model: Detector, num_classes: int) -> Task:
    """What the trainer trains: the model with the losses of its preset."""
    criterion = SetCriterion(preset.criterion)
    masks = None if preset.masks is None else MaskLoss(preset.mask_criterion)
    if has_frozen_detector(preset):
        return MaskHeadTask(cast(MaskedDetector, model), criterion, cast(MaskLoss, masks))
    dense = None
    if preset.dense.weight > 0:
        dense = DenseSupervision(preset.dense, preset.model.transformer.width, num_classes)
    return DetectionTask(model, criterion, dense, masks)
