"""A task joins a model with what is asked of it: batches in, losses or results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from opendetr.losses.criterion import Normaliser, SetCriterion
from opendetr.losses.dense import DenseSupervision
from opendetr.models.deformable import TwoStageOutput
from opendetr.models.detector import Detector
from opendetr.structures import Batch, Matches, Output, Target

_PROPOSAL = "proposal_"


class DetectionTask(nn.Module):
    """Object detection on single images. The trainer sees this one module.

    Args:
        model: images -> Output.
        criterion: the set loss.
        dense: supervision of the encoder's output beside it, or None.
    """

    def __init__(self, model: Detector, criterion: SetCriterion, dense: DenseSupervision | None = None) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.dense = dense

    def forward(self, batch: Batch, normaliser: Normaliser | None = None) -> dict[str, Tensor]:
        """Unweighted losses of a batch, as `training_losses` gives them."""
        return self.training_losses(self.model(batch.images), batch.targets, normaliser)

    def training_losses(
        self, output: Output, targets: Sequence[Target], normaliser: Normaliser | None = None
    ) -> dict[str, Tensor]:
        """What `losses` gives, and "dense" (1,) where the encoder is supervised."""
        normaliser = normaliser or self.normaliser(list(map(len, targets)))
        losses = self.losses(output, targets, normaliser)
        if self.dense is not None:
            losses["dense"] = self.dense(output.memory[0], targets, normaliser.objects)[None]
        return losses

    def losses(
        self, output: Output, targets: Sequence[Target], normaliser: Normaliser | None = None
    ) -> dict[str, Tensor]:
        """Unweighted losses: {"class": (L,), "l1": (L,), "giou": (L,)}, one value a decoder layer, last = final."""
        return self.criterion.losses(output, targets, normaliser)

    def normaliser(self, num_objects: Sequence[int]) -> Normaliser:
        """Divisors for a step that sees images with so many objects each, in all parts and processes."""
        return self.criterion.normaliser(num_objects, self.model.num_queries)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted scalar that training lowers."""
        total = self.criterion.total({name: losses[name] for name in ("class", "l1", "giou")})
        return total + losses["dense"].sum() if "dense" in losses else total

    def match(self, output: Output, targets: Sequence[Target]) -> Matches:
        """Which query answers for which object, in every layer."""
        return self.criterion.match(output, targets)


class TwoStageTask(DetectionTask):
    """Detection by a model that proposes boxes first: the proposals are matched and scored as well, without classes."""

    def losses(
        self, output: Output, targets: Sequence[Target], normaliser: Normaliser | None = None
    ) -> dict[str, Tensor]:
        """Those of every layer, and "proposal_class", "proposal_l1", "proposal_giou", (1,) each."""
        assert isinstance(output, TwoStageOutput)
        losses = super().losses(output, targets, normaliser)
        objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        proposals = self.criterion.losses(replace(output, layers=(output.proposals,)), objects, normaliser)
        return losses | {f"{_PROPOSAL}{name}": value for name, value in proposals.items()}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted scalar that training lowers."""
        proposals = {name.removeprefix(_PROPOSAL): x for name, x in losses.items() if name.startswith(_PROPOSAL)}
        return super().total(losses) + self.criterion.total(proposals)
