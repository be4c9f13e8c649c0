"""Collects the tracks of an annotated clip, and explains them: what carries each object, and why its id changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from opendetr.data import FRAME, VISIBILITY, DetectionData
from opendetr.evaluation import REASONS, Switch, Tracks, explain_switches, true_tracks
from opendetr.results import Detections
from opendetr.visualize import draw_carriers


class TrackHistory:
    """The tracks of one clip.

    Args:
        annotations: the annotated frames of the clip.
    """

    def __init__(self, annotations: DetectionData) -> None:
        self._annotations = annotations
        self._rows: list[np.ndarray] = []  # (n, 7) for each frame: frame from 1, track, carrier, box
        self._has_queries = True

    def add(self, detections: Detections, queries: Tensor | None) -> None:
        """Add the objects of the next frame, and the query (n,) of each; None if queries do not follow objects."""
        assert detections.track_ids is not None
        count, self._has_queries = len(detections), queries is not None
        carriers = detections.track_ids if queries is None else queries
        columns = (np.full(count, (detections.frame or 0) + 1), detections.track_ids.numpy(), carriers.numpy())
        self._rows.append(np.column_stack((*columns, detections.boxes.numpy().astype(np.float64))))

    def explain(self) -> Explanation:
        """Match the tracks with the annotations."""
        rows = np.concatenate([*self._rows, np.zeros((0, 7))])
        predicted = Tracks(frames=rows[:, 0].astype(np.int64), ids=rows[:, 1].astype(np.int64), boxes=rows[:, 3:])
        records = self._annotations.images
        truth = true_tracks(records, [record.extras[FRAME] for record in records])
        visible = np.array([obj.extras[VISIBILITY] for record in records for obj in record.objects], dtype=np.float64)
        objects, switches = explain_switches(truth, visible, predicted)
        return Explanation(rows[:, 0], rows[:, 2], objects, switches, "query" if self._has_queries else "track")


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which query carries which object of a clip in each frame, and why ids change.

    Attributes:
        frames, carriers, objects: (n,) each, for each predicted object. The carrier is its query, or the id of its
            track if queries do not follow objects. The object is -1 for a false positive.
        switches: the changes of ids.
        carrier: what a carrier is: "query" or "track".
    """

    frames: np.ndarray
    carriers: np.ndarray
    objects: np.ndarray
    switches: list[Switch]
    carrier: str

    @property
    def counts(self) -> dict[str, int]:
        """The number of switches by their reason."""
        counts = Counter(str(switch.reason) for switch in self.switches)
        return {reason: counts[reason] for reason in REASONS}

    def draw(self, title: str) -> Image.Image:
        """The chart of carriers over frames, with one colour per object."""
        places = np.stack((self.frames, self.carriers), 1)
        points = {int(number): places[self.objects == number] for number in np.unique(self.objects) if number >= 0}
        marks = [(each.frame, float(self.carriers[each.row]), each.object, each.reason) for each in self.switches]
        return draw_carriers(points, places[self.objects < 0], marks, REASONS, title, y_label=self.carrier)
