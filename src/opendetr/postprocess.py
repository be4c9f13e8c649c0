"""From a decoder layer's predictions to detections in pixels of the original images.

Shape letters: B batch, Q queries, C class logits, k picks an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.structures import Detections, Predictions


@torch.no_grad()
def detect(
    predictions: Predictions,
    sizes: Tensor,
    categories: Categories,
    *,
    top_k: int | None = None,
    min_score: float = 0.0,
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
        min_score: detections that score below it are left out.
        raw: the published rule to the letter: in the order in which the scoring picks (for DETR that of the queries),
            with categories that are marked unused and with scores of 0. Without it neither is ever emitted.

    Raises:
        ValueError: `sizes` does not fit the batch, or a label has no category.
    """
    batch_size = len(predictions.logits)
    if tuple(sizes.shape) != (batch_size, 2):
        raise ValueError(f"detect: expected sizes of ({batch_size}, 2), got {tuple(sizes.shape)}")
    scores, labels, queries = predictions.scoring.select(predictions.logits.float(), top_k)
    picked = predictions.boxes.float().gather(1, queries[..., None].expand(-1, -1, 4))
    height, width = sizes.to(picked).unbind(1)
    boxes = cxcywh_to_xyxy(picked) * torch.stack((width, height, width, height), 1)[:, None]
    scores, labels, boxes = scores.cpu(), labels.cpu(), boxes.cpu()
    if labels.numel() and int(labels.max()) >= len(categories):
        raise ValueError(
            f"detect: the model found label {int(labels.max())}, but there are {len(categories)} categories; "
            "pass the categories that it was trained with"
        )
    shapes = [(int(height), int(width)) for height, width in sizes.tolist()]
    found = [
        Detections(boxes[index], scores[index], labels[index], categories, shapes[index]) for index in range(batch_size)
    ]
    kept = [detections[detections.scores >= min_score] for detections in found]
    return kept if raw else [_public(detections) for detections in kept]


def _public(detections: Detections) -> Detections:
    """Best first, without unused categories and without what the scoring gave a 0.

    Equal scores keep their order, so that COCO's AP is that of the raw detections.
    """
    used = torch.tensor(detections.categories.used, dtype=torch.bool)[detections.labels]
    detections = detections[used & (detections.scores > 0)]
    return detections[detections.scores.argsort(descending=True, stable=True)]
