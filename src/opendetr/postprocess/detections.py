"""Convert the predictions of a decoder layer to detections in pixels of the original images.

Shape letters: B batch, Q queries, C class logits, K classes, k selected predictions and n detections of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.postprocess.finite import require_finite
from opendetr.results import Detections
from opendetr.structures import Predictions


def detect(
    predictions: Predictions,
    sizes: Tensor,
    categories: Categories,
    *,
    top_k: int | None = None,
    min_score: float | Tensor = 0.0,
    raw: bool = False,
) -> list[Detections]:
    """The detections of each image, sorted by descending score, on the CPU.

    Follows DETR (Carion et al., 2020, section 4): the model's scoring selects predictions, without non-maximum
    suppression. Boxes are scaled to the original image and not clipped to it.

    Args:
        predictions: the logits (B, Q, C) and boxes (B, Q, 4) of one decoder layer.
        sizes: (B, 2), height and width of each original image in pixels.
        categories: the categories of the labels.
        top_k: number of predictions to select per image. None: as many as the published post-processing.
        min_score: detections with a lower score are dropped. A tensor (K,) holds one threshold per class.
        raw: follow the published rule exactly: keep the order of the scoring (for DETR the order of the queries),
            unused categories and scores of 0. Otherwise unused categories and scores of 0 are dropped.

    Raises:
        ValueError: `sizes` does not fit the batch, or a label has no category.
        NonFiniteError: a logit or a box is not finite.
    """
    results = detect_with_queries(predictions, sizes, categories, top_k=top_k, min_score=min_score, raw=raw)
    return [detections for detections, _ in results]


@torch.no_grad()
def detect_with_queries(
    predictions: Predictions,
    sizes: Tensor,
    categories: Categories,
    *,
    top_k: int | None = None,
    min_score: float | Tensor = 0.0,
    raw: bool = False,
) -> list[tuple[Detections, Tensor]]:
    """As `detect`, and for each image the query of each detection, (n,) int64."""
    batch_size = len(predictions.logits)
    if tuple(sizes.shape) != (batch_size, 2):
        raise ValueError(f"detect: expected sizes of ({batch_size}, 2), got {tuple(sizes.shape)}")
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    scores, labels, queries = predictions.scoring.select(predictions.logits.float(), top_k)
    selected = predictions.boxes.float().gather(1, queries[..., None].expand(-1, -1, 4))
    height, width = sizes.to(selected).unbind(1)
    boxes = cxcywh_to_xyxy(selected) * torch.stack((width, height, width, height), 1)[:, None]
    scores, labels, boxes, queries = scores.cpu(), labels.cpu(), boxes.cpu(), queries.cpu()
    if labels.numel() and int(labels.max()) >= len(categories):
        raise ValueError(
            f"detect: the model predicts label {int(labels.max())}, but there are {len(categories)} categories; "
            "pass the categories that it was trained with"
        )
    thresholds = torch.as_tensor(min_score, dtype=scores.dtype).expand(len(categories))
    results = []
    for index, (height_in_pixels, width_in_pixels) in enumerate(sizes.tolist()):
        size = (int(height_in_pixels), int(width_in_pixels))
        all_detections = Detections(boxes[index], scores[index], labels[index], categories, size)
        kept = (all_detections.scores >= thresholds[all_detections.labels]).nonzero()[:, 0]
        kept = kept if raw else _public(all_detections, kept)
        results.append((all_detections[kept], queries[index, kept]))
    return results


def _public(detections: Detections, kept: Tensor) -> Tensor:
    """The kept indices by descending score, without unused categories and scores of 0.

    Equal scores keep their order. COCO's AP is therefore that of the raw detections.
    """
    used = torch.tensor(detections.categories.used, dtype=torch.bool)[detections.labels[kept]]
    kept = kept[used & (detections.scores[kept] > 0)]
    return kept[detections.scores[kept].argsort(descending=True, stable=True)]
