"""A frame of motr-tiny and transtrack-tiny with 20 live tracks, compared with detection alone at the same size.

All models are randomly initialised and see one image of 256x256 pixels again and again. A frame is what `Tracker.step`
does: the transform of the image, the model, the rules of tracks, and the conversion to detections. Detection alone is
`deformable-detr-tiny`. The result of the other implementation is that of detection alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from opendetr.bench.figure import Figure
from opendetr.bench.measuring import interleaved
from opendetr.categories import Categories
from opendetr.inference import Predictor
from opendetr.models import TrackerConfig, TrackingRules, TrackingSession
from opendetr.postprocess import tracked_objects
from opendetr.presets import build_model, get_preset
from opendetr.structures import TrackingOutput

SIZE, TRACKS, FRAMES = 256, 20, 5
DETECTOR, TRACKERS = "deformable-detr-tiny", ("motr-tiny", "transtrack-tiny")
MOST = 1.35  # times the seconds of detection alone


@dataclass(frozen=True)
class _ConstantTracks:
    """Applies rules, but lets exactly TRACKS queries carry tracks."""

    rules: TrackingRules
    first_id: ClassVar[int] = 0

    @property
    def config(self) -> TrackerConfig:
        """The thresholds."""
        return self.rules.config

    def start(self) -> Any:
        """The memory of a new video."""
        return self.rules.start()

    def step(self, memory: Any, output: TrackingOutput, video: int) -> tuple[Any, Tensor, Tensor]:
        """The next frame of a video; see `TrackingRules.step`."""
        memory, *_ = self.rules.step(memory, output, video)
        ids = output.track_ids[video]
        if not (ids >= 0).any():  # the first frame, or a model whose queries are the same in every frame
            rows = torch.arange(len(ids))
            ids = rows.where(rows < TRACKS, -1)
        return memory, ids, ids


def _predictor(name: str, categories: Categories) -> Predictor:
    torch.manual_seed(0)
    preset = get_preset(name)
    return Predictor(build_model(preset, len(categories)), preset, categories, device="cpu")


def _tracking(name: str, categories: Categories, image: np.ndarray) -> Callable[[], int]:
    """A function that tracks in the next frame, and returns the number of tracks."""
    predictor = _predictor(name, categories)
    prepare = predictor.prepare

    def session_with(birth: float) -> TrackingSession:
        preset = predictor.preset.with_tracker(TrackerConfig(birth=birth, keep=birth, patience=2))
        return cast(TrackingSession, preset.session(predictor.model))

    first, _ = predictor.batch([prepare(image)])
    session = session_with(1.0)
    scores = session.rules.config.scores(session.step(first).final)
    session = session_with(float(scores[0].topk(TRACKS).values[-1]))
    session.rules = _ConstantTracks(session.rules)

    def track() -> int:
        images, sizes = predictor.batch([prepare(image)])
        ((detections, _),) = tracked_objects(session.step(images), sizes, categories, session.rules)
        return len(detections)

    return track


def _times(work: Callable[[], Any]) -> Callable[[], None]:
    def several() -> None:
        for _ in range(FRAMES):
            work()

    return several


def measure(repeats: int) -> Iterator[Figure]:
    """Yield the seconds of a frame of each tracker, for about `repeats` rounds."""
    categories = Categories.from_names([f"class {number}" for number in range(10)])
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    detector = _predictor(DETECTOR, categories)
    detect = _times(lambda: detector.predict(image))
    for name in TRACKERS:
        seconds = interleaved({name: _times(_tracking(name, categories, image)), DETECTOR: detect}, repeats)
        each = {contestant: [value / FRAMES for value in values] for contestant, values in seconds.items()}
        yield Figure.of_seconds(f"a frame of {name}, {TRACKS} tracks", each, expected=1 / MOST)
