"""All analyses of a detector on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from opendetr.analysis.cost import Cost, analyse_cost, input_size
from opendetr.analysis.errors import Errors, analyse_errors
from opendetr.analysis.intervals import Intervals, analyse_intervals
from opendetr.analysis.layers import LayerScores, NoObjectScores, analyse_layers, analyse_no_object
from opendetr.analysis.many import ManyOfOne, analyse_many
from opendetr.analysis.objects import ObjectFacts, analyse_objects
from opendetr.analysis.predictions import Collected, collect
from opendetr.analysis.queries import QueryFacts, analyse_queries
from opendetr.data import DetectionData
from opendetr.evaluation import SIZES, Operation, analyse_operation, label_thresholds
from opendetr.inference import Predictor


@dataclass(frozen=True)
class Analysis:
    """The numbers of all analyses.

    Attributes:
        model: name of the model.
        intervals: the metrics with their intervals.
        layers: AP after each decoder layer.
        no_object: AP with both rules for "no object"; None for a model without this class.
        errors: the errors by kind.
        errors_by_size: the same for small, medium and large objects.
        operation: confusions, images and calibration at the score thresholds.
        queries: what each query does.
        objects: the objects of the dataset.
        many: images of many objects of one class; None if the detector knows none that are drawn.
        cost: parameters, operations and speed.
        unreadable: messages about images that could not be read.
    """

    model: str
    intervals: Intervals
    layers: LayerScores
    no_object: NoObjectScores | None
    errors: Errors
    errors_by_size: dict[str, Errors]
    operation: Operation
    queries: QueryFacts
    objects: ObjectFacts
    many: ManyOfOne | None
    cost: Cost
    unreadable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Analysed:
    """The result of `analyse`: the numbers, and what the charts are drawn from.

    Attributes:
        analysis: the numbers.
        collected: the predictions.
        many_image: the image of many objects; None if there is none.
    """

    analysis: Analysis
    collected: Collected
    many_image: Image.Image | None


def analyse(
    detector: Predictor,
    data: DetectionData,
    *,
    images: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Analysed:
    """Run a detector on a dataset once, and analyse its predictions.

    Args:
        detector: the detector.
        data: the images of a split and their annotations.
        images: maximum number of images, evenly spread over the split; None for all.
        batch_size: images per forward pass.
        progress: called with the number of finished images and the number of all images.

    Raises:
        ConfigError: the model needs texts, patches or videos.
        DataError: model and dataset have no class in common, or the split has no images.
    """
    if images is not None:
        data = detector.preset.data.evaluation_subset(data, images)
    collected = collect(detector, data, batch_size=batch_size, progress=progress)
    operation = analyse_operation(collected)
    by_label, default = label_thresholds(collected, operation.points)
    by_name = dict(zip(collected.names, by_label.tolist(), strict=True))
    many = analyse_many(detector, lambda name: by_name.get(name, default))
    first = data.images[0]
    size = input_size(detector.preset, first.height, first.width)
    analysis = Analysis(
        model=detector.preset.name,
        intervals=analyse_intervals(collected),
        layers=analyse_layers(collected),
        no_object=analyse_no_object(collected),
        errors=analyse_errors(collected),
        errors_by_size={name: analyse_errors(collected, name) for name in SIZES if name != "all"},
        operation=operation,
        queries=analyse_queries(collected, by_label, default),
        objects=analyse_objects(collected),
        many=many[0] if many else None,
        cost=analyse_cost(detector, size, collected.seconds_per_image),
        unreadable=collected.unreadable,
    )
    return Analysed(analysis, collected, many[1] if many else None)
