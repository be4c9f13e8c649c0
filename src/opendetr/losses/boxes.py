"""Box losses of pairs of boxes, neither summed nor normalised."""

from __future__ import annotations

from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy, giou


def box_l1(boxes: Tensor, targets: Tensor) -> Tensor:
    """L1 distance of two tensors of boxes (..., 4), cxcywh in 0..1 -> (...)."""
    return (boxes - targets).abs().sum(-1)


def box_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """One minus the generalised IoU of boxes (..., 4), cxcywh in 0..1, broadcast -> (...), in 0..2."""
    return 1 - giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
