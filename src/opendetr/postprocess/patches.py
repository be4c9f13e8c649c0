"""Convert the predictions for patches to their places in pixels of the original images.

Shape letters: B batch, Q queries, M patches of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.postprocess.finite import require_finite
from opendetr.results import Detections
from opendetr.structures import Predictions


def best_of_patches(predictions: Predictions, num_patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best query of each patch, among those that were given the patch.

    Args:
        predictions: the logits (B, Q, C) and boxes (B, Q, 4) of one decoder layer; the queries of each patch are one
            after another.
        num_patches: M.

    Returns:
        Scores (B, M); boxes (B, M, 4), cxcywh in 0..1; and query indices (B, M).
    """
    scores = predictions.scoring.probabilities(predictions.logits.float()).amax(-1).unflatten(1, (num_patches, -1))
    best, place = scores.max(-1)
    queries = place + torch.arange(num_patches, device=place.device) * scores.shape[-1]
    return best, predictions.boxes.float().gather(1, queries[..., None].expand(-1, -1, 4)), queries


@torch.no_grad()
def locate(
    predictions: Predictions, sizes: Tensor, categories: Categories, *, min_score: float = 0.0
) -> list[Detections]:
    """The places of M patches in each image, in the order of the patches, on the CPU. The label is the patch's index.

    Args:
        predictions: as in `best_of_patches`.
        sizes: (B, 2), height and width of each original image in pixels.
        categories: a class for each of the M patches.
        min_score: patches with a lower score are dropped.

    Raises:
        NonFiniteError: a logit or a box is not finite.
    """
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    scores, boxes, _ = (values.cpu() for values in best_of_patches(predictions, len(categories)))
    height, width = sizes.to(boxes).unbind(1)
    boxes = cxcywh_to_xyxy(boxes) * torch.stack((width, height, width, height), 1)[:, None]
    labels = torch.arange(len(categories))
    results = []
    for index, (height_in_pixels, width_in_pixels) in enumerate(sizes.tolist()):
        size = (int(height_in_pixels), int(width_in_pixels))
        of_image = Detections(boxes[index], scores[index], labels, categories, size)
        results.append(of_image[(of_image.scores >= min_score).nonzero()[:, 0]])
    return results
