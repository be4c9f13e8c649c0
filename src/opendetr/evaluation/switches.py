"""Why the ids of objects change: which query carries which object in each frame, and what happened at a switch.

Shape letters: n predicted objects of all frames, g ground-truth and r predicted objects of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from opendetr.evaluation.tracking import MATCHED_IOU, Tracks, TrueTracks, evaluated_frames

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
    keys = zip(truth.frames.tolist(), truth.ids.tolist(), strict=True)
    visible = dict(zip(keys, visibility.tolist(), strict=True))
    last: dict[int, tuple[int, int]] = {}  # object -> the frame and the track of its last match
    switches = []
    previous = -1
    frames = np.unique(predicted.frames).tolist()
    for frame, (true_rows, rows, iou) in zip(frames, evaluated_frames(frames, truth, predicted), strict=True):
        if not len(true_rows) or not len(rows):
            continue  # as in CLEAR, matches continue after such frames
        tracks = set(predicted.ids[rows].tolist())
        tracks_before = [_track_in(last, number, previous) for number in truth.ids[true_rows].tolist()]
        for true_index, index in _matches(tracks_before, predicted.ids[rows], iou):
            true_row, row = int(true_rows[true_index]), int(rows[index])
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


def _track_in(last: dict[int, tuple[int, int]], number: int, frame: int) -> int:
    """The track that an object was matched with in a frame, or -1."""
    seen, track = last.get(number, (frame, -1))
    return track if seen == frame else -1


def _matches(before: list[int], tracks: NDArray[np.int64], iou: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of objects and predictions in one frame.

    Args:
        before: the track of each object in the frame before, (g,), or -1.
        tracks: (r,) of the predictions.
        iou: (g, r).
    """
    score = _CONTINUED * (np.array(before)[:, None] == tracks[None]) + iou
    score[iou < MATCHED_IOU] = 0
    pairs = zip(*linear_sum_assignment(-score), strict=True)
    return [(int(a), int(b)) for a, b in pairs if score[a, b] > 0]
