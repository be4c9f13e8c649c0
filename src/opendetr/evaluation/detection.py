"""Evaluate detections on a dataset: boxes, and masks and panoptic maps if both model and dataset have them.

Shape letters: K classes, n detections of one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendetr.categories import Categories, paired_labels
from opendetr.config import near_name
from opendetr.data import (
    DataError,
    DetectionData,
    TrueSegment,
    coco_truth,
    count_noun,
    panoptic_truth,
    thing_outlines,
    things_of,
)
from opendetr.evaluation.coco import AREA_RANGES, DETECTION_METRICS, CocoEvaluator
from opendetr.evaluation.names import CLASS_PREFIX, MASK_PREFIX, describe_metric
from opendetr.evaluation.panoptic import PANOPTIC_METRICS, PanopticEvaluator, Quality
from opendetr.evaluation.thresholds import OperatingPoints
from opendetr.postprocess import Merge, candidates, detect, detect_with_queries, image_masks
from opendetr.results import Detections, Panoptic, Segment
from opendetr.scoring import ScoreThresholds
from opendetr.structures import Batch, ImageBatch, Output

_NUM_NAMED = 5  # classes without ground truth that are named
_NO_QUALITY = dict.fromkeys(Quality._fields)  # of a class that is neither annotated nor predicted


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a detector on a dataset.

    Attributes:
        metrics: the twelve COCO metrics of boxes. If masks are evaluated, also those of masks, with the prefix "mask_".
            If panoptic maps are evaluated, also the metrics of `PANOPTIC_METRICS`. None for a metric without objects.
        per_class: AP of each class.
        mask_per_class: mask AP of each class; empty if masks are not evaluated.
        panoptic_per_class: PQ, SQ and RQ of each class; empty if panoptic maps are not evaluated.
        per_layer: AP of each decoder layer, first to last; empty unless requested.
        operating_points: precision, recall and F1 of boxes at the score thresholds that maximise F1.
        num_objects: number of ground-truth objects of each class, without crowd regions.
        seconds_per_image: time of model and post-processing, without loading.
        results: the rows of a COCO results file.
        unreadable: one message per unreadable image. These images count as images without detections.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    mask_per_class: dict[str, float | None]
    panoptic_per_class: dict[str, dict[str, float | None]]
    per_layer: tuple[float | None, ...]
    operating_points: OperatingPoints
    num_objects: dict[str, int]
    seconds_per_image: float
    results: list[dict[str, Any]]
    unreadable: tuple[str, ...]

    @property
    def named_metrics(self) -> dict[str, float | None]:
        """The metrics, and the AP of each class as "AP/" followed by the class name."""
        return self.metrics | {f"{CLASS_PREFIX}{name}": value for name, value in self.per_class.items()}

    def tables(self) -> Iterator[list[tuple[str | float | None, ...]]]:
        """Yield tables to print: the metrics; the classes with a metric; a note on the others; the decoder layers.

        The threshold, precision, recall and F1 of all classes are those of one common threshold.
        """
        yield [(name, value, describe_metric(name)) for name, value in self.metrics.items()]
        columns = self._class_columns()
        names = list(dict.fromkeys(name for per_class, _ in columns.values() for name in per_class))
        known = [name for name in names if any(per_class.get(name) is not None for per_class, _ in columns.values())]
        counts = self.num_objects
        rows = [(name, f"{counts[name]:,}", *(values.get(name) for values, _ in columns.values())) for name in known]
        total = ("all classes", f"{sum(counts.values()):,}", *(value for _, value in columns.values()))
        yield [("class", "objects", *columns), *rows, total]
        missing = [name for name in names if name not in known]
        if missing:
            more = ", ..." if len(missing) > _NUM_NAMED else ""
            named = f"{', '.join(missing[:_NUM_NAMED])}{more}"
            yield [(f"no ground truth for {len(missing)} of {len(names)} classes: {named}",)]
        if self.per_layer:
            yield [("decoder layer", "AP"), *((str(layer), ap) for layer, ap in enumerate(self.per_layer, start=1))]

    def _class_columns(self) -> dict[str, tuple[Mapping[str, float | None], float | None]]:
        """The columns of the table of classes: the value of each class, and that of all classes."""
        columns: dict[str, tuple[Mapping[str, float | None], float | None]] = {}
        columns["AP"] = (self.per_class, self.metrics["AP"])
        if self.mask_per_class:
            columns["mask AP"] = (self.mask_per_class, self.metrics.get("mask_AP"))
        if self.panoptic_per_class:
            for name in Quality._fields:
                per_class = {class_: quality[name] for class_, quality in self.panoptic_per_class.items()}
                columns[name] = (per_class, self.metrics.get(name))
        points = self.operating_points
        for head, name in {"threshold": "threshold", "precision": "precision", "recall": "recall", "F1": "f1"}.items():
            of_classes = {class_: getattr(point, name) for class_, point in points.per_class.items()}
            columns[head] = (of_classes, getattr(points.overall, name))
        return columns


@dataclass(frozen=True)
class ImageResult:
    """The results of a model on one image.

    Attributes:
        layers: the detections of each evaluated decoder layer, with the labels of the dataset. If masks are evaluated,
            the detections of the last layer have masks.
        panoptic: the panoptic map, with the labels of the model; None if panoptic maps are not evaluated.
    """

    layers: tuple[Detections, ...]
    panoptic: Panoptic | None = None


class DetectionEvaluator:
    """Evaluates detections, masks and panoptic maps on a dataset; see `Evaluator`. Classes are paired by name.

    Each panoptic map of the dataset is loaded once, when its image is evaluated, so memory use does not grow.

    Args:
        categories: the categories of the model's labels.
        data: the ground truth.
        has_masks: whether the model has a mask head.
        num_layers: number of decoder layers to evaluate, counted from the last; the AP of each is reported. None:
            only the last layer. Masks and panoptic maps are always those of the last layer.
        merge: the rule that turns mask logits into instance masks and panoptic maps.
        panoptic_score: queries with a lower score do not take part in a panoptic map. None: the model's default.

    Attributes:
        labels: (K,) int64, the dataset's label of each label of the model; -1 for a class that the dataset lacks.
        things: the same, but also -1 for stuff.
        num_layers: number of decoder layers in a result.
        wants_masks, wants_maps: whether a result must have masks and a panoptic map.

    Raises:
        DataError: model and dataset have no class in common, or the masks of the dataset would make a metric wrong.
            Faults in annotations are raised here, faults in a panoptic map when its image is evaluated.
    """

    def __init__(
        self,
        categories: Categories,
        data: DetectionData,
        *,
        has_masks: bool = False,
        num_layers: int | None = None,
        merge: Merge = "default",
        panoptic_score: float | None = None,
    ) -> None:
        self._categories = categories
        self._merge: Merge = merge
        self._panoptic_score = panoptic_score
        self._data = data
        self.labels = _common_labels(categories, data.categories, str(data.folder))
        known = self.labels.clamp(min=0)
        self.things = self.labels.where(torch.tensor(data.categories.isthing)[known], -1)
        self._reports_layers = num_layers is not None
        self._records = {image.id: image for image in data.images}
        self.num_layers = num_layers or 1
        self.wants_masks = has_masks and data.masks != "none"
        self.wants_maps = self.wants_masks and data.masks == "panoptic"
        ground_truth = coco_truth(data)
        self._box_evaluators = [CocoEvaluator(ground_truth) for _ in range(self.num_layers)]
        self._mask_evaluator = (
            CocoEvaluator(ground_truth, masks=True, outlines_follow=self.wants_maps) if self.wants_masks else None
        )
        self._panoptic = PanopticEvaluator(data.categories) if self.wants_maps else None

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[ImageResult]:
        """Yield the result of each image of a batch; see `Evaluator.results`.

        Masks are resized to the original image one image at a time, so memory use does not grow with the batch size.
        """
        sizes = torch.tensor([target.original_size for target in batch.targets])
        earlier = output.layers[-self.num_layers : -1]
        earlier_detections = [detect(layer, sizes, self._categories) for layer in earlier]
        detected = detect_with_queries(output.final, sizes, self._categories)
        final = [self.known_things(detections, queries) for detections, queries in detected]
        masks = self._masks(output, images, sizes, [queries for _, queries in final])
        for index, ((detections, _), (instance_masks, panoptic)) in enumerate(zip(final, masks, strict=True)):
            layers = [layer[index] for layer in earlier_detections]
            known = (self.known_things(layer, torch.arange(len(layer)))[0] for layer in layers)
            yield ImageResult((*known, replace(detections, masks=instance_masks)), panoptic)

    def _masks(
        self, output: Output, images: ImageBatch, sizes: Tensor, queries: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor | None, Panoptic | None]]:
        """Yield the masks of the given queries and the panoptic map of each image; None for those not evaluated."""
        if not self.wants_masks:
            yield from ((None, None) for _ in queries)
            return
        categories, merge, chosen = self._categories, self._merge, None
        if self.wants_maps:
            # Without a min_score, `candidates` uses the default of the model's scoring.
            chosen = candidates(output.final, categories, min_score=self._panoptic_score, merge=merge)
        for masks in image_masks(output, images, sizes, queries=queries, found=chosen):
            yield masks.instances(merge=merge), None if chosen is None else masks.panoptic(categories, merge=merge)

    def known_things(self, detections: Detections, queries: Tensor) -> tuple[Detections, Tensor]:
        """The detections of things that the dataset has, with the dataset's labels, and their queries (n,)."""
        labels = self.things[detections.labels]
        kept = labels >= 0
        return replace(detections[kept], labels=labels[kept], categories=self._data.categories), queries[kept]

    def update(self, batch: Batch, results: Iterable[ImageResult]) -> None:
        """Evaluate the results of a batch. Detections must come from `known_things`."""
        for target, result in zip(batch.targets, results, strict=True):
            self._update_image(target.image_id, result)

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Count unreadable images as images without predictions."""
        if self._panoptic is not None:
            for image_id in image_ids:
                segments, info = self._true_map(image_id)
                self._panoptic.update(segments, info, np.zeros_like(segments), ())

    def gather(self) -> None:
        """Combine the results that all processes have collected."""
        for evaluator in self._box_evaluators:
            evaluator.gather()
        if self._mask_evaluator is not None:
            self._mask_evaluator.gather()
            for image_id in self._mask_evaluator.without_outlines:  # images that no process has evaluated
                self._true_map(image_id)
        if self._panoptic is not None:
            self._panoptic.gather()

    def score_thresholds(self) -> ScoreThresholds | None:
        """The score thresholds of boxes that maximise F1; None without ground truth."""
        return self._box_evaluators[-1].operating_points().thresholds

    def compute(self) -> dict[str, float | None]:
        """The metrics of the results collected so far, with the AP of each class."""
        return self.evaluation().named_metrics

    def evaluation(self, seconds_per_image: float = 0.0, unreadable: Iterable[str] = ()) -> Evaluation:
        """The metrics of the results collected so far, as an `Evaluation`.

        Args:
            seconds_per_image: measured by the caller.
            unreadable: messages about unreadable images.
        """
        scores = [evaluator.compute() for evaluator in self._box_evaluators]
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
                name: quality._asdict() if quality else dict(_NO_QUALITY) for name, quality in qualities.items()
            },
            per_layer=tuple(score["AP"] for score in scores) if self._reports_layers else (),
            operating_points=self._box_evaluators[-1].operating_points(),
            num_objects=self._object_counts(),
            seconds_per_image=seconds_per_image,
            results=(self._mask_evaluator or self._box_evaluators[-1]).results,
            unreadable=tuple(unreadable),
        )

    def _object_counts(self) -> dict[str, int]:
        """The number of objects of each class, without crowd regions."""
        names = dict(zip(self._data.categories.ids, self._data.categories.distinct_names, strict=True))
        counts = dict.fromkeys(names.values(), 0)
        for image in self._data.images:
            for obj in image.objects:
                counts[names[obj.category_id]] += not obj.crowd
        return counts

    def _update_image(self, image_id: int, result: ImageResult) -> None:
        for evaluator, detections in zip(self._box_evaluators, result.layers, strict=True):
            evaluator.update([image_id], [replace(detections, masks=None)])
        if self._mask_evaluator is not None:
            self._mask_evaluator.update([image_id], [result.layers[-1]])
        if self._panoptic is not None and result.panoptic is not None:
            self._panoptic.update(*self._true_map(image_id), *self._known_segments(result.panoptic))

    def _true_map(self, image_id: int) -> tuple[np.ndarray, tuple[TrueSegment, ...]]:
        """The annotated panoptic map of an image. Its things are added to the mask evaluator as outlines."""
        record, categories = self._records[image_id], self._data.categories
        segments, info = panoptic_truth(record, categories)
        assert self._mask_evaluator is not None
        self._mask_evaluator.outline(image_id, thing_outlines(record, categories, segments))
        return segments, info

    def _known_segments(self, panoptic: Panoptic) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """A predicted map and its segments, with the labels of the dataset. Segments of other classes become void."""
        segments, info = panoptic.segments.numpy(), []
        for segment in panoptic.info:
            label = int(self.labels[segment.label])
            if label < 0:
                segments = np.where(segments == segment.id, 0, segments)
            else:
                info.append(replace(segment, label=label))
        return segments, tuple(info)


def _common_labels(ours: Categories, theirs: Categories, folder: str) -> Tensor:
    """(K,) the label in `theirs` of each label in `ours`, by name (see `paired_labels`); -1 if there is none."""
    labels = paired_labels(ours.names, theirs.names)
    if all(label < 0 for label in labels):
        raise DataError(
            f"{folder}: the detector has {', '.join(ours.names[:5])}, the dataset has {', '.join(theirs.names[:5])}: "
            "no class in common; train on this dataset first"
        )
    return torch.tensor(labels)


def class_differences(ours: Categories, data: DetectionData) -> list[str]:
    """Lines about classes with other names in the dataset than in the detector: those paired nevertheless, and others.

    Classes of the dataset without an object in the split are left out.

    Args:
        ours: the classes of the detector.
        data: the split to evaluate on.
    """
    names, theirs = ours.names, data.categories.names
    with_objects = {data.categories.label_of_id(obj.category_id) for image in data.images for obj in image.objects}
    label_of = {label: index for index, label in enumerate(paired_labels(names, theirs)) if label >= 0}
    pairs = [(theirs[label], names[index]) for label, index in label_of.items() if theirs[label] != names[index]]
    lines = []
    if pairs:
        text = ", ".join(f"{one!r} is {other!r}" for one, other in pairs[:_NUM_NAMED])
        lines.append(f"classes paired although the dataset spells them differently than the detector: {text}")
    unknown = [theirs[label] for label in sorted(with_objects - label_of.keys())]
    if unknown:
        used = [name for index, name in enumerate(names) if ours.used[index] and index not in label_of.values()]
        hints = [(name, near_name(name, used)) for name in unknown[:_NUM_NAMED]]
        text = ", ".join(f"{name!r}" + (f" (the detector has {near!r})" if near else "") for name, near in hints)
        noun = count_noun(len(unknown), "class")
        lines.append(f"warning: {noun} of the dataset that the detector does not have, so AP is 0: {text}")
    return lines


def metric_names(data: DetectionData, *, has_masks: bool) -> list[str]:
    """The names of the metrics of a `DetectionEvaluator` on a dataset, the main metric first.

    The main metric is PQ if panoptic maps are evaluated, mask_AP if only masks are evaluated, and AP otherwise. Metrics
    of sizes or classes that no object has are left out.
    """
    objects = [obj for image in data.images for obj in things_of(image, data.categories) if not obj.crowd]
    names = [name for name in DETECTION_METRICS if any(_counts_for(name, obj.area) for obj in objects)] or ["AP"]
    if has_masks and data.masks != "none":
        names += [f"{MASK_PREFIX}{metric}" for metric in names]
        names += PANOPTIC_METRICS if data.masks == "panoptic" else ()
    main = next(name for name in ("PQ", f"{MASK_PREFIX}AP", "AP") if name in names)
    with_objects = {obj.category_id for obj in objects}
    rows = zip(data.categories.ids, data.categories.names, strict=True)
    classes = [name for id_, name in rows if id_ in with_objects]
    return [main, *(name for name in names if name != main), *(f"{CLASS_PREFIX}{name}" for name in classes)]


def _counts_for(metric: str, area: float) -> bool:
    """Whether an object of this area, in pixels, counts for a COCO metric."""
    low, high = AREA_RANGES.get(metric.partition("_")[2], (0.0, math.inf))
    return low <= area <= high


def headline_names(data: DetectionData, *, has_masks: bool) -> tuple[str, ...]:
    """The most important metrics of a `DetectionEvaluator` on a dataset, for a progress line."""
    if not has_masks or data.masks == "none":
        return "AP", "AP50", "AP75"
    return ("AP", f"{MASK_PREFIX}AP", "PQ") if data.masks == "panoptic" else ("AP", f"{MASK_PREFIX}AP")
