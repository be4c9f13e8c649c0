"""The presets of MDETR."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from opendetr.categories import Categories
from opendetr.losses import (
    CriterionConfig,
    DenseSupervision,
    GroundingLossConfig,
    MaskLoss,
    SetCriterion,
    SoftTokenClassification,
)
from opendetr.models import Detector, GroundingSession, MaskedDetector, MDETRConfig, Session
from opendetr.nn import BackboneConfig, TransformerConfig, WordTextConfig
from opendetr.presets.detr import detr_tiny
from opendetr.presets.preset import Preset
from opendetr.recipe import Recipe
from opendetr.structures import Batch, CaptionBatch
from opendetr.tasks import GroundingMaskTask, GroundingTask, Task

NUM_TOKENS = 255
"""The tokens of a caption that a query can name; K of all models of the family."""

_CRITERION = CriterionConfig(classification=SoftTokenClassification())


@dataclass(frozen=True, kw_only=True)
class GroundingPreset(Preset):
    """The configuration of a model that detects what a caption names.

    Attributes:
        grounding: weights of the losses besides set loss and masks.
    """

    model: MDETRConfig = field(default_factory=MDETRConfig)
    criterion: CriterionConfig = _CRITERION
    grounding: GroundingLossConfig = field(default_factory=GroundingLossConfig)

    def num_classes(self, categories: Categories) -> int:
        """The number of tokens that a query can name, for all datasets."""
        return NUM_TOKENS

    def published_categories(self) -> Categories:
        """One class, because the phrases of a caption are not known in advance."""
        return Categories.from_names(["object"])

    def build_task(self, model: Detector, num_classes: int) -> Task:
        """The model with its losses, ready for the trainer."""
        criterion = SetCriterion(self.criterion)
        masks = MaskLoss(self.mask_criterion) if self.has_masks else None
        if self.freeze_detector:
            assert isinstance(model, MaskedDetector) and masks is not None
            return GroundingMaskTask(model, criterion, masks)
        dense = None
        if self.dense.weight > 0:
            dense = DenseSupervision(self.dense, self.model.transformer.width, num_classes=1)
        return GroundingTask(model, criterion, self.grounding, dense, masks)

    def session(self, model: Detector) -> Session:
        """The session that runs the model at inference."""
        return GroundingSession(model)

    def prompt(self, batch: Batch) -> Any:
        """The captions of an evaluation batch."""
        assert isinstance(batch, CaptionBatch)
        return batch.captions

    @property
    def draws_predictions(self) -> bool:
        """Whether a training run draws predictions for some validation images: not without their captions."""
        return False

    def miniature(self) -> Self:
        """The preset with smaller sizes, for tests."""
        small = super().miniature()
        return replace(small, model=replace(small.model, text=self.model.text.miniature()))


# The recipe of the pre-training.
_RECIPE = Recipe(batch_size=64, epochs=40, step_at=35 / 40, ema_decay=0.9998)


def _mdetr(name: str, model: MDETRConfig, recipe: Recipe = _RECIPE) -> GroundingPreset:
    """A published MDETR with its authors' recipe."""
    return GroundingPreset(name=name, model=model, recipe=recipe)


def mdetr_r50() -> GroundingPreset:
    """MDETR with ResNet-50 and RoBERTa."""
    return _mdetr("mdetr-r50", MDETRConfig())


def mdetr_r101() -> GroundingPreset:
    """MDETR with ResNet-101 and RoBERTa, the paper's baseline."""
    return _mdetr("mdetr-r101", MDETRConfig(backbone=BackboneConfig(depth=101)))


def mdetr_tiny() -> GroundingPreset:
    """A small MDETR with a vocabulary of its own, for small images and training from scratch without a GPU."""
    tiny = detr_tiny()
    model = MDETRConfig(
        backbone=tiny.model.backbone,
        transformer=TransformerConfig(width=128, ffn_width=512, encoder_layers=3, decoder_layers=3, dropout=0.0),
        num_queries=50,
        text=WordTextConfig(),
        text_dropout=0.0,
        own_text_rate=False,
    )
    return GroundingPreset(name="mdetr-tiny", model=model, data=tiny.data, recipe=tiny.recipe)
