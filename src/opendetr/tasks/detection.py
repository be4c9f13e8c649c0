"""A task joins a model with what is asked of it: batches in, losses or results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from opendetr.losses.criterion import Normaliser, SetCriterion
from opendetr.losses.dense import DenseSupervision
from opendetr.losses.masks import MaskCriterion
from opendetr.models.deformable import TwoStageOutput
from opendetr.models.detector import Detector
from opendetr.models.masks import MaskedDetector
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
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """What `losses` gives, and "dense" (1,) where the encoder is supervised."""
        normaliser = normaliser or self.normaliser(list(map(len, targets)))
        losses = self.losses(output, targets, normaliser, matches)
        if self.dense is not None:
            losses["dense"] = self.dense(output.memory[0], targets, normaliser.objects)[None]
        return losses

    def losses(
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses: {"class": (L,), "l1": (L,), "giou": (L,)}, one value a decoder layer, last = final.

        `matches` are those of every layer, where they are known already.
        """
        return self.criterion.losses(output, targets, normaliser, matches)

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
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Those of every layer, and "proposal_class", "proposal_l1", "proposal_giou", (1,) each."""
        assert isinstance(output, TwoStageOutput)
        losses = super().losses(output, targets, normaliser, matches)
        objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        proposals = self.criterion.losses(replace(output, layers=(output.proposals,)), objects, normaliser)
        return losses | {f"{_PROPOSAL}{name}": value for name, value in proposals.items()}

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted scalar that training lowers."""
        proposals = {name.removeprefix(_PROPOSAL): x for name, x in losses.items() if name.startswith(_PROPOSAL)}
        return super().total(losses) + self.criterion.total(proposals)


class MaskTask(nn.Module):
    """Detection with masks, trained jointly.

    Args:
        detection: the same without masks; its model is a `MaskedDetector`.
        criterion: the losses of masks.
    """

    def __init__(self, detection: DetectionTask, criterion: MaskCriterion) -> None:
        super().__init__()
        assert isinstance(detection.model, MaskedDetector)
        self.detection = detection
        self.mask_criterion = criterion

    @property
    def model(self) -> MaskedDetector:
        """The model."""
        assert isinstance(self.detection.model, MaskedDetector)
        return self.detection.model

    def forward(self, batch: Batch, normaliser: Normaliser | None = None) -> dict[str, Tensor]:
        """Unweighted losses of a batch, as `training_losses` gives them."""
        size = _height_and_width(batch.images.pixels)
        return self.training_losses(self.model(batch.images), batch.targets, normaliser, size)

    def training_losses(
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        size: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """What detection is trained by, and the losses of masks; `size` as in `losses`."""
        normaliser = normaliser or self.normaliser(list(map(len, targets)))
        matches = self.match(output, targets)
        losses = self.detection.training_losses(output, targets, normaliser, matches)
        return losses | self.mask_losses(output, targets, normaliser, size, matches)

    def losses(
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        size: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """Those of detection, and "mask" and "dice", (1,) each, of the last layer.

        Args:
            output: of the model.
            targets: B targets with masks.
            normaliser: divisors; those of `targets` when omitted.
            size: height and width of the padded batch; that of the largest targets when omitted.

        Raises:
            ValueError: objects without masks.
        """
        normaliser = normaliser or self.normaliser(list(map(len, targets)))
        matches = self.match(output, targets)
        losses = self.detection.losses(output, targets, normaliser, matches)
        return losses | self.mask_losses(output, targets, normaliser, size, matches)

    def mask_losses(
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser,
        size: tuple[int, int] | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """ "mask" and "dice" alone; masks are computed for the matched queries only.

        `matches` are those of every layer, where they are known already; the other arguments are as in `losses`.
        """
        if size is None:
            size = max(target.size[0] for target in targets), max(target.size[1] for target in targets)
        if matches is None:
            final = self.match(replace(output, layers=output.layers[-1:]), targets)
        else:
            final = matches.of_layer(len(output.layers) - 1)
        masks = self.model.masks(output, final.image, final.query)
        return self.mask_criterion.losses(masks, final, targets, normaliser.objects, size)

    def normaliser(self, num_objects: Sequence[int]) -> Normaliser:
        """As of detection; masks are divided by the number of objects."""
        return self.detection.normaliser(num_objects)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted scalar that training lowers."""
        return self.detection.total(losses) + self.mask_criterion.total(losses)

    def match(self, output: Output, targets: Sequence[Target]) -> Matches:
        """Which query answers for which object, in every layer."""
        return self.detection.match(output, targets)


class MaskHeadTask(MaskTask):
    """Masks of a detector that stays as it is: the second of the paper's two stages of training.

    Nothing is computed that only the detector would learn from. It answers as in evaluation; the original leaves its
    dropout on, so that the masks learn from queries that prediction never gives.
    """

    def train(self, mode: bool = True) -> MaskHeadTask:
        """Training mode for what is trained."""
        super().train(mode)
        self.model.detector.eval()
        return self

    def forward(self, batch: Batch, normaliser: Normaliser | None = None) -> dict[str, Tensor]:
        """Unweighted losses of a batch: "mask" and "dice", (1,) each."""
        with torch.no_grad():
            output = self.model(batch.images)
        normaliser = normaliser or self.normaliser(list(map(len, batch.targets)))
        return self.mask_losses(output, batch.targets, normaliser, _height_and_width(batch.images.pixels))

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted scalar that training lowers."""
        return self.mask_criterion.total(losses)


def _height_and_width(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]
