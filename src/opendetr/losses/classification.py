"""Class terms as objects: the cost that matching weighs and the loss that training lowers.

Shape letters: B batch, Q queries, L decoder layers, C class logits, K classes, n objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from opendetr.losses.functional import no_object_cross_entropy
from opendetr.structures import Matches


class Classification(Protocol):
    """What a criterion asks of a class term."""

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(n, L, Q, C) logits of the queries of each object's image, (n,) labels -> (n, L, Q)."""
        ...

    def loss(self, logits: Tensor, labels: Tensor, matches: Matches) -> Tensor:
        """(L, B, Q, C) logits, (m,) labels of the matches -> (L,) sum over images and queries."""
        ...

    def normaliser(self, num_objects: list[int], num_queries: int) -> float:
        """What the sum is divided by, from the number of objects of each image."""
        ...


@dataclass(frozen=True, kw_only=True)
class SoftmaxClassification:
    """Cross-entropy over the classes and "no object" (DETR, section 3.1).

    Attributes:
        no_object_weight: weight of the queries that match nothing, against the imbalance of many to few.
    """

    no_object_weight: float = 0.1

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the probability of the object's class: (n, L, Q, C), (n,) -> (n, L, Q)."""
        index = labels.view(-1, 1, 1, 1).expand(*logits.shape[:-1], 1)
        return -logits.softmax(-1).gather(-1, index).squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor, matches: Matches) -> Tensor:
        """Weighted cross-entropy summed over images and queries: (L, B, Q, C) -> (L,)."""
        wanted = torch.full(logits.shape[:-1], logits.shape[-1] - 1, dtype=torch.int64, device=logits.device)
        wanted[matches.layer, matches.image, matches.query] = labels
        return no_object_cross_entropy(logits, wanted, self.no_object_weight).sum((1, 2))

    def normaliser(self, num_objects: list[int], num_queries: int) -> float:
        """The sum of the queries' weights: an image matches as many queries as it has objects, at most all."""
        matched = sum(min(count, num_queries) for count in num_objects)
        return matched + self.no_object_weight * (len(num_objects) * num_queries - matched)
