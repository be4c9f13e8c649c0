"""Presets of two miniature members (see `members`), which run through `train`, `load` and `Predictor` like any model.

- `mini-captions`: the session takes the tokens of the captions as a prompt; evaluated by the recall of tokens.
- `mini-clips`: validation images are frames of videos, which one process evaluates in order with state between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from members import (
    CONFIG,
    NUM_CLASSES,
    VOCABULARY,
    Around,
    CaptionData,
    CaptionDETR,
    CaptionTask,
    ClipData,
    ClipDETR,
    ClipTask,
    Tokens,
    TrackingOutput,
    TrackingSession,
    _with_caption,
)
from opendetr.categories import Categories
from opendetr.data import DetectionData
from opendetr.models import Detector, DETRConfig, Session
from opendetr.presets import Preset
from opendetr.recipe import Recipe
from opendetr.structures import Batch, ImageBatch, Output, Sample
from opendetr.tasks import Task

FRAMES = 2  # of a validation video
RECIPE = Recipe(batch_size=4, max_steps=2, num_evaluations=1, best_by="auto", learning_rate=1e-3)


@dataclass
class Means:
    """An evaluation without details."""

    named_metrics: dict[str, float | None]


class MeanEvaluator:
    """Computes the mean of one number per image, over all processes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: list[float] = []

    def update(self, batch: Batch, results: Iterable[float]) -> None:
        self._values += results

    def leave_out(self, image_ids: Iterable[int]) -> None:
        self._values += [0.0 for _ in image_ids]

    def gather(self) -> None:
        pass  # these tests evaluate in one process

    def compute(self) -> dict[str, float | None]:
        return {self._name: sum(self._values) / len(self._values)}

    def score_thresholds(self) -> None:
        return None

    def evaluation(self, seconds_per_image: float, unreadable: Iterable[str]) -> Means:
        return Means(self.compute())


# ------------------------------------------------------------------------------------------------------------ captions


@dataclass(frozen=True)
class AroundPixels(Around):
    """The same for prediction."""

    def pixels(self, image: Any) -> Tensor:
        return self.plain.pixels(image)


@dataclass(frozen=True, kw_only=True)
class CaptionEvaluationData(CaptionData):
    """Validation images have captions, too."""

    def evaluation_transform(self) -> AroundPixels:
        return AroundPixels(super().evaluation_transform(), _with_caption)


class PromptSession:
    """A model that takes tokens; it has no state."""

    def __init__(self, model: CaptionDETR) -> None:
        self._model = model

    def step(self, images: ImageBatch, prompt: Tokens | None = None) -> Output:
        assert prompt is not None
        return self._model(images, prompt)

    def reset(self) -> None:
        pass


class TokenRecall(MeanEvaluator):
    """The fraction of an image's tokens that some query predicts."""

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[float]:
        predicted = output.final.logits[..., :-1].softmax(-1).amax(1)  # (B, T)
        for row, target in zip(predicted, batch.targets, strict=True):
            expected = target.word_map.any(0)
            yield float((row[expected] > 1 / VOCABULARY).float().mean())


@dataclass(frozen=True, kw_only=True)
class CaptionPreset(Preset):
    """Grounding on captions of class numbers."""

    model: DETRConfig = CONFIG
    data: CaptionData = field(default_factory=lambda: CaptionEvaluationData(num_workers=0, image_size=48, max_size=80))
    recipe: Recipe = RECIPE

    def num_classes(self, categories: Categories) -> int:
        return VOCABULARY

    def build_model(self, num_classes: int, *, strict_no_object: bool = False) -> Detector:
        return CaptionDETR()

    def build_task(self, model: Detector, num_classes: int) -> Task:
        return with_model(CaptionTask(), model)

    def session(self, model: Detector) -> Session:
        return PromptSession(model)  # type: ignore[arg-type]

    def prompt(self, batch: Batch) -> Tokens:
        return batch.tokens

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> TokenRecall:
        return TokenRecall("token_recall")

    def metrics(self, data: DetectionData) -> list[str]:
        return ["token_recall"]

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        return ("token_recall",)

    @property
    def draws_predictions(self) -> bool:
        return False


# --------------------------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True, kw_only=True)
class VideoData(ClipData):
    """Validation images, in their order, are the frames of videos."""

    def collate(self, samples: Sequence[Sample], shape: tuple[int, int], device: torch.device) -> Any:
        if "frames" in samples[0].extras:
            return super().collate(samples, shape, device)
        return super(ClipData, self).collate(samples, shape, device)

    def evaluation_groups(
        self, data: DetectionData, shapes: Mapping[int, tuple[int, int]], batch_size: int
    ) -> list[list[tuple[int, ...]]]:
        return [[(start + number,) for number in range(FRAMES)] for start in range(0, len(data), FRAMES)]


class KeptTracks(MeanEvaluator):
    """The fraction of queries that have the track id of the frame before; 0 in the first frame of a video."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._before: Tensor | None = None
        self._count = 0

    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[float]:
        assert isinstance(output, TrackingOutput)
        first = self._count % FRAMES == 0
        before, self._before, self._count = self._before, output.state.content, self._count + 1
        yield 0.0 if first or before is None else float((output.state.ids >= 0).float().mean())


class CountingSession(TrackingSession):
    """Counts the videos that it has started."""

    resets = 0

    def reset(self) -> None:
        super().reset()
        CountingSession.resets += 1


@dataclass(frozen=True, kw_only=True)
class ClipPreset(Preset):
    """Tracking on clips."""

    model: DETRConfig = CONFIG
    data: ClipData = field(default_factory=lambda: VideoData(num_workers=0, image_size=48, max_size=80))
    recipe: Recipe = RECIPE

    def num_classes(self, categories: Categories) -> int:
        return NUM_CLASSES

    def build_model(self, num_classes: int, *, strict_no_object: bool = False) -> Detector:
        return ClipDETR()

    def build_task(self, model: Detector, num_classes: int) -> Task:
        return with_model(ClipTask(), model)

    def session(self, model: Detector) -> Session:
        return CountingSession(model)  # type: ignore[arg-type]

    def evaluator(self, categories: Categories, data: DetectionData, **options: Any) -> KeptTracks:
        return KeptTracks("kept")

    def metrics(self, data: DetectionData) -> list[str]:
        return ["kept"]

    def headlines(self, data: DetectionData) -> tuple[str, ...]:
        return ("kept",)

    @property
    def draws_predictions(self) -> bool:
        return False


def with_model(task: Task, model: Detector) -> Task:
    """The task around another model."""
    task.model = model
    return task


def captions() -> CaptionPreset:
    return CaptionPreset(name="mini-captions")


def clips() -> ClipPreset:
    return ClipPreset(name="mini-clips")
