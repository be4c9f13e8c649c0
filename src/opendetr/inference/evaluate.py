"""Run a model on batches of a dataset and produce the results that an evaluator expects.

Shape letters: B batch, n detections of one image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.evaluation import DetectionEvaluator, ImageResult
from opendetr.inference.session import Session
from opendetr.postprocess import Merge, candidates, detect, detect_with_queries, image_masks
from opendetr.results import Panoptic
from opendetr.structures import Batch, ImageBatch, Output

Item = TypeVar("Item")


@dataclass(frozen=True)
class ResultSource:
    """Runs a model on batches and yields the results of one image at a time.

    Masks are resized to the original image one image at a time, so memory use does not grow with the batch size.

    Attributes:
        session: runs the model.
        categories: the categories of the model's labels.
        evaluator: determines which results are computed (decoder layers, masks, panoptic maps).
        merge: the rule that turns mask logits into instance masks and panoptic maps.
        panoptic_score: queries with a lower score do not take part in a panoptic map. None: the model's default.
    """

    session: Session
    categories: Categories
    evaluator: DetectionEvaluator
    merge: Merge = "default"
    panoptic_score: float | None = None

    @torch.inference_mode()
    def results(self, batch: Batch, images: ImageBatch) -> Iterator[ImageResult]:
        """Yield the result of each image of a batch. `images` are the batch's images on the model's device."""
        output, evaluator = self.session.step(images), self.evaluator
        sizes = torch.tensor([target.original_size for target in batch.targets])
        earlier = output.layers[-evaluator.num_layers : -1]
        earlier_detections = [detect(layer, sizes, self.categories) for layer in earlier]
        detected = detect_with_queries(output.final, sizes, self.categories)
        final = [evaluator.known_things(detections, queries) for detections, queries in detected]
        masks = self._masks(output, images, sizes, [queries for _, queries in final])
        for index, ((detections, _), (instance_masks, panoptic)) in enumerate(zip(final, masks, strict=True)):
            layers = [layer[index] for layer in earlier_detections]
            known = (evaluator.known_things(layer, torch.arange(len(layer)))[0] for layer in layers)
            yield ImageResult((*known, replace(detections, masks=instance_masks)), panoptic)

    def _masks(
        self, output: Output, images: ImageBatch, sizes: Tensor, queries: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor | None, Panoptic | None]]:
        """Yield the masks of the given queries and the panoptic map of each image; None for those not evaluated."""
        if not self.evaluator.wants_masks:
            yield from ((None, None) for _ in queries)
            return
        merge, chosen = self.merge, None
        if self.evaluator.wants_maps:
            # Without a min_score, `candidates` uses the default of the model's scoring.
            chosen = candidates(output.final, self.categories, min_score=self.panoptic_score, merge=merge)
        for masks in image_masks(output, images, sizes, queries=queries, found=chosen):
            yield masks.instances(merge=merge), None if chosen is None else masks.panoptic(self.categories, merge=merge)


class Stopwatch:
    """Measures the time that iterators take to produce their items. `seconds` is the total."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items. The time that the caller spends between two items is not measured."""
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - began
            yield item
