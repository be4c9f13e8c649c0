"""Evaluate pre-training on patches: how many patches of held-out images does the model locate?

Shape letters: B batch, Q queries, M patches of an image, F backbone features, q queries of a patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from opendetr.boxes import cxcywh_to_xyxy, iou
from opendetr.config import ConfigError
from opendetr.data import DetectionData
from opendetr.distributed import gather
from opendetr.postprocess import best_of_patches
from opendetr.structures import Batch, ImageBatch, Output

PATCH_METRICS = {
    "found": "fraction of the patches that are located with an IoU of at least 0.5",
    "found_control": "the same if the model is given the patches of another image",
    "patch_iou": "mean IoU of located and true patches",
    "feature_variance": "variance of the patch features, normalised to length 1; 0 if all are equal",
}
"""The metrics, each with a description."""

_FOUND_IOU = 0.5


class PatchResult(NamedTuple):
    """The results of one image.

    Attributes:
        ious: (M,) IoU of each patch with the box that the model predicts for it.
        control_ious: (M,) the same for the box predicted if the model is given a patch of another image instead.
        features: (M, F) the patch features, normalised to length 1.
    """

    ious: Tensor
    control_ious: Tensor
    features: Tensor


@dataclass(frozen=True)
class PatchEvaluation:
    """The metrics of a pre-trained model on a folder of images.

    Attributes:
        metrics: those of `PATCH_METRICS`; None for the control if there is only one image.
        seconds_per_image: time of the model and its evaluation, without loading.
        unreadable: one message per unreadable image. These images are not evaluated.
    """

    metrics: dict[str, float | None]
    seconds_per_image: float
    unreadable: tuple[str, ...]

    @property
    def named_metrics(self) -> dict[str, float | None]:
        """The metrics."""
        return self.metrics

    def tables(self) -> Iterator[list[tuple[str | float | None, ...]]]:
        """Yield the table to print: the metrics. There are no classes and no thresholds."""
        yield [(name, value, PATCH_METRICS[name]) for name, value in self.metrics.items()]

    @property
    def results(self) -> list[dict[str, Any]]:
        """Raises ConfigError: only detections have a COCO results file."""
        raise ConfigError("predictions: the model locates patches and detects no objects; leave it out")


class PatchEvaluator:
    """Evaluates how many patches a model locates; see `Evaluator`.

    The box of a patch is that of the highest-scoring query among the queries that were given the patch, so it is chosen
    without the ground truth. The control shows how many patches are found by chance, or from what the queries know
    about the distribution of patches: there the model is given the patches of another image.

    Args:
        data: the images.
    """

    def __init__(self, data: DetectionData) -> None:
        self._has_control = len(data) > 1
        self._count = 0
        self._found = 0
        self._found_control = 0
        self._iou_sum = 0.0
        self._feature_sum: Tensor | None = None

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[PatchResult]:
        """Yield the IoU of the patches of each image. `output` is that of a `ControlledSession`."""
        controlled: Any = output  # a ControlledOutput
        num_patches = len(batch.targets[0])
        _, predicted, _ = best_of_patches(output.final, num_patches)
        _, control, _ = best_of_patches(controlled.control, num_patches)
        predicted, control = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(control)
        features = normalize(controlled.patch_features, dim=-1)
        for index, target in enumerate(batch.targets):
            boxes = cxcywh_to_xyxy(target.boxes.to(predicted))
            yield PatchResult(iou(predicted[index], boxes), iou(control[index], boxes), features[index])

    def update(self, batch: Batch, results: Iterable[PatchResult]) -> None:
        """Add the results of a batch."""
        for result in results:
            self._count += len(result.ious)
            self._found += int((result.ious >= _FOUND_IOU).sum())
            self._found_control += int((result.control_ious >= _FOUND_IOU).sum())
            self._iou_sum += float(result.ious.double().sum())
            feature_sum = result.features.double().sum(0).cpu()
            self._feature_sum = feature_sum if self._feature_sum is None else self._feature_sum + feature_sum

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Do nothing: images that cannot be read have no patches."""

    def gather(self) -> None:
        """Combine the results that all processes have collected."""
        own = (self._count, self._found, self._found_control, self._iou_sum, self._feature_sum)
        counts, found, found_control, iou_sums, feature_sums = zip(*gather(own), strict=True)
        self._count, self._found, self._found_control = sum(counts), sum(found), sum(found_control)
        self._iou_sum = sum(iou_sums)
        known = [feature_sum for feature_sum in feature_sums if feature_sum is not None]
        self._feature_sum = torch.stack(known).sum(0) if known else None

    def compute(self) -> dict[str, float | None]:
        """The metrics of `PATCH_METRICS`."""
        if self._feature_sum is None:
            return dict.fromkeys(PATCH_METRICS)
        # The mean squared distance of unit vectors from their mean is 1 minus the squared length of the mean.
        variance = 1 - float((self._feature_sum / self._count).square().sum())
        return {
            "found": self._found / self._count,
            "found_control": self._found_control / self._count if self._has_control else None,
            "patch_iou": self._iou_sum / self._count,
            "feature_variance": max(variance, 0.0),
        }

    def score_thresholds(self) -> None:
        """None: a patch is located by its best query, without a threshold."""
        return

    def evaluation(self, seconds_per_image: float = 0.0, unreadable: Iterable[str] = ()) -> PatchEvaluation:
        """The metrics of the results collected so far, as a `PatchEvaluation`."""
        return PatchEvaluation(self.compute(), seconds_per_image, tuple(unreadable))
