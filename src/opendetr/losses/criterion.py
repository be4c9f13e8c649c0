"""The set loss: match, then score class, L1 and GIoU in every decoder layer (DETR, section 3.1, eq. 2).

Shape letters: B batch, Q queries, L decoder layers, C class logits, n objects, m matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from opendetr.losses.boxes import box_giou, box_l1
from opendetr.losses.class_terms import ClassTerm, SigmoidFocalClassification, SoftmaxClassification, of_matches
from opendetr.losses.matcher import MatcherConfig, match, pair_costs
from opendetr.losses.term import Normaliser
from opendetr.structures import Matches, Output, Predictions, Target

_PROPOSAL = "proposal_"  # before the names of the losses of proposals


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


class SetCriterion:
    """The set loss, a loss term; it also matches and counts for the other terms.

    Args:
        config: weights and class term.
    """

    def __init__(self, config: CriterionConfig) -> None:
        self.config = config
        self.class_term: ClassTerm = config.classification

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of "class", "l1" and "giou", the same in every layer."""
        config = self.config
        return {"class": config.class_weight, "l1": config.l1_weight, "giou": config.giou_weight}

    def match(
        self,
        output: Output,
        targets: Sequence[Target],
        *,
        candidates: Tensor | None = None,
        fixed: Matches | None = None,
    ) -> Matches:
        """Which query is matched with which object, in every layer; `candidates` and `fixed` as in `matcher.match`."""
        costs = pair_costs(output, targets, self.class_term, self.config.matcher)
        return match(costs, [len(target) for target in targets], candidates=candidates, fixed=fixed)

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> Normaliser:
        """The divisors for images with so many objects each: all images of a step, when it is computed in parts."""
        return Normaliser(max(float(sum(object_counts)), 1.0), self.class_term.normaliser(object_counts, num_queries))

    def __call__(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """Unweighted losses of every layer: "class", "l1" and "giou", each (L,), last = final layer.

        They are finite for every finite prediction. Images without objects and more objects than queries are ordinary.
        """
        logits = torch.stack([layer.logits for layer in output.layers])
        boxes = torch.stack([layer.boxes for layer in output.layers])
        predicted = boxes[matches.layer, matches.image, matches.query]
        wanted = of_matches(targets, matches, "boxes")
        counts = matches.counts(len(output.layers))
        return {
            "class": self.class_term.loss(logits, targets, matches) / normaliser.classes,
            "l1": _layer_sums(box_l1(predicted, wanted), counts) / normaliser.objects,
            "giou": _layer_sums(box_giou(predicted, wanted), counts) / normaliser.objects,
        }


class ProposalLoss:
    """The set loss of a two-stage member's proposals, which are matched as well, without classes.

    Args:
        criterion: matching and weights.
    """

    def __init__(self, criterion: SetCriterion) -> None:
        self._criterion = criterion

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of the set loss, under the names of the proposals."""
        return {f"{_PROPOSAL}{name}": weight for name, weight in self._criterion.weights.items()}

    def __call__(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """ "proposal_class", "proposal_l1" and "proposal_giou", (1,) each; the output has `proposals`."""
        proposed = replace(output, layers=(cast(_TwoStage, output).proposals,))
        objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        losses = self._criterion(proposed, objects, self._criterion.match(proposed, objects), normaliser)
        return {f"{_PROPOSAL}{name}": value for name, value in losses.items()}


class _TwoStage(Protocol):
    """The output of a two-stage member."""

    proposals: Predictions


def _layer_sums(values: Tensor, counts: Sequence[int]) -> Tensor:
    """(m,) values of all matches -> (L,), their sums by layer."""
    if len(set(counts)) == 1:  # a view tells the layers apart
        return values.view(len(counts), -1).sum(1)
    return torch.stack([of_layer.sum() for of_layer in values.split(list(counts))])
