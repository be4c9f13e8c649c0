"""Evaluates detections on a dataset: boxes, masks and panoptic maps, each where both model and data have them.

Shape letters: K classes, n detections of one image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.data import DataError, DetectionData, TrueSegment, coco_truth, panoptic_truth, thing_outlines
from opendetr.evaluation.coco import METRICS, CocoEvaluator
from opendetr.evaluation.names import CLASS_PREFIX, MASK_PREFIX
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluation, Quality
from opendetr.results import Detections, Panoptic, Segment
from opendetr.structures import Batch

_NO_QUALITY = dict.fromkeys(Quality._fields)  # of a class that is nowhere


@dataclass(frozen=True)
class Evaluation:
    """A detector's score on a dataset.

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

    @property
    def named_metrics(self) -> dict[str, float | None]:
        """The metrics, and the AP of each class under "AP/" with its name."""
        return self.metrics | {f"{CLASS_PREFIX}{name}": value for name, value in self.per_class.items()}


@dataclass(frozen=True)
class ImageResult:
    """The results of a model on one image, under its own labels.

    Attributes:
        layers: the detections of every decoder layer that is evaluated, the last one's with masks where these are
            evaluated.
        panoptic: the map, or None where none are evaluated.
    """

    layers: tuple[Detections, ...]
    panoptic: Panoptic | None = None


class DetectionEvaluator:
    """Evaluates detections, masks and panoptic maps on a dataset; see `Evaluator`. Classes are paired by name.

    Each panoptic map of the dataset is read once, when its image is evaluated, so memory stays flat.

    Args:
        categories: what the model's labels stand for.
        data: the ground truth.
        has_masks: whether the model has a mask head.
        num_layers: evaluate so many of the last decoder layers, and report the AP of each; the last one when omitted.
            Masks and maps are those of the last one.

    Attributes:
        labels: (K,) int64, the label in the data of each label of the model; -1 for a class that the data lacks.
        things: the same, but -1 also for stuff.
        num_layers: how many of the last decoder layers a result has.
        wants_masks, wants_maps: whether a result has masks and a panoptic map.

    Raises:
        DataError: model and data have no class in common, or the data's masks are such that a metric would be wrong:
            here, as far as the annotations show it, and in `update` for an image whose map does not fit them.
    """

    def __init__(
        self,
        categories: Categories,
        data: DetectionData,
        *,
        has_masks: bool = False,
        num_layers: int | None = None,
    ) -> None:
        self._data = data
        self.labels = _common_labels(categories, data.categories, str(data.folder))
        known = self.labels.clamp(min=0)
        self.things = self.labels.where(torch.tensor(data.categories.isthing)[known], -1)
        self._reports_layers = num_layers is not None
        self._records = {image.id: image for image in data.images}
        self.num_layers = num_layers or 1
        self.wants_masks = has_masks and data.masks != "none"
        self.wants_maps = self.wants_masks and data.masks == "panoptic"
        truth = coco_truth(data)
        self._evaluators = [CocoEvaluator(truth) for _ in range(self.num_layers)]
        self._mask_evaluator = (
            CocoEvaluator(truth, masks=True, outlines_follow=self.wants_maps) if self.wants_masks else None
        )
        self._panoptic = PanopticEvaluation(data.categories) if self.wants_maps else None

    def known_things(self, found: Detections, queries: Tensor) -> tuple[Detections, Tensor]:
        """The detections of things that the data knows, under its labels, and their queries (n,)."""
        labels = self.things[found.labels]
        kept = labels >= 0
        return replace(found[kept], labels=labels[kept], categories=self._data.categories), queries[kept]

    def update(self, batch: Batch, results: Iterable[ImageResult]) -> None:
        """Evaluate the results of a batch, whose detections have gone through `known_things`."""
        for target, result in zip(batch.targets, results, strict=True):
            self._update_image(target.image_id, result)

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Score images that could not be read as ones in which nothing was found."""
        if self._panoptic is not None:
            for image_id in image_ids:
                segments, info = self._true_map(image_id)
                self._panoptic.update(segments, info, np.zeros_like(segments), ())

    def gather(self) -> None:
        """Bring together what all processes have collected."""
        for evaluator in self._evaluators:
            evaluator.gather()
        if self._mask_evaluator is not None:
            self._mask_evaluator.gather()
            for image_id in self._mask_evaluator.without_outlines:  # images that no process has evaluated
                self._true_map(image_id)
        if self._panoptic is not None:
            self._panoptic.gather()

    def compute(self) -> dict[str, float | None]:
        """The metrics of what has been collected, those of each class among them."""
        return self.evaluation().named_metrics

    def evaluation(self, seconds_per_image: float = 0.0, unreadable: Iterable[str] = ()) -> Evaluation:
        """The metrics with everything that belongs to them.

        Args:
            seconds_per_image: measured by the caller.
            unreadable: messages about images that were left out.
        """
        scores = [evaluator.compute() for evaluator in self._evaluators]
        boxes = dict(scores[-1])
        per_class = boxes.pop("per_class")
        masks: dict[str, Any] = {"per_class": {}}
        if self._mask_evaluator is not None:
            masks = self._mask_evaluator.compute()
        panoptic: dict[str, Any] = {}
        qualities: dict[str, Quality | None] = {}
        if self._panoptic is not None:
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
            per_layer=tuple(score["AP"] for score in scores) if self._reports_layers else (),
            seconds_per_image=seconds_per_image,
            results=(self._mask_evaluator or self._evaluators[-1]).results,
            unreadable=tuple(unreadable),
        )

    def _update_image(self, image_id: int, result: ImageResult) -> None:
        for evaluator, detections in zip(self._evaluators, result.layers, strict=True):
            evaluator.update([image_id], [replace(detections, masks=None)])
        if self._mask_evaluator is not None:
            self._mask_evaluator.update([image_id], [result.layers[-1]])
        if self._panoptic is not None and result.panoptic is not None:
            self._panoptic.update(*self._true_map(image_id), *self._known_segments(result.panoptic))

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
            label = int(self.labels[segment.label])
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


def metric_names(data: DetectionData, *, has_masks: bool) -> list[str]:
    """The names of the metrics that a `DetectionEvaluator` gives on a dataset, the main one first.

    The main one is PQ where panoptic maps are evaluated, mask_AP where masks are, else AP.
    """
    names = list(METRICS)
    if has_masks and data.masks != "none":
        names += [f"{MASK_PREFIX}{metric}" for metric in METRICS]
        names += PANOPTIC_METRICS if data.masks == "panoptic" else ()
    main = next(each for each in ("PQ", f"{MASK_PREFIX}AP", "AP") if each in names)
    with_objects = {thing.category_id for image in data.images for thing in image.objects}
    classes = [each["name"] for each in data.to_coco()["categories"] if each["id"] in with_objects]
    return [main, *(name for name in names if name != main), *(f"{CLASS_PREFIX}{each}" for each in classes)]


def headline_names(data: DetectionData, *, has_masks: bool) -> tuple[str, ...]:
    """The few metrics of a `DetectionEvaluator` on a dataset that fit a line."""
    if not has_masks or data.masks == "none":
        return "AP", "AP50", "AP75"
    return ("AP", f"{MASK_PREFIX}AP", "PQ") if data.masks == "panoptic" else ("AP", f"{MASK_PREFIX}AP")
