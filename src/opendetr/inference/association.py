"""Ids for the objects of a plain detector: the boxes of successive frames are associated by `trackers`.

The package `trackers` implements SORT (Bewley et al., 2016), ByteTrack (Zhang et al., 2022) and OC-SORT (Cao et al.,
2023). It is part of the extra `track`.

Shape letters: n detections of a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opendetr.config import MissingPackageError, SettingError, unknown
from opendetr.models import TrackerConfig

_LOW = 0.1  # ByteTrack: objects above the birth threshold minus this are associated first


class _Method(NamedTuple):
    """A method of association: its published thresholds, and its object of `trackers`."""

    published: TrackerConfig
    build: Callable[[Any, TrackerConfig], Any]


def _sort(package: Any, config: TrackerConfig) -> Any:
    return package.SORTTracker(lost_track_buffer=config.patience, track_activation_threshold=config.birth)


def _bytetrack(package: Any, config: TrackerConfig) -> Any:
    return package.ByteTrackTracker(
        lost_track_buffer=config.patience,
        track_activation_threshold=config.birth,
        high_conf_det_threshold=max(config.keep, config.birth - _LOW),
    )


def _ocsort(package: Any, config: TrackerConfig) -> Any:
    return package.OCSORTTracker(lost_track_buffer=config.patience, high_conf_det_threshold=config.birth)


_METHODS = {
    "bytetrack": _Method(TrackerConfig(birth=0.7, keep=0.1, patience=30), _bytetrack),
    "ocsort": _Method(TrackerConfig(birth=0.6, keep=0.6, patience=30), _ocsort),
    "sort": _Method(TrackerConfig(birth=0.25, keep=0.25, patience=30), _sort),
}
ASSOCIATIONS = tuple(_METHODS)
"""The names of the methods."""


def published_config(name: str) -> TrackerConfig:
    """The published thresholds of a method. Raises SettingError for an unknown name."""
    if name not in _METHODS:
        raise SettingError(unknown(name, ASSOCIATIONS), argument="association")
    return _METHODS[name].published


class Association:
    """Gives the boxes of successive frames of one video ids.

    Args:
        name: one of `ASSOCIATIONS`.
        config: `birth` is the lowest score with which a track begins, `keep` the lowest score of a box that takes part,
            and `patience` the number of frames without a box after which a track ends.

    Raises:
        MissingPackageError: the package `trackers` is not installed.
    """

    def __init__(self, name: str, config: TrackerConfig) -> None:
        try:
            import supervision
            import trackers
        except ImportError:
            raise MissingPackageError(f"association {name}", "trackers") from None
        self._make_detections = supervision.Detections
        self._tracker = _METHODS[name].build(trackers, config)

    def step(self, boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Boxes (n, 4) xyxy of the next frame and their scores (n,) -> the id of each from 1 on, or 0 for none."""
        ids = np.zeros(len(boxes), dtype=np.int64)
        rows = np.arange(len(boxes))
        given = self._make_detections(xyxy=boxes, confidence=scores, data={"row": rows})
        found = self._tracker.update(given)
        if len(found):
            ids[found.data["row"]] = np.asarray(found.tracker_id) + 1  # ids count from 0, and -1 is none
        return ids

    def reset(self) -> None:
        """Discard all tracks. The next frame begins a new video."""
        self._tracker.reset()
