"""The tracker: follows the objects of a video, with a tracking model or with a detector and an association.

Shape letters: n detections of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from opendetr.config import ConfigError, SettingError, replaced, suggesting
from opendetr.data import DataError, ImageError
from opendetr.inference.association import ASSOCIATIONS, Association, published_config
from opendetr.inference.predictor import Predictor, Prepared, load, prefetched
from opendetr.inference.sources.clips import Clip, find_clips
from opendetr.inference.sources.reading import Source, is_one_image, plain_source
from opendetr.models import TrackerConfig, TrackingSession
from opendetr.postprocess import detect, tracked_objects
from opendetr.results import Detections

_FRAMES_AHEAD = 4


class Tracker:
    """Follows the objects of a video: the same object has the same track id in all frames.

    Args:
        weights: a model that follows objects, such as MOTR, or a detector: anything that `load` takes, or a Predictor.
        association: for a detector, how the boxes of successive frames are associated: "bytetrack", "ocsort" or "sort".
        birth: lowest score with which a track begins. By default that stored with the weights, else the published one.
        keep: lowest score with which a track continues. The default is chosen likewise, and is at most `birth`.
        patience: number of frames without the object after which its track ends. The default is chosen likewise.
        model: the catalogue name, for a weights file that does not name its model.
        device: "auto", "cpu", "cuda" or "mps".

    Attributes:
        predictor: the model with its image transform and categories.
        config: the thresholds.
        queries: (n,) int64, the query of each object of the last frame; None for an association, which follows boxes.

    Raises:
        WeightsError: there are no such weights.
        ConfigError: a threshold is out of its range, a detector has no association or a tracking model has one, or the
            model takes texts or patches.

    Example:
        >>> tracker = Tracker("runs/mine")
        >>> for detections in tracker.track("street.mp4"):
        ...     print(detections.frame, detections.track_ids, detections.boxes)
    """

    @suggesting
    def __init__(
        self,
        weights: str | Path | Predictor,
        *,
        association: str | None = None,
        birth: float | None = None,
        keep: float | None = None,
        patience: int | None = None,
        model: str | None = None,
        device: str = "auto",
    ) -> None:
        if association is not None:
            published_config(association)  # an unknown name is refused before the weights are loaded
        self.predictor = weights if isinstance(weights, Predictor) else load(weights, model=model, device=device)
        given = {"birth": birth, "keep": keep, "patience": patience}
        self._follower: _Follower = _follower(self.predictor, association, given)
        self.config = self._follower.config
        self.queries: Tensor | None = None
        self._size: tuple[int, int] | None = None
        self._next_frame = 0

    def __repr__(self) -> str:
        return f"Tracker({self.predictor.preset.name}, {self.config})"

    def step(self, image: Source) -> Detections:
        """The objects of the next frame of a video, with their track ids.

        Args:
            image: one image: anything that `Predictor.predict` takes as one.

        Raises:
            ImageError: it cannot be read, is not one image, or has another size than the frames before.
        """
        plain: Any = plain_source(image)
        if not is_one_image(plain):
            raise ImageError(f"{image}: is not one image; step takes one frame, and track takes a video")
        return self._step(self.predictor.prepare(plain))

    def reset(self) -> None:
        """Discard all tracks. The next image begins a new video, whose ids count from 1."""
        self._follower.reset()
        self._size, self._next_frame = None, 0

    @suggesting
    def track(
        self, source: Source | Iterable[Source] | Clip, *, on_unreadable: Callable[[str], None] | None = None
    ) -> Generator[Detections]:
        """Follow the objects of a video from its beginning. Threads load the next frames while the model runs.

        Args:
            source: a video file, a folder of frames, a pattern such as "frames/*.jpg", the index of a camera, or an
                iterable of images.
            on_unreadable: called with a one-line message for each frame that cannot be read. The frame is skipped. If
                omitted, DataError is raised.

        Returns:
            An iterator of the detections of each frame, with `track_ids`.

        Raises:
            DataError: there are no frames, several videos, or frames that differ in size.
        """
        clip = source if isinstance(source, Clip) else _only_clip(source)
        frames = clip.read(on_unreadable)
        return self._track(frames, 1 if clip.is_live else _FRAMES_AHEAD, on_unreadable)

    def _track(
        self, frames: Iterator[Source], ahead: int, on_unreadable: Callable[[str], None] | None
    ) -> Generator[Detections]:
        self.reset()
        with closing(prefetched(self.predictor.prepare, frames, ahead, on_unreadable)) as images:
            for image in images:
                yield self._step(image)

    def _step(self, item: Prepared) -> Detections:
        image = item.image
        height, width = image.pixels.shape[:2]
        self._size = self._size or (height, width)
        if self._size != (height, width):
            raise ImageError(
                f"{image.source or 'image'}: is {width} x {height}, but the frames before it are {self._size[1]} x "
                f"{self._size[0]}; frames of a video have one size (in Python, reset() begins a new video)"
            )
        detections, self.queries = self._follower.step(item)
        frame = self._next_frame if image.frame is None else image.frame
        self._next_frame = frame + 1
        return replace(detections, image=image.pixels, source=image.source, frame=frame, time=image.time)


def _only_clip(source: Source | Iterable[Source]) -> Clip:
    """The clip of a source. Raises DataError if there are several."""
    clips = find_clips(source)
    if len(clips) > 1:
        raise DataError(f"{source}: has {len(clips)} videos, the first is {clips[0].source}; give one of them")
    return clips[0]


# ----------------------------------------------------------------------------------------------------------- followers


class _Follower(Protocol):
    """Follows the objects of one video."""

    config: TrackerConfig

    def step(self, item: Prepared) -> tuple[Detections, Tensor | None]:
        """The objects of the next frame with their track ids, and the query of each, (n,) int64, if it follows it."""
        ...

    def reset(self) -> None:
        """Begin a new video."""
        ...


class _ModelFollower:
    """Follows objects with a model that does so itself."""

    def __init__(self, predictor: Predictor, session: TrackingSession) -> None:
        self._predictor, self._session = predictor, session
        self.config = session.rules.config

    def step(self, item: Prepared) -> tuple[Detections, Tensor]:
        images, sizes = self._predictor.batch([item])
        output = self._session.step(images)
        return tracked_objects(output, sizes, self._predictor.categories, self._session.rules)[0]

    def reset(self) -> None:
        self._session.reset()


class _DetectorFollower:
    """Follows objects with a detector and an association of its boxes. Objects have no masks."""

    def __init__(self, predictor: Predictor, association: Association, config: TrackerConfig) -> None:
        self._predictor, self._association, self.config = predictor, association, config
        self._session = predictor.preset.session(predictor.model)

    @torch.inference_mode()
    def step(self, item: Prepared) -> tuple[Detections, None]:
        images, sizes = self._predictor.batch([item])
        final, categories = self._session.step(images).final, self._predictor.categories
        (detections,) = detect(final, sizes, categories, min_score=self.config.keep)
        ids = torch.from_numpy(self._association.step(detections.boxes.numpy(), detections.scores.numpy()))
        order = ids.argsort(stable=True)
        order = order[ids[order] > 0]
        return replace(detections[order], track_ids=ids[order]), None

    def reset(self) -> None:
        self._association.reset()


def _follower(predictor: Predictor, association: str | None, given: dict[str, Any]) -> _Follower:
    """What follows the objects, with the thresholds that are given. Raises ConfigError."""
    preset, model = predictor.preset, predictor.model
    changes = {name: value for name, value in given.items() if value is not None}
    if preset.follows_objects:
        if association is not None:
            raise SettingError(f"{preset.name} follows objects itself: leave it out", argument="association")
        session = cast(TrackingSession, preset.session(model))
        if changes:
            changed = preset.with_tracker(_changed(session.rules.config, changes))
            session = cast(TrackingSession, changed.session(model))
        return _ModelFollower(predictor, session)
    if model.takes_text or model.max_patches:
        what = "texts" if model.takes_text else "patches"
        raise ConfigError(f"{preset.name}: takes {what}, and does not track; use a detector with fixed classes")
    if association is None:
        *others, last = ASSOCIATIONS
        raise SettingError(
            f"{preset.name} is a detector, which gives objects no ids: choose {', '.join(others)} or {last}, or track "
            "with a model such as motr-tiny",
            argument="association",
        )
    config = published_config(association)
    if predictor.thresholds is not None:  # those of other models say little about the scores of this one
        birth = predictor.thresholds.default
        config = replace(config, birth=birth, keep=min(config.keep, birth))
    if association == "ocsort":
        if "keep" in changes:
            raise SettingError("ocsort has one threshold, birth: leave it out", argument="keep")
        changes["keep"] = changes.get("birth", config.birth)
    config = _changed(config, changes)
    return _DetectorFollower(predictor, Association(association, config), config)


def _changed(config: TrackerConfig, changes: dict[str, Any]) -> TrackerConfig:
    """The thresholds with changes. Without an own value, `keep` is at most `birth`. Raises SettingError."""
    birth = changes.get("birth")
    if isinstance(birth, int | float) and "keep" not in changes:
        changes = changes | {"keep": min(config.keep, birth)}
    try:
        return replaced(config, changes, "tracker.")
    except SettingError as error:
        raise error.naming({f"tracker.{name}": name for name in ("birth", "keep", "patience")}) from None
