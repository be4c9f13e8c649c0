"""How class logits become scores.

Shape letters: B batch, Q queries, C class logits, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SoftmaxNoObject:
    """Softmax over K classes and, in the last column, "no object": DETR's own scoring.

    Attributes:
        strict: give a score of 0 where "no object" is the most probable answer. DETR does not: it takes the best class
            other than "no object" whatever the last column says, which pays because AP ranks and never thresholds.
    """

    strict: bool = False

    def num_logits(self, num_classes: int) -> int:
        """C for K classes."""
        return num_classes + 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., K + 1) -> (..., K)."""
        return logits.softmax(-1)[..., :-1]

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The best class of each query, and the k best queries.

        Args:
            logits: (B, Q, K + 1).
            k: how many queries to keep, best first; None keeps all, in their own order.

        Returns:
            scores, labels and query indices, (B, k) or (B, Q) each.
        """
        probabilities = logits.softmax(-1)
        scores, labels = probabilities[..., :-1].max(-1)
        if self.strict:
            scores = scores.masked_fill(probabilities[..., -1] > scores, 0.0)
        queries = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
        if k is None:
            queries = queries.sort(dim=1).values
        return scores.gather(1, queries), labels.gather(1, queries), queries
