"""Class terms. Each defines the cost for matching, the loss, and the scoring of the logits.

Shape letters: B batch, Q queries, L decoder layers, C class logits, K classes, n objects of the batch, m matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from opendetr.scoring import Sigmoid, SoftmaxNoObject
from opendetr.structures import Matches, Scoring, Target

_EPSILON = 1e-8  # as in the original, inside the logarithms of the cost


class ClassTerm(Protocol):
    """The class part of matching and loss.

    The methods receive targets and not labels: `Target`, or the subclass whose fields the term needs.
    """

    def scoring(self) -> Scoring:
        """The scoring for a model that is trained with this term."""
        ...

    def cost(self, logits: Tensor, targets: Sequence[Any]) -> Tensor:
        """Logits (L, B, Q, C) and B targets with n objects in total -> costs (n, L, Q).

        Row i holds the costs of the i-th object, in the order of the images, with each query of its image.
        """
        ...

    def loss(self, logits: Tensor, targets: Sequence[Any], matches: Matches) -> Tensor:
        """Logits (L, B, Q, C) -> losses (L,), summed over images and queries."""
        ...

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> float:
        """The divisor of the loss, computed from the number of objects of each image in the step."""
        ...


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassification:
    """Cross-entropy over the classes and "no object" (DETR, section 3.1).

    Attributes:
        no_object_weight: weight of unmatched queries. It is below 1 because most queries are unmatched.
    """

    no_object_weight: float = 0.1

    def scoring(self) -> SoftmaxNoObject:
        """Softmax with "no object" as the last class."""
        return SoftmaxNoObject()

    def cost(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """Minus the probability of the object's class: (L, B, Q, C) -> (n, L, Q)."""
        return -_of_objects(logits.softmax(-1), targets)

    def loss(self, logits: Tensor, targets: Sequence[Target], matches: Matches) -> Tensor:
        """Weighted cross-entropy summed over images and queries: (L, B, Q, C) -> (L,)."""
        labels = torch.full(logits.shape[:-1], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
        labels[matches.layer, matches.image, matches.query] = of_matches(targets, matches, "labels")
        return no_object_cross_entropy(logits, labels, self.no_object_weight).sum((1, 2))

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> float:
        """The sum of the weights of all queries. An image has min(objects, queries) matched queries."""
        matched = sum(min(count, num_queries) for count in object_counts)
        return matched + self.no_object_weight * (len(object_counts) * num_queries - matched)


@dataclass(frozen=True, kw_only=True)
class SigmoidFocalClassification:
    """Focal loss with one sigmoid per class (Lin et al., RetinaNet, 2017), as in Deformable and Conditional DETR.

    Attributes:
        alpha: weight of the correct class; the other classes have the weight 1 - alpha.
        gamma: focusing parameter. Larger values reduce the loss of easy logits.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def scoring(self) -> Sigmoid:
        """One sigmoid per class."""
        return Sigmoid()

    def cost(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """Focal loss of predicting the object's class minus that of not predicting it: (L, B, Q, C) -> (n, L, Q)."""
        p = _of_objects(logits, targets).sigmoid()
        yes = self.alpha * (1 - p) ** self.gamma * -(p + _EPSILON).log()
        no = (1 - self.alpha) * p**self.gamma * -(1 - p + _EPSILON).log()
        return yes - no

    def loss(self, logits: Tensor, targets: Sequence[Target], matches: Matches) -> Tensor:
        """Focal loss summed over images, queries and classes: (L, B, Q, C) -> (L,)."""
        one_hot, labels = torch.zeros_like(logits), of_matches(targets, matches, "labels")
        one_hot[matches.layer, matches.image, matches.query, labels] = 1
        return sigmoid_focal(logits, one_hot, self.alpha, self.gamma).sum((1, 2, 3))

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> float:
        """The number of objects, at least 1."""
        return max(float(sum(object_counts)), 1.0)


@dataclass(frozen=True, kw_only=True)
class SoftTokenClassification:
    """Cross-entropy over the tokens of a caption and "no object"; an object may have several tokens (MDETR, section 2).

    The targets have a `token_map`. Tokens beyond the C - 1 of the class head are left out.

    Attributes:
        no_object_weight: weight of unmatched queries.
    """

    no_object_weight: float = 0.1

    def scoring(self) -> SoftmaxNoObject:
        """Softmax with "no object" as the last column."""
        return SoftmaxNoObject()

    def cost(self, logits: Tensor, targets: Sequence[Target]) -> Tensor:
        """Minus the probability of the object's tokens: (L, B, Q, C) -> (n, L, Q)."""
        probabilities = logits.softmax(-1)
        maps = [_token_rows(_token_map(target), logits.shape[-1]).to(probabilities) for target in targets]
        per_image = [torch.einsum("lqc,nc->nlq", probabilities[:, index], rows) for index, rows in enumerate(maps)]
        return -torch.cat(per_image)

    def loss(self, logits: Tensor, targets: Sequence[Target], matches: Matches) -> Tensor:
        """Cross-entropy with the sum of an object's tokens, summed over images and queries: (L, B, Q, C) -> (L,)."""
        maps = torch.cat([_token_rows(_token_map(target), logits.shape[-1]) for target in targets]).to(logits)
        wanted = torch.zeros_like(logits)
        wanted[..., -1] = self.no_object_weight
        wanted[matches.layer, matches.image, matches.query] = maps[_object_index(targets, matches)]
        return -(wanted * logits.log_softmax(-1)).sum((1, 2, 3))

    def normaliser(self, object_counts: Sequence[int], num_queries: int) -> float:
        """The number of objects, at least 1."""
        return max(float(sum(object_counts)), 1.0)


def _token_map(target: Target) -> Tensor:
    """(n, T) bool. Raises ValueError without one."""
    if target.token_map is None:
        raise ValueError(f"image {target.image_id}: its target has no token_map; give the tokens of each object")
    return target.token_map


def _token_rows(token_map: Tensor, num_logits: int) -> Tensor:
    """(n, T) -> (n, C), with 0 for "no object"."""
    kept = token_map[:, : num_logits - 1]
    return F.pad(kept, (0, num_logits - kept.shape[1]))


def _of_objects(values: Tensor, targets: Sequence[Target]) -> Tensor:
    """Select, from (L, B, Q, C), the values of each object's class in the queries of its image: (n, L, Q)."""
    return values[:, image_index(targets), :, torch.cat([target.labels for target in targets])]


def image_index(targets: Sequence[Target]) -> Tensor:
    """(n,) int64, the image index of each object of a batch."""
    return torch.cat([torch.full_like(target.labels, index) for index, target in enumerate(targets)])


def of_matches(targets: Sequence[Target], matches: Matches, name: str) -> Tensor:
    """(m, ...), a field of `Target` with one entry per object, for the matched objects."""
    return torch.cat([getattr(target, name) for target in targets])[_object_index(targets, matches)]


def _object_index(targets: Sequence[Target], matches: Matches) -> Tensor:
    """(m,) int64, the index of each matched object among those of all images."""
    counts = torch.tensor([0, *[len(target) for target in targets]], device=matches.target.device)
    return counts.cumsum(0)[matches.image] + matches.target


def no_object_cross_entropy(logits: Tensor, labels: Tensor, no_object_weight: float) -> Tensor:
    """Weighted cross-entropy of each query, not reduced (DETR, section 3.1 and appendix A.2).

    Args:
        logits: (..., K + 1), "no object" last.
        labels: (...) int64 in 0..K; K is "no object".
        no_object_weight: weight of queries with the label "no object"; other queries have the weight 1.

    Returns:
        (...).
    """
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="none")
    return loss.view(labels.shape)


def sigmoid_focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes, not reduced (Lin et al., RetinaNet, 2017, eq. 5).

    Args:
        logits: any shape.
        targets: the same shape, 0 or 1.
        alpha: weight of the ones; the zeros have the weight 1 - alpha.
        gamma: focusing parameter. Larger values reduce the loss of easy entries.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability = logits.sigmoid()
    missed = probability + targets - 2 * probability * targets  # 1 - probability of the correct value
    return (alpha * targets + (1 - alpha) * (1 - targets)) * missed**gamma * entropy
