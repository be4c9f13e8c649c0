"""Why the ids of objects change: which query carries which object in each frame, and what happened at a switch.

Shape letters: n predicted objects of all frames, g ground-truth and r predicted objects of a frame.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from opendetr.evaluation.tracking import MATCHED_IOU, Tracks, TrueTracks, box_ious

Reason = Literal["lost", "taken", "occluded"]
REASONS = {
    "lost": "lost while visible",
    "taken": "taken by another",
    "occluded": "hidden or outside the image",
}
"""The reasons of switches, each with a description."""

_CONTINUED = 1000.0  # CLEAR: a match of the previous frame is kept if it is still possible
_HALF_VISIBLE = 0.5


@dataclass(frozen=True)
class Switch:
    """A change of the id of an object.

    Attributes:
        frame: the frame with the new id.
        object: the ground-truth id.
        before: the last track id before.
        after: the new track id.
        row: the row of the new prediction.
        reason: "taken" if the old track is still there, on another object or beside this one; else "occluded" if less
            than half of the object was visible, or it was absent, since its old track was last seen; else "lost".
    """

    frame: int
    object: int
    before: int
    after: int
    row: int
    reason: Reason


def explain_switches(
    truth: TrueTracks, visibility: NDArray[np.float64], predicted: Tracks
) -> tuple[NDArray[np.int64], list[Switch]]:
    """Match the objects of a sequence with its ground truth as in CLEAR MOT, and explain the changes of ids.

    Args:
        truth: the ground truth. Its frames are integers; rows that are not evaluated are left out.
        visibility: the visible fraction of each row of the ground truth.
        predicted: the tracks.

    Returns:
        (n,) the ground-truth id of each predicted object, or -1 for a false positive; and the switches, by frame.
    """
    objects = np.full(len(predicted.ids), -1, dtype=np.int64)
    visible: dict[tuple[int, int], float] = {}
    true_rows: dict[int, list[int]] = defaultdict(list)
    rows: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(~(truth.ignored | truth.distractors)).tolist():
        true_rows[int(truth.frames[row])].append(row)
        visible[int(truth.frames[row]), int(truth.ids[row])] = float(visibility[row])
    for row, frame in enumerate(predicted.frames.tolist()):
        rows[frame].append(row)
    last: dict[int, tuple[int, int]] = {}  # object -> the frame and the track of its last match
    switches = []
    previous = -1
    for frame in sorted(rows):
        here, there = true_rows[frame], rows[frame]
        tracks = set(predicted.ids[there].tolist())
        for true_row, row in _matches(truth, here, predicted, there, _tracks_of(last, previous)):
            number, track = int(truth.ids[true_row]), int(predicted.ids[row])
            objects[row] = number
            before = last.get(number)
            if before is not None and before[1] != track:
                was_visible = (visible.get((each, number), 0.0) for each in range(before[0], frame + 1))
                reason: Reason = "taken" if before[1] in tracks else "lost"
                if reason == "lost" and min(was_visible) < _HALF_VISIBLE:
                    reason = "occluded"
                switches.append(Switch(frame, number, before[1], track, row, reason))
            last[number] = (frame, track)
        previous = frame
    return objects, switches


def _tracks_of(last: dict[int, tuple[int, int]], frame: int) -> dict[int, int]:
    """Object -> track, of the matches in a frame."""
    return {number: track for number, (seen, track) in last.items() if seen == frame}


def _matches(
    truth: TrueTracks, true_rows: list[int], predicted: Tracks, rows: list[int], before: dict[int, int]
) -> list[tuple[int, int]]:
    """Pairs of rows of the ground truth and of the prediction in one frame; `before` are those of the frame before."""
    if not true_rows or not rows:
        return []
    iou = box_ious(truth.boxes[true_rows], predicted.boxes[rows])
    kept = [before.get(number, -1) for number in truth.ids[true_rows].tolist()]
    score = _CONTINUED * (np.array(kept)[:, None] == predicted.ids[rows][None]) + iou
    score[iou < MATCHED_IOU] = 0
    pairs = zip(*linear_sum_assignment(-score), strict=True)
    return [(true_rows[a], rows[b]) for a, b in pairs if score[a, b] > 0]
