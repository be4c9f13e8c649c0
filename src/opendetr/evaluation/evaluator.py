"""The interface of evaluators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from opendetr.scoring import ScoreThresholds
from opendetr.structures import Batch, ImageBatch, Output


class Evaluator(Protocol):
    """Collects the results of a model on a dataset and computes metrics. Each preset names its evaluator."""

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[Any]:
        """Yield the result of each image of a batch.

        Args:
            output: the output of the model.
            images: the images of the batch on the model's device.
            batch: the batch, with its targets.
        """
        ...

    def update(self, batch: Batch, results: Iterable[Any]) -> None:
        """Add the results of a batch, one per image, in the order of its targets.

        Results may be produced lazily, one image at a time, which bounds memory use.
        """
        ...

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Add empty results for images that cannot be read."""
        ...

    def gather(self) -> None:
        """Combine the results that all processes have collected."""
        ...

    def compute(self) -> dict[str, float | None]:
        """The metrics by name; None if the dataset has no objects that the metric measures."""
        ...

    def score_thresholds(self) -> ScoreThresholds | None:
        """The thresholds to predict with, chosen by the results; None if the model uses none."""
        ...

    def evaluation(self, seconds_per_image: float, unreadable: Iterable[str]) -> Any:
        """The metrics with all details, as `Predictor.evaluate` returns them. `named_metrics` are those of `compute`.

        Args:
            seconds_per_image: the mean time of the model and of `results`.
            unreadable: one message per image that could not be read.
        """
        ...
