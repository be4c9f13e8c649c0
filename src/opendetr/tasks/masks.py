"""The task of training only the mask head of a model, with a frozen detector (DETR, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from opendetr.losses import MaskLoss, SetCriterion
from opendetr.models import MaskedDetector
from opendetr.structures import Batch, Matches, Output, Target
from opendetr.tasks.base import Task


class MaskHeadTask(Task[Batch, Output]):
    """A model with a mask head and only the mask losses.

    The detector stays in evaluation mode. The original keeps its dropout active, so its mask head is trained on queries
    that never occur in prediction.

    Args:
        model: a detector with a mask head. The constructor freezes the detector.
        criterion: matches the queries of the last layer.
        masks: mask losses.
    """

    model: MaskedDetector

    def __init__(self, model: MaskedDetector, criterion: SetCriterion, masks: MaskLoss) -> None:
        super().__init__(model, criterion, {"masks": masks})
        model.detector.requires_grad_(False)

    def train(self, mode: bool = True) -> MaskHeadTask:
        """Set the mode of the mask head. The detector stays in evaluation mode."""
        super().train(mode)
        self.model.detector.eval()
        return self

    def frames(self, batch: Batch) -> Iterator[tuple[Output, Sequence[Target], Matches]]:
        """Yield the output of the last layer without gradients. Only the mask head, which runs later, has gradients."""
        with torch.no_grad():
            output = self.output(batch)
        last = replace(output, layers=output.layers[-1:])
        yield last, batch.targets, self.match(last, batch.targets)
