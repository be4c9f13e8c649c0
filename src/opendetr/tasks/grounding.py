"""The task of detection guided by text, and of training only the mask head of such a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from opendetr.losses import (
    AlignmentLoss,
    AnswerLoss,
    DenseSupervision,
    FinalLoss,
    GroundingLossConfig,
    GroundingNormaliser,
    GroundingSupervision,
    LossTerm,
    MaskLoss,
    Normaliser,
    PairLoss,
    SetCriterion,
)
from opendetr.models import MDETR, Detector
from opendetr.structures import CaptionBatch, GroundingOutput, Matches, Target
from opendetr.tasks.base import Task
from opendetr.tasks.masks import MaskHeadTask


class _WithCaptions(Task[CaptionBatch, GroundingOutput]):
    """What tasks on captioned images have in common: the input of the model and the divisors."""

    def output(self, batch: CaptionBatch) -> GroundingOutput:
        """Run the model on the images and their captions."""
        return self.model(batch.images, batch.tokens)

    def losses(
        self,
        output: GroundingOutput,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses of an output; see `Task.losses`."""
        if normaliser is None:
            normaliser = self.normaliser([(len(target), tuple(target.answers or ())) for target in targets])
        return super().losses(output, targets, normaliser, matches)

    def normaliser(self, object_counts: Sequence[tuple[int, tuple[str, ...]]]) -> Normaliser:
        """The divisors of a step; see `Task.normaliser`.

        Args:
            object_counts: number of objects of each image, and the answer heads that its question concerns.
        """
        plain = self.criterion.normaliser([count for count, _ in object_counts], self.model.num_queries)
        return GroundingNormaliser.of(plain, [heads for _, heads in object_counts])


class GroundingTask(_WithCaptions):
    """Detection of what captions name.

    Args:
        model: an MDETR, or one with a mask head.
        criterion: set loss with a class term of tokens.
        config: weights of the further losses.
        dense: dense supervision of the encoder's output for one class, or None.
        masks: mask losses for a model with a mask head, or None.
    """

    def __init__(
        self,
        model: Detector,
        criterion: SetCriterion,
        config: GroundingLossConfig,
        dense: DenseSupervision | None = None,
        masks: MaskLoss | None = None,
    ) -> None:
        terms: dict[str, LossTerm] = {"set": criterion}
        if dense is not None:
            terms["dense"] = GroundingSupervision(dense, dense.class_head.in_features)
        terms |= _further_terms(cast(MDETR, model.get_submodule(model.detector_part or "")), config)
        if masks is not None:
            terms["masks"] = masks
        super().__init__(model, criterion, terms)


def _further_terms(model: MDETR, config: GroundingLossConfig) -> dict[str, LossTerm]:
    """The loss terms of the model's further heads."""
    terms: dict[str, LossTerm] = {}
    if model.align_queries is not None:
        terms["align"] = AlignmentLoss(config)
    if model.pair_image is not None:
        terms["pair"] = PairLoss(config)
    if model.final_head is not None:
        terms["final"] = FinalLoss(config)
    if model.answer_names:
        terms["answers"] = AnswerLoss(config, model.answer_names)
    return terms


class GroundingMaskTask(_WithCaptions, MaskHeadTask):
    """Training only the mask head of a model that takes captions."""
