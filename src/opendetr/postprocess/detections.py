"""From a decoder layer's predictions to detections in pixels of the original images.

Shape letters: B batch, Q queries, C class logits, K classes, k picks an image, n detections of one.
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
    """The detections of each image, best first, on the CPU.

    DETR's rule (Carion et al., 2020, section 4): what the scoring picks, without non-maximum suppression; boxes are
    scaled to the original image and not clipped to it.

    Args:
        predictions: one decoder layer's logits (B, Q, C) and boxes (B, Q, 4).
        sizes: (B, 2), height and width of each original image in pixels.
        categories: what the labels stand for.
        top_k: picks an image; as many as the published post-processing picks when omitted.
        min_score: detections that score below it are left out; (K,) gives every class its own.
        raw: the published rule to the letter: in the order in which the scoring picks (for DETR that of the queries),
            with categories that are marked unused and with scores of 0. Without it neither is ever emitted.

    Raises:
        ValueError: `sizes` does not fit the batch, or a label has no category.
        NonFiniteError: a logit or a box is not finite.
    """
    found = detect_with_queries(predictions, sizes, categories, top_k=top_k, min_score=min_score, raw=raw)
    return [detections for detections, _ in found]


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
    """The detections of each image as `detect` gives them, and (n,) int64 the query that each comes from."""
    batch_size = len(predictions.logits)
    if tuple(sizes.shape) != (batch_size, 2):
        raise ValueError(f"detect: expected sizes of ({batch_size}, 2), got {tuple(sizes.shape)}")
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    scores, labels, queries = predictions.scoring.select(predictions.logits.float(), top_k)
    picked = predictions.boxes.float().gather(1, queries[..., None].expand(-1, -1, 4))
    height, width = sizes.to(picked).unbind(1)
    boxes = cxcywh_to_xyxy(picked) * torch.stack((width, height, width, height), 1)[:, None]
    scores, labels, boxes, queries = scores.cpu(), labels.cpu(), boxes.cpu(), queries.cpu()
    if labels.numel() and int(labels.max()) >= len(categories):
        raise ValueError(
            f"detect: the model found label {int(labels.max())}, but there are {len(categories)} categories; "
            "pass the categories that it was trained with"
        )
    least = torch.as_tensor(min_score, dtype=scores.dtype).expand(len(categories))
    found = []
    for index, (height_in_pixels, width_in_pixels) in enumerate(sizes.tolist()):
        size = (int(height_in_pixels), int(width_in_pixels))
        every = Detections(boxes[index], scores[index], labels[index], categories, size)
        kept = (every.scores >= least[every.labels]).nonzero()[:, 0]
        kept = kept if raw else _public(every, kept)
        found.append((every[kept], queries[index, kept]))
    return found


def _public(detections: Detections, kept: Tensor) -> Tensor:
    """The kept indices best first, without unused categories and without what the scoring gave a 0.

    Equal scores keep their order, so that COCO's AP is that of the raw detections.
    """
    used = torch.tensor(detections.categories.used, dtype=torch.bool)[detections.labels[kept]]
    kept = kept[used & (detections.scores[kept] > 0)]
    return kept[detections.scores[kept].argsort(descending=True, stable=True)]
