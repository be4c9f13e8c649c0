"""Training the mask head alone, around a detector that stays as it is (DETR, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from opendetr.losses import MaskLoss, SetCriterion
from opendetr.models import MaskedDetector
from opendetr.structures import Batch, Matches, Output, Target
from opendetr.tasks.base import Task


class MaskHeadTask(Task):
    """The losses of masks alone; nothing is computed that only the detector would learn from.

    The detector predicts as in evaluation. The original leaves its dropout on, so its masks learn from queries that
    prediction never produces.

    Args:
        model: a detector with a mask head; the detector in it is frozen here.
        criterion: matches the queries of the last layer.
        masks: the losses.
    """

    model: MaskedDetector

    def __init__(self, model: MaskedDetector, criterion: SetCriterion, masks: MaskLoss) -> None:
        super().__init__(model, criterion, {"masks": masks})
        model.detector.requires_grad_(False)

    def train(self, mode: bool = True) -> MaskHeadTask:
        """Training mode for the mask head."""
        super().train(mode)
        self.model.detector.eval()
        return self

    def frames(self, batch: Batch) -> Iterator[tuple[Output, Sequence[Target], Matches]]:
        """The output of the last layer, without gradients; those of the mask head begin where masks are decoded."""
        with torch.no_grad():
            output = self.model(batch.images)
        last = replace(output, layers=output.layers[-1:])
        yield last, batch.targets, self.match(last, batch.targets)
