"""Chooses when a tracker's tracks begin, continue and end, on training videos.

Shape letters: R rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from opendetr.data import DataConfig, DetectionData, Videos, eval_loader
from opendetr.evaluation import VideoTracks
from opendetr.models import RulesSweep, TrackerConfig, TrackingRules, VideoModel
from opendetr.postprocess import tracked_objects

_NUM_VIDEOS, _NUM_FRAMES = 4, 48  # of training videos: an evaluation in a run should not take much longer
_MIN_FRAMES = 17  # an evaluation of fewer images measures the speed, and its result does not count
_BIRTHS = (0.2, 0.3, 0.45, 0.6)
_KEEP = 0.7  # fraction of `birth`, while `birth` is chosen
_KEEPS, _PATIENCES = (0.5, 0.7, 1.0), (5, 20)  # fractions of `birth`; frames


def fit_tracker(
    model: VideoModel,
    rules: Callable[[TrackerConfig], TrackingRules],
    default: TrackerConfig,
    data: DetectionData,
    config: DataConfig,
    *,
    num_images: int | None = None,
    device: torch.device | str = "cpu",
) -> TrackerConfig:
    """The thresholds with the highest HOTA on the beginnings of some videos.

    First `birth` is chosen, then `keep` and `patience` together. Of equal ones, the first counts.

    Args:
        model: the model, in evaluation mode.
        rules: makes the rules of thresholds.
        default: the thresholds for data without tracks, and the other fields of the result.
        data: the training videos, with the classes of the model.
        config: how their frames are loaded.
        num_images: number of images of the evaluation for which the thresholds are chosen; None for all.
        device: the device of the model.
    """
    if num_images is not None and num_images < _MIN_FRAMES:
        return default
    part = _beginnings(data, _NUM_FRAMES if num_images is None else min(num_images, _NUM_FRAMES))

    def changed(before: TrackerConfig, birth: float, keep: float, patience: int) -> TrackerConfig:
        return replace(before, birth=birth, keep=round(keep * birth, 3), patience=patience)

    candidates = [default, *(changed(default, birth, _KEEP, default.patience) for birth in _BIRTHS)]
    best = _best(model, rules, candidates, part, config, device)
    further = (changed(best, best.birth, keep, patience) for keep in _KEEPS for patience in _PATIENCES)
    candidates = [best, *(each for each in further if each != best)]
    return _best(model, rules, candidates, part, config, device)


def _beginnings(data: DetectionData, num_frames: int) -> DetectionData:
    """The first frames of a few videos, evenly spread over the data."""
    videos = Videos(data)
    count = min(len(videos), _NUM_VIDEOS)
    length = max(1, num_frames // count)
    chosen = [videos.frames[number * len(videos) // count][:length] for number in range(count)]
    return data.subset([data.images[index] for frames in chosen for index in frames], data.split)


def _best(
    model: VideoModel,
    rules: Callable[[TrackerConfig], TrackingRules],
    candidates: Sequence[TrackerConfig],
    data: DetectionData,
    config: DataConfig,
    device: torch.device | str,
) -> TrackerConfig:
    found, every = [VideoTracks(data) for _ in candidates], [rules(candidate) for candidate in candidates]
    for video in eval_loader(data, config, batch_size=1, device=device).groups():
        sweep = RulesSweep(model, every)
        for batch in video:
            (target,) = batch.targets
            sizes = torch.tensor([target.original_size])
            for tracks, own, output in zip(found, every, sweep.step(batch.images), strict=True):
                ((objects, _),) = tracked_objects(output, sizes, data.categories, own)
                tracks.add(target.image_id, objects)
    reports = [tracks.report() for tracks in found]
    scores = [-1.0 if report is None else report.combined["HOTA"] for report in reports]
    return candidates[scores.index(max(scores))]
