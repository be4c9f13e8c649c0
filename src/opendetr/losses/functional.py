"""Loss terms as pure functions. Nothing here is divided by anything: the criterion knows how many objects there are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from opendetr.boxes import cxcywh_to_xyxy, giou


def no_object_cross_entropy(logits: Tensor, labels: Tensor, no_object_weight: float) -> Tensor:
    """Weighted cross-entropy of every query, not reduced (DETR, section 3.1 and appendix A.2).

    Args:
        logits: (..., K + 1), "no object" last.
        labels: (...) int64 in 0..K; K is "no object".
        no_object_weight: weight of the queries that should answer "no object"; the others weigh 1.

    Returns:
        (...).
    """
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight, reduction="none")
    return loss.view(labels.shape)


def box_l1(boxes: Tensor, targets: Tensor) -> Tensor:
    """(..., 4) cxcywh in 0..1, twice -> (...): sum of the four absolute differences."""
    return (boxes - targets).abs().sum(-1)


def box_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """(..., 4) cxcywh in 0..1, twice, broadcast -> (...): one minus their generalised IoU, in 0..2."""
    return 1 - giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))


def sigmoid_focal(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes, not reduced (Lin et al., RetinaNet, 2017, eq. 5).

    Args:
        logits: any shape.
        truth: the same shape, 0 or 1.
        alpha: weight of the ones; the zeros weigh 1 - alpha.
        gamma: how much less an easy entry counts.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    missed = probability + truth - 2 * probability * truth  # 1 - p of what is right
    return (alpha * truth + (1 - alpha) * (1 - truth)) * missed**gamma * entropy


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus the overlap of soft masks, smoothed by 1 (Milletari et al., V-Net, 2016, section 3).

    Args:
        logits: (..., N).
        truth: the same shape, 0 or 1.

    Returns:
        (...), in 0..1.
    """
    probability = logits.sigmoid()
    return 1 - (2 * (probability * truth).sum(-1) + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
