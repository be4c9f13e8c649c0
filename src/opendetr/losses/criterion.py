"""The set loss: matching, then class, L1 and GIoU losses in every decoder layer (DETR, section 3.1, eq. 2).

Shape letters: B batch, Q queries, L decoder layers, C class logits, n objects, m matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from opendetr.losses.boxes import box_giou, box_l1
from opendetr.losses.class_terms import ClassTerm, SoftmaxClassification, of_matches
from opendetr.losses.matcher import MatcherConfig, match, match_within_groups, pair_costs
from opendetr.losses.term import Normaliser
from opendetr.structures import Matches, Output, Predictions, Target

_PROPOSAL = "proposal_"  # prefix of the names of the proposal losses


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the set loss.

    Attributes:
        classification: class term, for cost and loss; a frozen dataclass.
        matcher: weights of the matching costs.
        class_weight, l1_weight, giou_weight: weights of the losses, the same in every layer.
        auxiliary: whether every decoder layer has losses (DETR, section 3.2), or only the last one.
    """

    classification: ClassTerm = field(default_factory=SoftmaxClassification)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    class_weight: float = 1.0
    l1_weight: float = 5.0
    giou_weight: float = 2.0
    auxiliary: bool = True


class SetCriterion:
    """The set loss, a loss term. It also provides matches and divisors for the other terms.

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
        """Match queries with objects in every layer; `candidates` and `fixed` as in `matcher.match`."""
        costs = pair_costs(output, targets, self.class_term, self.config.matcher)
        return match(costs, [len(target) for target in targets], candidates=candidates, fixed=fixed)

    def match_within_groups(self, output: Output, targets: Sequence[Target], group_size: int) -> Matches:
        """Match each object with a query of its own group; see `matcher.match_within_groups`."""
        costs = pair_costs(output, targets, self.class_term, self.config.matcher)
        return match_within_groups(costs, targets, group_size)

    def boxed(self, targets: Sequence[Target], matches: Matches) -> Matches:
        """The matches that have box losses: all."""
        return matches

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> Normaliser:
        """The divisors of a step, from the number of objects of each image in all micro-batches and processes."""
        return Normaliser(max(float(sum(object_counts)), 1.0), self.class_term.normaliser(object_counts, num_queries))

    def __call__(
        self, output: Output, targets: Sequence[Target], matches: Matches, normaliser: Normaliser
    ) -> dict[str, Tensor]:
        """Unweighted losses of every layer: "class", "l1" and "giou", each (L,), last = final layer.

        Without auxiliary losses, those of all layers but the last are 0.
        The losses are finite for all finite predictions. Images may have no objects, or more objects than queries.
        """
        logits = torch.stack([layer.logits for layer in output.layers])
        boxes = torch.stack([layer.boxes for layer in output.layers])
        boxed = self.boxed(targets, matches)
        predicted = boxes[boxed.layer, boxed.image, boxed.query]
        target_boxes = of_matches(targets, boxed, "boxes")
        counts = boxed.counts(len(output.layers))
        losses = {
            "class": self.class_term.loss(logits, targets, matches) / normaliser.classes,
            "l1": layer_sums(box_l1(predicted, target_boxes), counts) / normaliser.objects,
            "giou": layer_sums(box_giou(predicted, target_boxes), counts) / normaliser.objects,
        }
        if self.config.auxiliary:
            return losses
        return {name: F.pad(values[-1:], (len(values) - 1, 0)) for name, values in losses.items()}


class ProposalLoss:
    """The set loss of a two-stage model's proposals. They are matched with the objects, without classes.

    Args:
        criterion: matching and weights.
    """

    def __init__(self, criterion: SetCriterion) -> None:
        self._criterion = criterion

    @property
    def weights(self) -> Mapping[str, float]:
        """The weights of the set loss, with the names of the proposal losses."""
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
    """The output of a two-stage model."""

    proposals: Predictions


def layer_sums(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Values (m,) of all matches -> (L,), summed per layer."""
    if len(set(counts)) == 1:  # all layers have the same number of matches, so a view is enough
        return values.view(len(counts), -1).sum(1)
    return torch.stack([of_layer.sum() for of_layer in values.split(list(counts))])
