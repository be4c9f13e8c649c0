"""The results of a model on a dataset, as an evaluator takes them.

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
    """Runs a model on batches, and gives what an evaluator needs, image by image.

    Masks are brought to the size of their image one image at a time, so memory stays flat.

    Attributes:
        session: runs the model.
        categories: what its labels stand for.
        evaluator: says what is needed.
        merge: the rule by which masks become masks of instances and a panoptic map.
        panoptic_score: queries that score less have no part in a map; the usual one of the model when omitted.
    """

    session: Session
    categories: Categories
    evaluator: DetectionEvaluator
    merge: Merge = "default"
    panoptic_score: float | None = None

    @torch.inference_mode()
    def results(self, batch: Batch, images: ImageBatch) -> Iterator[ImageResult]:
        """The result of each image of a batch, one after another; `images` are the batch's on the model's device."""
        output, evaluator = self.session.step(images), self.evaluator
        sizes = torch.tensor([target.original_size for target in batch.targets])
        earlier = output.layers[-evaluator.num_layers : -1]
        before = [detect(layer, sizes, self.categories) for layer in earlier]
        found = detect_with_queries(output.final, sizes, self.categories)
        final = [evaluator.known_things(*each) for each in found]
        masks = self._masks(output, images, sizes, [queries for _, queries in final])
        for index, ((detections, _), (of_detections, panoptic)) in enumerate(zip(final, masks, strict=True)):
            layers = [layer[index] for layer in before]
            others = (evaluator.known_things(each, torch.arange(len(each)))[0] for each in layers)
            yield ImageResult((*others, replace(detections, masks=of_detections)), panoptic)

    def _masks(
        self, output: Output, images: ImageBatch, sizes: Tensor, queries: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor | None, Panoptic | None]]:
        """Masks of the given queries and the map of each image, as far as they are evaluated."""
        if not self.evaluator.wants_masks:
            yield from ((None, None) for _ in queries)
            return
        merge, found = self.merge, None
        if self.evaluator.wants_maps:
            usual = output.final.scoring.panoptic_score
            least = usual if self.panoptic_score is None else self.panoptic_score
            found = candidates(output.final, self.categories, min_score=least, merge=merge)
        for masks in image_masks(output, images, sizes, queries=queries, found=found):
            yield masks.instances(merge=merge), None if found is None else masks.panoptic(self.categories, merge=merge)


class Stopwatch:
    """Adds up the time that an iterator takes to give its items, in `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items; what is done with one before the next is asked for does not count."""
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - began
            yield item
