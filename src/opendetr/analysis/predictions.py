"""Collect the predictions of a detector for a dataset in one pass: all queries and all decoder layers.

Shape letters: I images, Q queries, n detections, m objects.
Frame: a box is x, y, w, h in pixels of the original image, unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opendetr.config import ConfigError
from opendetr.data import DataError, DetectionData
from opendetr.evaluation import DatasetDetections, DetectionEvaluator, Found, Objects
from opendetr.inference import Predictor
from opendetr.postprocess import detect_with_queries
from opendetr.results import Detections
from opendetr.scoring import ScoreThresholds
from opendetr.structures import Batch, ImageBatch, Output, Predictions


@dataclass(frozen=True)
class Collected(DatasetDetections):
    """The ground truth of a dataset, and what a detector predicts for it; `found` are the detections of the last layer.

    Attributes:
        layers: the detections of each decoder layer, first to last, as the published post-processing selects them.
        strict: those of the last layer without queries whose most probable class is "no object"; None for a model
            without this class.
        query_boxes: (r, Q, 4) float32, the box of every query of the last layer in the r images that could be read,
            cxcywh in 0..1 of the image.
        query_scores: (r, Q) float32, the score of the best class of every query.
        query_labels: (r, Q) int64, the dataset's label of this class; -1 for a class that the dataset lacks.
        query_images: (r,) int64, the index of each of these images.
        learned_queries: whether query q is the same in all images. The queries of a two-stage model are not.
        known: the labels of the dataset that the model knows.
        seconds_per_image: time of the model and its post-processing.
        unreadable: one message per image that could not be read. These images count as images without detections.
    """

    layers: tuple[Found, ...]
    strict: Found | None
    query_boxes: np.ndarray
    query_scores: np.ndarray
    query_labels: np.ndarray
    query_images: np.ndarray
    learned_queries: bool
    known: frozenset[int]
    seconds_per_image: float
    unreadable: tuple[str, ...]


def collect(
    detector: Predictor,
    data: DetectionData,
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """Run a detector on a dataset once, and keep the boxes and scores of all queries and decoder layers.

    Raises:
        ConfigError: the model needs more than an image, so it cannot be analysed.
        DataError: model and dataset have no class in common, or the split has no images.
    """
    require_detector(detector)
    if not len(data):
        raise DataError(f"{data.folder}: the split {data.split} has no images; choose another split")
    collector = _Collector(detector, data)
    seconds, unreadable = detector.run(collector, data, batch_size=batch_size, progress=progress)
    return collector.collected(detector, seconds, unreadable)


def require_detector(detector: Predictor) -> None:
    """Raise ConfigError for a model that takes text, patches or videos."""
    model, preset = detector.model, detector.preset
    needs = {
        "texts": model.takes_text,
        "patches": bool(model.max_patches),
        "videos": preset.follows_objects,
    }
    for inputs, needed in needs.items():
        if needed:
            raise ConfigError(
                f"{preset.name}: works on {inputs}, and such models cannot be analysed so far; "
                "give a detector of images"
            )


@dataclass(frozen=True)
class _ImagePredictions:
    """The predictions for one image: detections and their queries by layer and without no-object; all queries."""

    layers: list[tuple[Detections, Tensor]]
    strict: tuple[Detections, Tensor] | None
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class _Collector:
    """Collects the predictions of a detector; an `Evaluator` without metrics."""

    def __init__(self, detector: Predictor, data: DetectionData) -> None:
        self._categories = detector.categories
        self._data = data
        self._known = DetectionEvaluator(detector.categories, data)  # pairs the classes by name
        self._positions = {image.id: position for position, image in enumerate(data.images)}
        self._images: dict[int, _ImagePredictions] = {}

    @torch.no_grad()
    def results(self, output: Output, images: ImageBatch, batch: Batch) -> Iterator[_ImagePredictions]:
        """Yield the predictions for each image of a batch."""
        sizes = torch.tensor([target.original_size for target in batch.targets])
        layers = [self._detections(layer, sizes) for layer in output.layers]
        strict = None
        try:
            final = replace(output.final, scoring=output.final.scoring.strictly())
            strict = self._detections(final, sizes)
        except ValueError:  # no class "no object"
            pass
        probabilities = output.final.scoring.probabilities(output.final.logits.float())
        scores, labels = (values.cpu() for values in probabilities.max(-1))
        known = self._known.things[labels].numpy()
        boxes = output.final.boxes.float().cpu().numpy()
        for index in range(len(batch)):
            yield _ImagePredictions(
                [layer[index] for layer in layers],
                None if strict is None else strict[index],
                boxes[index],
                scores[index].numpy(),
                known[index],
            )

    def _detections(self, layer: Predictions, sizes: Tensor) -> list[tuple[Detections, Tensor]]:
        found = detect_with_queries(layer, sizes, self._categories)
        return [self._known.known_things(*of_image) for of_image in found]

    def update(self, batch: Batch, results: Iterable[_ImagePredictions]) -> None:
        """Add the predictions for a batch."""
        for target, result in zip(batch.targets, results, strict=True):
            self._images[self._positions[target.image_id]] = result

    def leave_out(self, image_ids: Iterable[int]) -> None:
        """Do nothing: an image without predictions has no detections."""

    def gather(self) -> None:
        """Do nothing: an analysis runs in one process."""

    def compute(self) -> dict[str, float | None]:
        """No metrics."""
        return {}

    def score_thresholds(self) -> ScoreThresholds | None:
        """No thresholds."""
        return None

    def evaluation(self, seconds_per_image: float, unreadable: Iterable[str]) -> None:
        """No evaluation."""

    def collected(self, detector: Predictor, seconds: float, unreadable: Sequence[str]) -> Collected:
        """Everything that was collected, in the order of the images."""
        images = sorted(self._images.items())
        num_layers = len(images[0][1].layers) if images else 1
        layers = [Found.of([(at, *image.layers[layer]) for at, image in images]) for layer in range(num_layers)]
        strict = [(at, *image.strict) for at, image in images if image.strict is not None]
        model = detector.model
        q = model.num_queries
        return Collected(
            self._data,
            Objects.of(self._data),
            layers[-1],
            tuple(layers),
            Found.of(strict) if strict else None,
            np.stack([image.boxes for _, image in images]) if images else np.empty((0, q, 4), np.float32),
            np.stack([image.scores for _, image in images]) if images else np.empty((0, q), np.float32),
            np.stack([image.labels for _, image in images]) if images else np.empty((0, q), np.int64),
            np.array([at for at, _ in images], np.int64),
            not model.has_proposals,
            frozenset(self._known.things[self._known.things >= 0].tolist()),
            seconds,
            tuple(unreadable),
        )
