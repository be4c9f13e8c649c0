"""Names and descriptions of the metrics."""

from __future__ import annotations

from opendetr.evaluation.coco import DETECTION_METRICS
from opendetr.evaluation.grounding import GROUNDING_METRICS
from opendetr.evaluation.panoptic import PANOPTIC_METRICS
from opendetr.evaluation.patches import PATCH_METRICS
from opendetr.evaluation.tracking import TRACKING_METRICS

MASK_PREFIX = "mask_"
"""Prefix of COCO metrics that are computed from masks."""
CLASS_PREFIX = "AP/"
"""Prefix of a class name, for the AP of the class."""


def describe_metric(metric: str) -> str:
    """A description of a metric in words; "" for unknown metrics.

    Args:
        metric: a key of `DETECTION_METRICS`, with or without `MASK_PREFIX`, or a key of `PANOPTIC_METRICS` or
            `PATCH_METRICS`, `GROUNDING_METRICS` or `TRACKING_METRICS`. A key of `GROUNDING_METRICS` may be followed by
            a slash and the type that the metric is limited to.
    """
    whole, _, type_ = metric.partition("/")
    if type_ and whole in GROUNDING_METRICS:
        return f"{GROUNDING_METRICS[whole]}; only those of type {type_}"
    others = {**PANOPTIC_METRICS, **PATCH_METRICS, **GROUNDING_METRICS, **TRACKING_METRICS}
    if metric in others:
        return others[metric]
    description = DETECTION_METRICS.get(metric.removeprefix(MASK_PREFIX), "")
    return f"{description}; of masks" if description and metric.startswith(MASK_PREFIX) else description
