"""The interface of evaluators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from opendetr.structures import Batch


class Evaluator(Protocol):
    """Collects the results of a model on a dataset and computes metrics. Each preset names its evaluator."""

    def update(self, batch: Batch, results: Iterable[Any]) -> None:
        """Add the results of a batch, one per image, in the order of its targets.

        Results may be produced lazily, one image at a time, which bounds memory use.
        """
        ...

    def gather(self) -> None:
        """Combine the results that all processes have collected."""
        ...

    def compute(self) -> dict[str, float | None]:
        """The metrics by name; None if the dataset has no objects that the metric measures."""
        ...
