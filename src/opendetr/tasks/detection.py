"""The task of object detection, with masks if the model has a mask head."""

from __future__ import annotations

from opendetr.losses import DenseSupervision, LossTerm, MaskLoss, ProposalLoss, SetCriterion
from opendetr.models import Detector
from opendetr.structures import Batch, Output
from opendetr.tasks.base import Task


class DetectionTask(Task[Batch, Output]):
    """Object detection on single images.

    Args:
        model: images -> Output.
        criterion: set loss.
        dense: dense supervision of the encoder's output, or None.
        masks: mask losses for a model with a mask head, or None.
    """

    def __init__(
        self,
        model: Detector,
        criterion: SetCriterion,
        dense: DenseSupervision | None = None,
        masks: MaskLoss | None = None,
    ) -> None:
        terms: dict[str, LossTerm] = {"set": criterion}
        if dense is not None:
            terms["dense"] = dense
        if model.has_proposals:
            terms["proposals"] = ProposalLoss(criterion)
        if masks is not None:
            terms["masks"] = masks
        super().__init__(model, criterion, terms)
