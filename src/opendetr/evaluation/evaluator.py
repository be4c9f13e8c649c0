"""What an evaluator is: results in, metrics out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from opendetr.structures import Batch


class Evaluator(Protocol):
    """Collects the results of a model on a dataset and computes metrics from them; a preset names it."""

    def update(self, batch: Batch, results: Iterable[Any]) -> None:
        """Take in the results of a batch, one per image, in the order of its targets.

        Results may be produced lazily, image by image, so that memory stays flat.
        """
        ...

    def gather(self) -> None:
        """Bring together what all processes have collected."""
        ...

    def compute(self) -> dict[str, float | None]:
        """The metrics by name; None where the dataset has nothing that a metric measures."""
        ...
