"""How class logits become scores.

Shape letters: B batch, Q queries, C class logits, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

_PUBLISHED_TOP_K = 100


@dataclass(frozen=True)
class SoftmaxNoObject:
    """Softmax over K classes and, in the last column, "no object": DETR's own scoring.

    Attributes:
        strict: give a score of 0 where "no object" is the most probable answer. DETR does not: it takes the best class
            other than "no object" whatever the last column says, which pays because AP ranks and never thresholds.
    """

    strict: bool = False
    panoptic_score: ClassVar = 0.85  # as published

    def strictly(self) -> SoftmaxNoObject:
        """The same with `strict` on."""
        return replace(self, strict=True)

    def num_logits(self, num_classes: int) -> int:
        """C for K classes."""
        return num_classes + 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., K + 1) -> (..., K)."""
        return logits.softmax(-1)[..., :-1]

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K + 1) -> score and label of the best class, (...) each; 0 where "no object" is more probable."""
        probabilities = logits.softmax(-1)
        scores, labels = probabilities[..., :-1].max(-1)
        return scores.masked_fill(probabilities[..., -1] > scores, 0.0), labels

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The best class of each query, and the k best queries.

        Args:
            logits: (B, Q, K + 1).
            k: how many queries to keep, best first; None keeps all, in their own order.

        Returns:
            scores, labels and query indices, (B, k) or (B, Q) each.
        """
        scores, labels = self.best(logits) if self.strict else self.probabilities(logits).max(-1)
        queries = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        if k is None:
            queries = queries.sort(dim=1).values
        return scores.gather(1, queries), labels.gather(1, queries), queries


@dataclass(frozen=True)
class Sigmoid:
    """A sigmoid for each of K classes, no "no object": the scoring of Deformable and Conditional DETR."""

    panoptic_score: ClassVar = 0.4  # focal loss leaves scores low

    def strictly(self) -> Sigmoid:
        """Raises ValueError: there is no "no object" to be strict about."""
        raise ValueError("scores every class by itself, and has no 'no object' class to be strict about")

    def num_logits(self, num_classes: int) -> int:
        """C for K classes."""
        return num_classes

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., K) -> (..., K)."""
        return logits.sigmoid()

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K) -> score and label of the best class, (...) each."""
        scores, labels = logits.sigmoid().max(-1)
        return scores, labels

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of query and class, best first; a query may come with several classes.

        Args:
            logits: (B, Q, K).
            k: how many pairs; the published 100 when None. All there are, when there are fewer.

        Returns:
            scores, labels and query indices, (B, k) each.
        """
        num_classes = logits.shape[-1]
        flat = logits.sigmoid().flatten(1)
        scores, index = flat.topk(min(_PUBLISHED_TOP_K if k is None else k, flat.shape[1]), dim=1)
        return scores, index % num_classes, index // num_classes
