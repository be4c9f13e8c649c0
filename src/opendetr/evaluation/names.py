"""Names and meanings of the metrics."""

from __future__ import annotations

from opendetr.evaluation.coco import METRICS
from opendetr.evaluation.panoptic import PANOPTIC_METRICS

MASK_PREFIX = "mask_"
"""Prefix of COCO metrics that are computed from masks."""
CLASS_PREFIX = "AP/"
"""Prefix of a class name, for the AP of the class."""


def meaning(metric: str) -> str:
    """The meaning of a metric: a name of `METRICS`, with or without `MASK_PREFIX`, or of `PANOPTIC_METRICS`.

    Returns "" for other names.
    """
    if metric in PANOPTIC_METRICS:
        return PANOPTIC_METRICS[metric]
    box_meaning = METRICS.get(metric.removeprefix(MASK_PREFIX), "")
    return f"{box_meaning}; of masks" if box_meaning and metric.startswith(MASK_PREFIX) else box_meaning
