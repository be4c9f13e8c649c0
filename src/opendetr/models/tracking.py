"""How the outputs of a video model become tracks: rules for the ids of its queries, and the session that applies them.

Rules are pure: a step takes the memory of a video and returns a new one. The session keeps it, and the state of the
model. So nothing about a video is stored in a model or in rules.

Shape letters: B videos, R queries, C class logits, n detections, m candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from opendetr.boxes import cxcywh_to_xyxy, giou
from opendetr.structures import FeatureMap, ImageBatch, Movable, Predictions, TrackingOutput

_WORST_COST = 1.2  # as published: a detection and a track with a GIoU below -0.2 are not the same object


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """When a track begins, continues and ends. The score of a query is that of its best class.

    Attributes:
        birth: lowest score with which a track begins.
        keep: lowest score with which a track continues.
        patience: number of frames without a continuation after which a track ends.
        classes: labels of the classes that are tracked. Empty for all.
        min_area: boxes that are not larger are not reported, in pixels of the original image. Their tracks go on.

    Raises:
        ValueError: a field is out of its range.
    """

    birth: float
    keep: float
    patience: int
    classes: tuple[int, ...] = ()
    min_area: float = 0.0

    def __post_init__(self) -> None:
        for name in ("birth", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"tracker.{name}: expected a number from 0 to 1, got {getattr(self, name)}")
        if self.keep > self.birth:
            raise ValueError(f"tracker.keep: expected at most tracker.birth, {self.birth}, got {self.keep}")
        if self.patience < 1:
            raise ValueError(f"tracker.patience: expected at least 1 frame, got {self.patience}")
        if any(label < 0 for label in self.classes):
            raise ValueError(f"tracker.classes: expected labels from 0 on, got {min(self.classes)}")
        if not self.min_area >= 0:
            raise ValueError(f"tracker.min_area: expected at least 0 pixels, got {self.min_area}")

    def scores(self, predictions: Predictions) -> Tensor:
        """(B, R), the score of the best tracked class of each query."""
        if not self.classes:
            return predictions.scoring.best(predictions.logits)[0]
        return predictions.scoring.probabilities(predictions.logits)[..., list(self.classes)].amax(-1)


class TrackingRules(Protocol):
    """Decides which query carries which track. Implementations are frozen dataclasses without a state.

    Attributes:
        config: when a track begins, continues and ends.
        first_id: the number of the first track of a video.
    """

    first_id: ClassVar[int]

    @property
    def config(self) -> TrackerConfig:
        """When a track begins, continues and ends."""
        ...

    def start(self) -> Any:
        """The memory of a new video."""
        ...

    def step(self, memory: Any, output: TrackingOutput, video: int) -> tuple[Any, Tensor, Tensor]:
        """The next frame of a video.

        Args:
            memory: that after the previous frame.
            output: the output of the model for the frames of B videos.
            video: index of the video in the batch.

        Returns:
            The memory after this frame; (R,) int64, the track that each query carries to the next frame, or -1;
            (R,) int64, the tracks that are reported in this frame, or -1.
        """
        ...


# ---------------------------------------------------------------------------------------------------------------- MOTR


@dataclass(frozen=True)
class QueryMemory:
    """What `QueryLifetime` knows of a video.

    Attributes:
        next_id: the id of the next new track.
        missed: by id, for how many frames a live track was below the threshold, if it was.
    """

    next_id: int = 0
    missed: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class QueryLifetime:
    """The rules of MOTR: a query that finds an object follows it, until its score was too low for too long.

    A query without a track and with a score of at least `birth` begins a track. A track with a score below `keep` has
    missed a frame, and ends after `patience` of them. They need not be consecutive: only a score of at least `birth`
    resets the count. A track is reported in frames with a score above `birth`.
    """

    config: TrackerConfig
    first_id: ClassVar[int] = 0

    def start(self) -> QueryMemory:
        """The memory of a new video."""
        return QueryMemory()

    def step(self, memory: QueryMemory, output: TrackingOutput, video: int) -> tuple[QueryMemory, Tensor, Tensor]:
        """The next frame of a video; see `TrackingRules.step`."""
        scores = self.config.scores(output.final)[video]
        memory, alive = self.follow(memory, scores, output.track_ids[video])
        return memory, alive, alive.where(scores > self.config.birth, -1)

    def follow(self, memory: QueryMemory, scores: Tensor, ids: Tensor) -> tuple[QueryMemory, Tensor]:
        """Scores (R,) and the tracks (R,) that the queries follow -> the memory, and the tracks after this frame."""
        # Rows that only fill up a batch have score 0, and no threshold makes tracks of them.
        is_sure, is_missed = (scores >= self.config.birth) & (scores > 0), (scores < self.config.keep) & (ids >= 0)
        is_new = is_sure & (ids < 0)
        alive = torch.where(is_new, memory.next_id - 1 + is_new.long().cumsum(0), ids)
        missed = {track: memory.missed[track] for track in ids[~is_sure].tolist() if track in memory.missed}
        for track in ids[is_missed].tolist():
            missed[track] = missed.get(track, 0) + 1
        ended = [track for track, count in missed.items() if count >= self.config.patience]
        if ended:
            alive = alive.masked_fill(torch.isin(alive, torch.tensor(ended, device=alive.device)), -1)
        missed = {track: count for track, count in missed.items() if count < self.config.patience}
        return QueryMemory(memory.next_id + int(is_new.sum()), missed), alive


# ---------------------------------------------------------------------------------------------------------- TransTrack


@dataclass(frozen=True)
class Track:
    """A track of `BoxAssociation`.

    Attributes:
        id: its number, from 1 on.
        query: the query that detected it in this frame; None if none did.
        box: x0, y0, x1, y1: of this frame, or of the last one with a prediction.
        score: that of the last detection.
        age: 1 in a frame with a detection, and one more in each frame without.
    """

    id: int
    query: int | None
    box: tuple[float, ...]
    score: float
    age: int = 1


@dataclass(frozen=True)
class BoxMemory:
    """What `BoxAssociation` knows of a video.

    Attributes:
        next_id: the id of the next new track.
        tracks: the tracks that a detection continued, the new ones, and those without a detection, in this order.
    """

    next_id: int = 1
    tracks: tuple[Track, ...] = ()


@dataclass(frozen=True)
class BoxAssociation:
    """The rules of TransTrack: the boxes of both decoders are matched by their GIoU.

    A track that was detected by a query in the previous frame is where the track decoder predicts that query to be. A
    track without a detection stays where it was. Detections with a score of at least `keep` are matched with the
    tracks. Others with a score of at least `birth` begin a track. A track ends after `patience` frames without a
    detection.
    """

    config: TrackerConfig
    first_id: ClassVar[int] = 1

    def start(self) -> BoxMemory:
        """The memory of a new video."""
        return BoxMemory()

    def step(self, memory: BoxMemory, output: TrackingOutput, video: int) -> tuple[BoxMemory, Tensor, Tensor]:
        """The next frame of a video; see `TrackingRules.step`."""
        scores = self.config.scores(output.final)[video]
        predicted = output.tracks[-1].boxes[video]
        memory = self.associate(memory, scores, cxcywh_to_xyxy(output.final.boxes[video]), cxcywh_to_xyxy(predicted))
        queries = {track.query: track.id for track in memory.tracks if track.query is not None}
        ids = torch.tensor([queries.get(query, -1) for query in range(len(scores))], device=output.track_ids.device)
        return memory, ids, ids

    def associate(self, memory: BoxMemory, scores: Tensor, boxes: Tensor, predicted: Tensor | None = None) -> BoxMemory:
        """The memory after a frame.

        Args:
            memory: that after the previous frame.
            scores: (R,) of the detections.
            boxes: (R, 4) of the detections, corners in any unit.
            predicted: (R, 4), where the track decoder predicts the objects of the queries of the previous frame, in the
                same unit. By default they stay where they were.
        """
        scores, boxes = scores.detach().cpu(), boxes.detach().float().cpu()
        predicted = None if predicted is None else predicted.detach().float().cpu()
        kept = (scores >= self.config.keep).nonzero()[:, 0].tolist()
        candidates = [self._moved(track, predicted) for track in memory.tracks]
        pairs, rejected = self._pairs(boxes[kept], candidates)
        assigned_rows = {row for row, _ in (*pairs, *rejected)}
        assigned_columns = {column for _, column in (*pairs, *rejected)}
        # The order of the published tracker: those that were never assigned, then those of rejected pairs.
        unmatched = [row for row in range(len(kept)) if row not in assigned_rows]
        unmatched += [row for row, _ in rejected]
        missed = [column for column in range(len(candidates)) if column not in assigned_columns]
        missed += [column for _, column in rejected]
        detected = [Track(0, query, tuple(boxes[query].tolist()), float(scores[query])) for query in kept]
        continued = [replace(detected[row], id=candidates[column].id) for row, column in pairs]
        born = [detected[row] for row in unmatched if scores[kept[row]] >= self.config.birth]
        new = [replace(track, id=memory.next_id + number) for number, track in enumerate(born)]
        lost = [
            replace(candidates[column], query=None, age=candidates[column].age + 1)
            for column in missed
            if candidates[column].age < self.config.patience
        ]
        return BoxMemory(memory.next_id + len(new), (*continued, *new, *lost))

    def _moved(self, track: Track, predicted: Tensor | None) -> Track:
        """A track where it is expected in this frame."""
        if predicted is None or track.query is None:
            return track
        return replace(track, box=tuple(predicted[track.query].tolist()))

    def _pairs(self, boxes: Tensor, candidates: list[Track]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Pairs of detections (n, 4) and candidates: those that are close, and those that are too far apart."""
        if not len(boxes) or not candidates:
            return [], []
        places = torch.tensor([track.box for track in candidates], dtype=boxes.dtype)
        cost = np.nan_to_num((1 - giou(boxes[:, None], places)).numpy(), nan=2.0)
        assigned = [(int(row), int(column)) for row, column in zip(*linear_sum_assignment(cost), strict=True)]
        return (
            [pair for pair in assigned if cost[pair] <= _WORST_COST],
            [pair for pair in assigned if cost[pair] > _WORST_COST],
        )


# ------------------------------------------------------------------------------------------------------------- session


class VideoModel(Protocol):
    """The interface of a model with a state that the sessions use.

    Attributes:
        state_has_tracks: whether the state depends on the tracks that queries carry.
    """

    state_has_tracks: bool

    def __call__(self, images: ImageBatch, state: Any = None) -> TrackingOutput:
        """The output for the next frame of B videos; `state` is None for first frames."""
        ...

    def encode_frames(
        self, images: ImageBatch, state: Any = None
    ) -> tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]:
        """The memory and the backbone features of the next frames."""
        ...

    def decode(
        self, memory: tuple[FeatureMap, ...], features: tuple[FeatureMap, ...] = (), *, state: Any = None
    ) -> TrackingOutput:
        """The output for the next frames; `state` is None for first frames."""
        ...

    def update(self, output: TrackingOutput, ids: Tensor) -> Movable:
        """The state for the next frame, in which queries carry the tracks `ids` (B, R)."""
        ...


class TrackingSession:
    """The session of a video model: it follows B videos at once, usually one.

    Args:
        model: the model, in evaluation mode.
        rules: decides which query carries which track.
    """

    def __init__(self, model: VideoModel, rules: TrackingRules) -> None:
        self._model, self.rules = model, rules
        self.memories: tuple[Any, ...] = ()  # one per video
        self._state: Movable | None = None

    @torch.inference_mode()
    def step(self, images: ImageBatch, prompt: Any = None) -> TrackingOutput:
        """The output for the next frame of each video, with the ids of the tracks that are seen in it.

        Args:
            images: the next frames. Their number is the same until the next reset.
            prompt: must be None.
        """
        assert prompt is None
        output = self._model(images, self._state)
        memories = self.memories or tuple(self.rules.start() for _ in range(len(images)))
        steps = [self.rules.step(memory, output, video) for video, memory in enumerate(memories)]
        assert len(steps) == len(images), "the number of videos changed without a reset"
        memories, alive, reported = zip(*steps, strict=True)
        self.memories = memories
        self._state = self._model.update(output, torch.stack(alive))
        return replace(output, state=self._state, track_ids=torch.stack(reported))

    def reset(self) -> None:
        """Discard the tracks. The next images begin new videos."""
        self.memories, self._state = (), None


class RulesSweep:
    """Follows one video with several rules at once, to compare them. Each frame is encoded once.

    Args:
        model: the model, in evaluation mode.
        rules: R rules.
    """

    def __init__(self, model: VideoModel, rules: Sequence[TrackingRules]) -> None:
        self._model, self._rules = model, rules
        self._memories = [each.start() for each in rules]
        self._state: Movable | None = None

    @torch.inference_mode()
    def step(self, image: ImageBatch) -> Iterator[TrackingOutput]:
        """Yield the output for the next frame of the video with each of the rules, as `TrackingSession.step`.

        The iterator must be exhausted before the next step.
        """
        model, count = self._model, len(self._rules) if self._model.state_has_tracks else 1
        memory, features = model.encode_frames(image, self._state)
        output = model.decode(tuple(_repeated(level, count) for level in memory), features, state=self._state)
        alive = []
        for number, (rules, known) in enumerate(zip(self._rules, self._memories, strict=True)):
            video = number if count > 1 else 0
            self._memories[number], carried, reported = rules.step(known, output, video)
            alive.append(carried)
            yield replace(_of_video(output, video), track_ids=reported[None])
        self._state = model.update(output, torch.stack(alive[:count]))


def _repeated(level: FeatureMap, count: int) -> FeatureMap:
    """A level of one image, `count` times, without a copy."""

    def expanded(values: Tensor | None) -> Tensor | None:
        return values if values is None or count == 1 else values.expand(count, *values.shape[1:])

    values = expanded(level.values)
    assert values is not None
    return FeatureMap(values, expanded(level.padding), expanded(level.position))


def _of_video(output: TrackingOutput, video: int) -> TrackingOutput:
    """The output with the predictions of the last layer for one video only."""
    final = output.final
    one = replace(final, logits=final.logits[video, None], boxes=final.boxes[video, None])
    return replace(output, layers=(one,))
