"""The box terms as pure functions; the criterion sums and normalises them."""

from __future__ import annotations

from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy, giou


def box_l1(boxes: Tensor, targets: Tensor) -> Tensor:
    """(..., 4) cxcywh in 0..1, twice -> (...): sum of the four absolute differences."""
    return (boxes - targets).abs().sum(-1)


def box_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """(..., 4) cxcywh in 0..1, twice, broadcast -> (...): one minus their generalised IoU, in 0..2."""
    return 1 - giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
