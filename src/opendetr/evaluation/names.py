"""What the scores of all kinds are called, and what each says."""

from __future__ import annotations

from opendetr.evaluation.coco import METRICS
from opendetr.evaluation.panoptic import PANOPTIC_METRICS

MASK_PREFIX = "mask_"
"""Before the names of COCO's numbers where they are of masks."""
CLASS_PREFIX = "AP/"
"""Before the name of a class, for its AP."""


def meaning(metric: str) -> str:
    """What a score says, by its name: one of `METRICS`, that with `MASK_PREFIX`, or one of `PANOPTIC_METRICS`.

    Of another name nothing is said.
    """
    if metric in PANOPTIC_METRICS:
        return PANOPTIC_METRICS[metric]
    of_boxes = METRICS.get(metric.removeprefix(MASK_PREFIX), "")
    return f"{of_boxes}; of masks" if of_boxes and metric.startswith(MASK_PREFIX) else of_boxes
