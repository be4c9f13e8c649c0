"""Boxes: formats, intersection over union and its generalised form, finite for every input.

Every function takes (..., 4) tensors of any unit; `xyxy` is left, top, right, bottom and `cxcywh` centre and size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> corners."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - 0.5 * size, center + 0.5 * size), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (...,) area; an inverted box has none."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient that is 0, with a gradient of 0, where the denominator is 0 (two boxes without area)."""
    empty = denominator <= 0
    return torch.where(empty, torch.zeros_like(numerator), numerator / denominator.masked_fill(empty, 1.0))


def iou_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and union, of corners `a` and `b` after broadcasting their leading dimensions."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = box_area(a) + box_area(b) - overlap
    return _ratio(overlap, union), union


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of corners, broadcast: (n, 1, 4) and (m, 4) give (n, m)."""
    return iou_and_union(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union of corners, broadcast, in -1..1.

    IoU minus the share of the smallest enclosing box that neither covers (Rezatofighi et al., 2019, eq. 1). Where the
    published form divides 0 by 0 (boxes without area in one place) the quotient counts as 0; it is finite everywhere.
    """
    overlap, union = iou_and_union(a, b)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return overlap - _ratio(hull - union, hull)
