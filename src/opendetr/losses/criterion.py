"""The set loss: match, then score class, L1 and GIoU in every decoder layer (DETR, section 3.1, eq. 2).

Shape letters: B batch, Q queries, L decoder layers, C class logits, n objects, m matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from opendetr.losses.boxes import box_giou, box_l1
from opendetr.losses.class_terms import Classification, SigmoidFocalClassification, SoftmaxClassification
from opendetr.losses.matcher import MatcherConfig, match
from opendetr.structures import Matches, Output, Target


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the set loss.

    Attributes:
        classification: the class term, cost and loss.
        matcher: weights of the matching costs.
        class_weight, l1_weight, giou_weight: weights of the losses, the same in every layer.
    """

    classification: SoftmaxClassification | SigmoidFocalClassification = field(default_factory=SoftmaxClassification)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0


@dataclass(frozen=True)
class Normaliser:
    """What the sums are divided by: counted over everything that one optimiser step sees.

    Attributes:
        objects: number of objects, at least 1.
        classes: sum of the weights of the class term, over B images and Q queries.
    """

    objects: float
    classes: float


class SetCriterion:
    """Losses of an output against targets.

    Args:
        config: weights and class term.
    """

    def __init__(self, config: CriterionConfig) -> None:
        self.config = config
        self.classification: Classification = config.classification

    def match(self, output: Output, targets: Sequence[Target]) -> Matches:
        """Which query answers for which object, in every layer."""
        return match(output, targets, self.classification, self.config.matcher)

    def normaliser(self, num_objects: Sequence[int], num_queries: int) -> Normaliser:
        """The divisors for images with so many objects each: all images of a step, when it is computed in parts."""
        counts = list(num_objects)
        return Normaliser(max(float(sum(counts)), 1.0), self.classification.normaliser(counts, num_queries))

    def losses(
        self,
        output: Output,
        targets: Sequence[Target],
        normaliser: Normaliser | None = None,
        matches: Matches | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses of every layer.

        Args:
            output: predictions of L layers.
            targets: B targets; images without objects and more objects than queries are ordinary.
            normaliser: divisors; those of `targets` when omitted.
            matches: what `match` gives, where it is known already.

        Returns:
            "class", "l1" and "giou", each (L,), last = final layer. Finite for every finite prediction.
        """
        if normaliser is None:
            normaliser = self.normaliser(list(map(len, targets)), output.final.logits.shape[1])
        if matches is None:
            matches = self.match(output, targets)
        logits = torch.stack([layer.logits for layer in output.layers])
        boxes = torch.stack([layer.boxes for layer in output.layers])
        labels, wanted = _of_matches(targets, matches)
        # Every layer matches the same number of pairs, so a view tells the layers apart.
        guesses = boxes[matches.layer, matches.image, matches.query].view(len(output.layers), -1, 4)
        wanted = wanted.view_as(guesses)
        return {
            "class": self.classification.loss(logits, labels, matches) / normaliser.classes,
            "l1": box_l1(guesses, wanted).sum(1) / normaliser.objects,
            "giou": box_giou(guesses, wanted).sum(1) / normaliser.objects,
        }

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum over terms and layers, a scalar."""
        config = self.config
        weights = {"class": config.class_weight, "l1": config.l1_weight, "giou": config.giou_weight}
        return torch.stack([weights[name] * values.sum() for name, values in losses.items()]).sum()


def _of_matches(targets: Sequence[Target], matches: Matches) -> tuple[Tensor, Tensor]:
    """Labels (m,) and boxes (m, 4) of the matched objects."""
    counts = torch.tensor([0, *[len(target) for target in targets]], device=matches.target.device)
    index = counts.cumsum(0)[matches.image] + matches.target
    labels = torch.cat([target.labels for target in targets])
    boxes = torch.cat([target.boxes for target in targets])
    return labels[index], boxes[index]
