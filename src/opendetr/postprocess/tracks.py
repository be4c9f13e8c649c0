"""Convert the output of a tracker to detections with track ids, in pixels of the original images.

Shape letters: B videos, R queries, C class logits, n detections of one frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opendetr.boxes import box_area, cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.models import TrackerConfig, TrackingRules
from opendetr.postprocess.finite import require_finite
from opendetr.results import Detections
from opendetr.structures import Predictions, TrackingOutput


@torch.no_grad()
def tracked_objects(
    output: TrackingOutput, sizes: Tensor, categories: Categories, rules: TrackingRules
) -> list[tuple[Detections, Tensor]]:
    """The objects that a tracking session reports in one frame of each of B videos, on the CPU, in the order of ids.

    The score and the label are those of the best tracked class. Boxes are scaled to the original image and not clipped
    to it. Boxes of at most `min_area` pixels are left out.

    Args:
        output: the output of the session.
        sizes: (B, 2), height and width of each original image in pixels.
        categories: the categories of the labels.
        rules: the rules of the session.

    Returns:
        For each video the detections, whose track ids count from 1, and the query of each, (n,) int64.

    Raises:
        NonFiniteError: a logit or a box is not finite.
    """
    predictions = output.final
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    scores, labels = _best_classes(predictions, rules.config)
    height, width = sizes.to(predictions.boxes).unbind(1)
    boxes = cxcywh_to_xyxy(predictions.boxes.float()) * torch.stack((width, height, width, height), 1)[:, None]
    scores, labels, boxes, ids = scores.float().cpu(), labels.cpu(), boxes.cpu(), output.track_ids.cpu()
    results = []
    for video, size in enumerate(sizes.tolist()):
        queries = ((ids[video] >= 0) & (box_area(boxes[video]) > rules.config.min_area)).nonzero()[:, 0]
        queries = queries[ids[video, queries].argsort()]
        detections = Detections(
            boxes[video, queries],
            scores[video, queries],
            labels[video, queries],
            categories,
            (int(size[0]), int(size[1])),
            track_ids=ids[video, queries] - rules.first_id + 1,
        )
        results.append((detections, queries))
    return results


def _best_classes(predictions: Predictions, config: TrackerConfig) -> tuple[Tensor, Tensor]:
    """(B, R) each, the score and the label of the best tracked class of each query."""
    if not config.classes:
        return predictions.scoring.best(predictions.logits)
    classes = torch.tensor(config.classes, device=predictions.logits.device)
    scores, best = predictions.scoring.probabilities(predictions.logits)[..., classes].max(-1)
    return scores, classes[best]
