"""Match detections with ground-truth objects by the IoU of their boxes, as COCO does.

Shape letters: n detections and m objects of one class in one image, T IoU thresholds.
Frame: a box is x, y, w, h in pixels of the original image.
"""

from __future__ import annotations

import numpy as np


def box_overlaps(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(n, m) IoU. For a crowd region, the fraction of the detection that lies in it.

    Args:
        boxes: (n, 4) of the detections.
        objects: (m, 4) of the annotations.
        crowd: (m,) bool, whether the annotation is a crowd region.
    """
    low = np.maximum(boxes[:, None, :2], objects[:, :2])
    high = np.minimum(boxes[:, None, :2] + boxes[:, None, 2:], objects[:, :2] + objects[:, 2:])
    shared = (high - low).clip(min=0).prod(2)
    own = boxes[:, 2:].prod(1)[:, None]
    union = np.where(crowd, own, own + objects[:, 2:].prod(1) - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match_overlaps(overlaps: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The object that each detection matches at each IoU threshold, (T, n) int64; -1 for none.

    Each detection, in the order of the rows, takes the free object with the highest IoU; of equal ones the last. It
    takes an ignored object only if it reaches no other. A crowd region can be taken several times.

    Args:
        overlaps: (n, m), see `box_overlaps`; detections in descending order of their scores.
        crowd: (m,) bool, crowd regions.
        ignored: (m,) bool, objects that do not count, crowd regions among them.
        thresholds: (T,), the lowest IoU of a match.
    """
    matches = np.full((len(thresholds), len(overlaps)), -1)
    free = np.ones((len(thresholds), len(crowd)), bool)
    last = len(crowd) - 1
    for index in np.flatnonzero((overlaps >= thresholds.min()).any(1)):
        row = overlaps[index]
        reached = free & (row >= thresholds[:, None])
        counted = reached & ~ignored
        chosen = np.where(counted.any(1)[:, None], counted, reached)
        best = last - np.where(chosen, row, -1.0)[:, ::-1].argmax(1)
        found = np.flatnonzero(chosen.any(1))
        matches[found, index] = best[found]
        free[found, best[found]] = crowd[best[found]]
    return matches
