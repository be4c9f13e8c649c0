"""The score of a model on a data set: boxes, masks and panoptic maps, each where both have them.

Shape letters: B batch, K classes, n detections and m candidates of one image.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.data.masks import TrueSegment, coco_truth, panoptic_truth, thing_outlines
from opendetr.data.records import DataError, DetectionData
from opendetr.evaluation import CocoEvaluator
from opendetr.evaluation.names import MASK_PREFIX
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluation, Quality
from opendetr.models.detector import Detector
from opendetr.models.masks import MaskedDetector
from opendetr.postprocess import Merge, candidates, detect, detect_with_queries, image_masks
from opendetr.results import Detections, Panoptic, Segment
from opendetr.structures import Batch, ImageBatch, Output

_NO_QUALITY = dict.fromkeys(Quality._fields)  # of a class that is nowhere


@dataclass(frozen=True)
class Evaluation:
    """A detector's score on a data set.

    Attributes:
        metrics: the twelve COCO numbers of boxes; the same of masks, "mask_" before their names, where the model has
            masks and the data outlines; PQ, SQ and RQ, where the data has panoptic maps. None where no object of the
            kind exists.
        per_class: AP of each class.
        mask_per_class: mask AP of each class; empty where none are scored.
        panoptic_per_class: PQ, SQ and RQ of each class; empty where no maps are scored.
        per_layer: AP of each decoder layer, first to last; empty unless asked for.
        seconds_per_image: of model and post-processing, loading left out.
        results: rows of a COCO results file.
        unreadable: images that could not be read; they count as without detections.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    mask_per_class: dict[str, float | None]
    panoptic_per_class: dict[str, dict[str, float | None]]
    per_layer: tuple[float | None, ...]
    seconds_per_image: float
    results: list[dict[str, Any]]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """What a model has found in one image, under the labels of the data.

    Attributes:
        layers: the detections of every decoder layer that is scored, the last one's with masks where these are scored.
        panoptic: the map, or None where none are scored.
    """

    layers: tuple[Detections, ...]
    panoptic: Panoptic | None


class Scorer:
    """Collects what a model finds in a data set, and scores it. Classes are paired by name.

    Masks are brought to the size of their image and encoded one image at a time, and each panoptic map of the data is
    read once, when its image is scored, so that memory stays flat.

    Args:
        model: its answers are scored.
        categories: what the model's labels stand for.
        data: what there is to find.
        num_layers: score so many of the last decoder layers, and tell the AP of each; the last one when omitted. Masks
            and maps are those of the last one.
        merge: the rule by which masks become masks of instances and a panoptic map.
        panoptic_score: queries that score less have no part in a map; what the model's scoring says when omitted.

    Raises:
        DataError: model and data have no class in common, or the data's masks are such that a score would be wrong:
            here, as far as the annotations show it, and where an image is scored whose map does not fit them.
    """

    def __init__(
        self,
        model: Detector,
        categories: Categories,
        data: DetectionData,
        *,
        num_layers: int | None = None,
        merge: Merge = "default",
        panoptic_score: float | None = None,
    ) -> None:
        self._model = model
        self._categories = categories
        self._data = data
        self._merge: Merge = merge
        self._panoptic_score = model.scoring.panoptic_score if panoptic_score is None else panoptic_score
        self._labels = _common_labels(categories, data.categories, str(data.folder))
        known = self._labels.clamp(min=0)
        self._things = self._labels.where(torch.tensor(data.categories.isthing)[known], -1)
        self._tells_layers = num_layers is not None
        self._records = {image.id: image for image in data.images}
        has_masks = isinstance(model, MaskedDetector) and data.masks != "none"
        has_maps = has_masks and data.masks == "panoptic"
        truth = coco_truth(data)
        self._evaluators = [CocoEvaluator(truth) for _ in range(num_layers or 1)]
        self._mask_evaluator = CocoEvaluator(truth, masks=True, outlines_follow=has_maps) if has_masks else None
        self._panoptic = PanopticEvaluation(data.categories) if has_maps else None
        self._seconds = 0.0
        self._num_images = 0

    def update(self, batch: Batch, images: ImageBatch) -> None:
        """Score the model's answer on a batch; `images` are the batch's on the model's device."""
        finding = self._find(batch, images)
        for target in batch.targets:
            began = time.perf_counter()
            found = next(finding)
            self._seconds += time.perf_counter() - began
            self._score(target.image_id, found)
        self._num_images += len(batch)

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Score images that could not be read as ones in which nothing was found."""
        if self._panoptic is not None:
            for image_id in image_ids:
                segments, info = self._true_map(image_id)
                self._panoptic.update(segments, info, np.zeros_like(segments), ())

    def compute(self, unreadable: Iterable[str] = ()) -> Evaluation:
        """The score of what all processes have collected; `unreadable` are messages to go with it."""
        for evaluator in self._evaluators:
            evaluator.gather()
        scores = [evaluator.compute() for evaluator in self._evaluators]
        boxes = dict(scores[-1])
        per_class = boxes.pop("per_class")
        masks: dict[str, Any] = {"per_class": {}}
        if self._mask_evaluator is not None:
            self._mask_evaluator.gather()
            for image_id in self._mask_evaluator.without_outlines:  # nobody has scored them
                self._true_map(image_id)
            masks = self._mask_evaluator.compute()
        panoptic: dict[str, Any] = {}
        qualities: dict[str, Quality | None] = {}
        if self._panoptic is not None:
            self._panoptic.gather()
            panoptic = {name: value for name, value in self._panoptic.compute().items() if name in PANOPTIC_METRICS}
            qualities = self._panoptic.per_class()
        mask_per_class = masks.pop("per_class")
        return Evaluation(
            metrics=boxes | {f"{MASK_PREFIX}{name}": value for name, value in masks.items()} | panoptic,
            per_class=per_class,
            mask_per_class=mask_per_class,
            panoptic_per_class={
                name: each._asdict() if each else dict(_NO_QUALITY) for name, each in qualities.items()
            },
            per_layer=tuple(score["AP"] for score in scores) if self._tells_layers else (),
            seconds_per_image=self._seconds / max(self._num_images, 1),
            results=(self._mask_evaluator or self._evaluators[-1]).results,
            unreadable=tuple(unreadable),
        )

    @torch.inference_mode()
    def _find(self, batch: Batch, images: ImageBatch) -> Iterator[_Found]:
        """What the model finds in each image of a batch, one after another."""
        output = self._model(images)
        sizes = torch.tensor([target.original_size for target in batch.targets])
        before = [detect(layer, sizes, self._categories) for layer in output.layers[-len(self._evaluators) : -1]]
        final = [self._scored(*found) for found in detect_with_queries(output.final, sizes, self._categories)]
        masks = self._masks(output, images, sizes, [queries for _, queries in final])
        for index, ((detections, _), (of_detections, panoptic)) in enumerate(zip(final, masks, strict=True)):
            others = (self._scored(layer[index])[0] for layer in before)
            yield _Found((*others, replace(detections, masks=of_detections)), panoptic)

    def _masks(
        self, output: Output, images: ImageBatch, sizes: Tensor, queries: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor | None, Panoptic | None]]:
        """Masks of the given queries and the map of each image, as far as they are scored."""
        if self._mask_evaluator is None:
            yield from ((None, None) for _ in queries)
            return
        assert isinstance(self._model, MaskedDetector)
        merge, found = self._merge, None
        if self._panoptic is not None:
            found = candidates(output.final, self._categories, min_score=self._panoptic_score, merge=merge)
        for masks in image_masks(self._model, output, images, sizes, queries=queries, found=found):
            yield masks.instances(merge=merge), None if found is None else masks.panoptic(self._categories, merge=merge)

    def _scored(self, found: Detections, queries: Tensor | None = None) -> tuple[Detections, Tensor]:
        """The detections of things that the data knows, under its labels, and their queries."""
        labels = self._things[found.labels]
        kept = labels >= 0
        moved = replace(found[kept], labels=labels[kept], categories=self._data.categories)
        return moved, torch.arange(len(found))[kept] if queries is None else queries[kept]

    def _score(self, image_id: int, found: _Found) -> None:
        for evaluator, detections in zip(self._evaluators, found.layers, strict=True):
            evaluator.update([image_id], [replace(detections, masks=None)])
        if self._mask_evaluator is not None:
            self._mask_evaluator.update([image_id], [found.layers[-1]])
        if self._panoptic is not None and found.panoptic is not None:
            self._panoptic.update(*self._true_map(image_id), *self._known_segments(found.panoptic))

    def _true_map(self, image_id: int) -> tuple[np.ndarray, tuple[TrueSegment, ...]]:
        """The annotated map of an image, of which the outlines of its things are made, too."""
        record, categories = self._records[image_id], self._data.categories
        segments, info = panoptic_truth(record, categories)
        assert self._mask_evaluator is not None
        self._mask_evaluator.outline(image_id, thing_outlines(record, categories, segments))
        return segments, info

    def _known_segments(self, found: Panoptic) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """A map and its segments under the labels of the data; what those do not know becomes void."""
        segments, info = found.segments.numpy(), []
        for segment in found.info:
            label = int(self._labels[segment.label])
            if label < 0:
                segments = np.where(segments == segment.id, 0, segments)
            else:
                info.append(replace(segment, label=label))
        return segments, tuple(info)


def _common_labels(ours: Categories, theirs: Categories, folder: str) -> Tensor:
    """(K,) label in `theirs` of each of our labels, by name; -1 where there is none."""
    labels = [theirs.label_of_name(name) if name in theirs.names else -1 for name in ours.names]
    if all(label < 0 for label in labels):
        raise DataError(
            f"{folder}: the detector knows {', '.join(ours.names[:5])}, the data has {', '.join(theirs.names[:5])}: "
            "no class in common; train on this data first"
        )
    return torch.tensor(labels)
