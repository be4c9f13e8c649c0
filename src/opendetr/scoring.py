"""Converts class logits to scores; thresholds of scores.

Shape letters: B batch, Q queries, C class logits, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from opendetr.config import some_of

_PUBLISHED_TOP_K = 100
_MOST_NAMED = 8  # classes that a message lists one by one


@dataclass(frozen=True)
class SoftmaxNoObject:
    """Softmax over K classes and, in the last column, "no object": the scoring of DETR.

    Attributes:
        strict: set the score to 0 where "no object" is the most probable class. DETR does not: it always takes the best
            class other than "no object". This increases AP, which ranks detections without a threshold.
    """

    strict: bool = False
    panoptic_score: ClassVar = 0.85  # as published

    def strictly(self) -> SoftmaxNoObject:
        """A copy with `strict` set to True."""
        return replace(self, strict=True)

    def num_logits(self, num_classes: int) -> int:
        """The number of logits C for K classes."""
        return num_classes + 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., K + 1) logits -> (..., K) probabilities."""
        return logits.softmax(-1)[..., :-1]

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K + 1) logits -> scores and labels of the best class, (...) each; 0 where "no object" is likelier."""
        probabilities = logits.softmax(-1)
        scores, labels = probabilities[..., :-1].max(-1)
        return scores.masked_fill(probabilities[..., -1] > scores, 0.0), labels

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Select the best class of each query, and the k best queries.

        Args:
            logits: (B, Q, K + 1).
            k: number of queries to keep, best first; None keeps all queries in their original order.

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
    """A sigmoid for each of K classes, without "no object": the scoring of Deformable and Conditional DETR."""

    panoptic_score: ClassVar = 0.4  # focal loss results in low scores

    def strictly(self) -> Sigmoid:
        """Raises ValueError: strict scoring needs a "no object" class."""
        raise ValueError("uses sigmoid scores and has no 'no object' class, so strict scores do not apply")

    def num_logits(self, num_classes: int) -> int:
        """The number of logits C for K classes."""
        return num_classes

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., K) logits -> (..., K) probabilities."""
        return logits.sigmoid()

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K) logits -> score and label of the best class, (...) each."""
        scores, labels = logits.sigmoid().max(-1)
        return scores, labels

    def select(self, logits: Tensor, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Select the best pairs of query and class, best first. A query may be selected with several classes.

        Args:
            logits: (B, Q, K).
            k: number of pairs, at most Q * K; None selects the published 100.

        Returns:
            scores, labels and query indices, (B, k) each.
        """
        num_classes = logits.shape[-1]
        flat = logits.sigmoid().flatten(1)
        scores, index = flat.topk(min(_PUBLISHED_TOP_K if k is None else k, flat.shape[1]), dim=1)
        return scores, index % num_classes, index // num_classes


@dataclass(frozen=True)
class ScoreThresholds:
    """The scores below which detections are dropped.

    Attributes:
        default: threshold of the classes that `by_class` does not name.
        by_class: thresholds of single classes by name.
    """

    default: float
    by_class: Mapping[str, float] = field(default_factory=dict)

    def of(self, name: str) -> float:
        """The threshold of a class."""
        return self.by_class.get(name, self.default)

    def describe(self, names: Sequence[str], origin: str) -> str:
        """The thresholds of the classes `names` as text; classes that have only the common threshold are named.

        Args:
            names: the names of the classes.
            origin: where the thresholds come from, such as "stored with the model".
        """
        own = {name: self.by_class[name] for name in names if name in self.by_class}
        others = [name for name in names if name not in own]
        if not own:
            return f"{self.default:.2f} for every class, {origin}"
        common = f"the threshold of all classes together, {self.default:.2f}"
        if not others:
            return f"{_values(own)}, {origin}"
        if len(others) == 1:
            return f"{_values(own)}, {origin}; {others[0]} has none and uses {common}"
        return f"{_values(own)}, {origin}; {len(others)} classes ({some_of(others)}) have none and use {common}"


def _values(thresholds: Mapping[str, float]) -> str:
    """The thresholds of a few classes, or the range of many: "cat 0.41, dog 0.38"."""
    if len(thresholds) <= _MOST_NAMED:
        return ", ".join(f"{name} {threshold:.2f}" for name, threshold in thresholds.items())
    low, high = (f"{limit:.2f}" for limit in (min(thresholds.values()), max(thresholds.values())))
    return f"{low} for {len(thresholds)} classes" if low == high else f"{low} to {high} by class"
