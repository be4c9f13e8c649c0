"""The task of training a convolutional detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from opendetr.losses import CriterionConfig, Normaliser, SetCriterion
from opendetr.models import BaselineDetector, BaselineOutput
from opendetr.structures import Batch, Matches, Target
from opendetr.tasks.base import COUNT, Task


class BaselineTask(Task[Batch, BaselineOutput]):
    """A detector that computes its losses itself: it matches anchors, not queries, with objects.

    Args:
        model: the detector.
    """

    def __init__(self, model: BaselineDetector) -> None:
        super().__init__(model, SetCriterion(CriterionConfig()), {})

    def forward(self, batch: Batch, normaliser: Normaliser | None = None) -> dict[str, Tensor]:
        """The sums of the losses of a batch, (1,) each, and "count", (1,), the divisor of these sums."""
        sums, count = self._summed(self.output(batch), batch.targets)
        return {name: value[None] for name, value in sums.items()} | {COUNT: count[None]}

    def losses(
        self,
        output: BaselineOutput,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """The losses of an output in training mode, (1,) each."""
        sums, count = self._summed(output, targets)
        return {name: value[None] / count.clamp(min=1.0) for name, value in sums.items()}

    def _summed(self, output: BaselineOutput, targets: Sequence[Target]) -> tuple[dict[str, Tensor], Tensor]:
        return cast(BaselineDetector, self.model).losses(output, targets)

    def normaliser(self, object_counts: Sequence[Any]) -> None:
        """None: the divisor is known after the forward pass."""

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses, a scalar."""
        return torch.cat(list(losses.values())).sum()

    def match(self, output: BaselineOutput, targets: Sequence[Target]) -> Matches:
        """No matches: there are no queries."""
        layer, image, query, target = torch.empty((4, 0), dtype=torch.int64, device=output.image_sizes.device)
        return Matches(layer, image, query, target, per_layer=())
