"""AP after each decoder layer, with and without NMS, and with and without the no-object rule.

Carion et al. (2020), figure 4: NMS improves the first layers, whose queries cannot see each other yet, and harms the
last one. Section 4: a query whose most probable class is "no object" is kept with its second best class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms

from opendetr.analysis.predictions import Collected
from opendetr.evaluation import Found, scores_of
from opendetr.visualize import draw_curves

NMS_IOU = 0.5
"""The IoU above which NMS drops the detection with the lower score."""


@dataclass(frozen=True)
class LayerScores:
    """AP and AP50 after each decoder layer, first to last; None without objects.

    Attributes:
        ap, ap50: of the detections as they are.
        ap_nms, ap50_nms: after NMS within each class.
        dropped: the number of detections that NMS drops.
    """

    ap: tuple[float | None, ...]
    ap50: tuple[float | None, ...]
    ap_nms: tuple[float | None, ...]
    ap50_nms: tuple[float | None, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class NoObjectScores:
    """AP and AP50 of the last layer with two rules for queries whose most probable class is "no object".

    Attributes:
        ap, ap50: the published rule: they are kept with their second best class.
        ap_strict, ap50_strict: they are dropped.
        dropped: the share of detections that are dropped.
    """

    ap: float | None
    ap50: float | None
    ap_strict: float | None
    ap50_strict: float | None
    dropped: float


def analyse_layers(collected: Collected) -> LayerScores:
    """AP after each decoder layer, with and without NMS."""
    suppressed = [suppress(found) for found in collected.layers]
    plain = [scores_of(collected, found) for found in collected.layers]
    with_nms = [scores_of(collected, found) for found in suppressed]
    return LayerScores(
        tuple(ap for ap, _ in plain),
        tuple(ap50 for _, ap50 in plain),
        tuple(ap for ap, _ in with_nms),
        tuple(ap50 for _, ap50 in with_nms),
        tuple(len(found) - len(kept) for found, kept in zip(collected.layers, suppressed, strict=True)),
    )


def suppress(found: Found) -> Found:
    """The detections that NMS keeps in each image and class, in the same order."""
    boxes = torch.from_numpy(np.concatenate((found.box[:, :2], found.box[:, :2] + found.box[:, 2:]), 1))
    groups = found.image * (found.label.max(initial=0) + 1) + found.label
    kept = batched_nms(boxes, torch.from_numpy(found.score), torch.from_numpy(groups), NMS_IOU)
    return found[np.sort(kept.numpy())]


def analyse_no_object(collected: Collected) -> NoObjectScores | None:
    """AP with both rules; None for a model without "no object"."""
    if collected.strict is None:
        return None
    ap, ap50 = scores_of(collected, collected.found)
    ap_strict, ap50_strict = scores_of(collected, collected.strict)
    total = max(len(collected.found), 1)
    return NoObjectScores(ap, ap50, ap_strict, ap50_strict, 1 - len(collected.strict) / total)


def draw_layers(scores: LayerScores) -> Image.Image:
    """A chart of AP and AP50 by decoder layer."""
    lines = {
        "AP": scores.ap,
        "AP with NMS": scores.ap_nms,
        "AP50": scores.ap50,
        "AP50 with NMS": scores.ap50_nms,
    }
    points = {
        name: [(layer, value) for layer, value in enumerate(values, 1) if value is not None]
        for name, values in lines.items()
    }
    return draw_curves(points, "AP after each decoder layer", x_label="decoder layer", y_label="AP")
