"""Box formats, intersection over union (IoU) and generalised IoU, finite for every finite input.

Every function takes (..., 4) tensors in any unit. `xyxy` is left, top, right, bottom; `cxcywh` is centre and size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from centre and size to corners."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - 0.5 * size, center + 0.5 * size), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (...,) area; 0 for an inverted box."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient; 0 with a gradient of 0 where the denominator is 0 (two boxes without area)."""
    empty = denominator <= 0
    return torch.where(empty, torch.zeros_like(numerator), numerator / denominator.masked_fill(empty, 1.0))


def iou_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union area of corners `a` and `b`, with broadcasting of the leading dimensions."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = box_area(a) + box_area(b) - overlap
    return _ratio(overlap, union), union


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of corners with broadcasting: (n, 1, 4) and (m, 4) give (n, m)."""
    return iou_and_union(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corners with broadcasting, in -1..1.

    It is the IoU minus the fraction of the smallest enclosing box that neither box covers (Rezatofighi et al., 2019,
    eq. 1). Where the published formula divides 0 by 0 (boxes without area in one place), the quotient is 0.
    """
    overlap, union = iou_and_union(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return overlap - _ratio(hull - union, hull)
