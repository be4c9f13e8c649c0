"""The facts about a run that a diagnosis needs: its settings, metrics, data and last weights.

Frame: a box is x, y, w, h in pixels of the original image. Sizes are fractions of the image unless stated otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opendetr.config import ConfigError
from opendetr.data import DetectionData, FaultKind, ImageError, read_record, spread
from opendetr.evaluation import match_boxes
from opendetr.inference import Predictor, load
from opendetr.presets import Preset, get_preset, preset_from_dict
from opendetr.results import Detections
from opendetr.structures import NonFiniteError
from opendetr.training.callbacks import read_metrics
from opendetr.training.checkpoint import find_checkpoint, load_checkpoint
from opendetr.training.settings import CONFIG_FILE, read_config, require_run
from opendetr.weights import WeightsError, read_state

_NUM_OPENED = 24  # images of a split that are opened to check whether they can be read
_NUM_PREDICTED = 16  # images of a split for which predictions are made
_WITHOUT_AREA = frozenset({FaultKind.NO_AREA, FaultKind.INVALID_BOX})
_WRONG_BOX_KINDS = _WITHOUT_AREA | {FaultKind.OUT_OF_IMAGE}


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """The facts about a split of the data.

    Attributes:
        objects: number of objects without crowd regions.
        object_counts: number of objects of each image.
        class_counts: number of objects by class name, for classes with objects.
        wrong_boxes: number of boxes that extend outside their image, have no area or are invalid.
        boxes_without_area: number of boxes that have no area or are invalid. `objects` does not count these.
        largest_coordinate: largest coordinate of all boxes, in pixels.
        sides: median over the objects of the mean of width and height, as a fraction of the image.
        pixel_sides: median over the objects of the smaller side, in pixels of the image.
        read: number of images that were opened.
        unreadable: number of opened images that could not be read.
        first_unreadable: the message about the first unreadable image.
    """

    objects: int
    object_counts: tuple[int, ...]
    class_counts: Mapping[str, int]
    wrong_boxes: int
    largest_coordinate: float
    sides: float
    pixel_sides: float
    read: int
    unreadable: int
    first_unreadable: str = ""
    boxes_without_area: int = 0


@dataclass(frozen=True, kw_only=True)
class PredictionFacts:
    """The facts about the predictions of the last weights for a few images of a split.

    Attributes:
        objects: number of objects in these images.
        matched: number of objects that a prediction matches at IoU 0.5, whatever its label. Of each image, only the
            best predictions count: as many as it has objects, at least five.
        labels: the label in the ground truth and the predicted label of each matched object; -1 for a class that the
            model lacks.
        num_classes: number of classes of the model.
        sides: median over these predictions of the mean of width and height, as a fraction of the image.
        score_spread: standard deviation of the scores of all predictions.
    """

    objects: int
    matched: int
    labels: tuple[tuple[int, int], ...]
    num_classes: int
    sides: float
    score_spread: float


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts about a run.

    Attributes:
        model: name of the preset.
        weights: the initial weights: "none", "imagenet", "published", or a path or address; "pretrained" for those of a
            pre-training model.
        metric: name of the main metric.
        best: best value of the main metric; None without an evaluation.
        num_queries, learning_rate, backbone_learning_rate, warmup_steps, freeze, frozen_stages: the settings.
        usual_learning_rate: the learning rate of the preset in the catalogue.
        steps: number of steps taken.
        losses: total loss of each step in the metrics file; None for a loss that is not finite.
        rates: learning rate of each step in the metrics file.
        diverged: whether a loss, a gradient, a weight or a prediction was not finite.
        class_rows: standard deviation and largest absolute value of each tensor of the class heads, by name.
        train, val: the facts about the two splits.
        train_predictions, val_predictions: the facts about predictions for some images of the two splits. None without
            finite weights or readable images.
    """

    model: str
    weights: str
    metric: str
    best: float | None
    num_queries: int
    learning_rate: float
    usual_learning_rate: float
    backbone_learning_rate: float
    warmup_steps: int
    freeze: tuple[str, ...]
    frozen_stages: int
    steps: int
    losses: tuple[float | None, ...]
    rates: tuple[float, ...]
    diverged: bool
    class_rows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    train: SplitFacts
    val: SplitFacts
    train_predictions: PredictionFacts | None = None
    val_predictions: PredictionFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        return asdict(self)


def collect_facts(folder: Path, *, device: str = "auto") -> RunFacts:
    """Collect the facts about a run from its files, its data, and predictions of its last weights for a few images.

    Raises:
        ConfigError: the folder is not a run folder, or the model of the run is not evaluated.
        DataError: the data of the run is missing or cannot be opened.
    """
    require_run(folder)
    record, about = read_config(folder / CONFIG_FILE)
    if "data" not in about:
        raise ConfigError(f"{folder / CONFIG_FILE}: does not name the data of the run; give the folder of a run")
    preset = preset_from_dict(record)
    splits = preset.data.open_splits(Path(about["data"]))
    rows = read_metrics(folder)
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row["metrics"] for row in rows if row["kind"] == "evaluation"]
    metric = next(iter(preset.metrics(splits["val"])), None)
    if metric is None:
        raise ConfigError(f"{folder}: {preset.name} has no metrics to judge the run by; see the losses in curves.png")
    detector, rows_of_head, is_finite = _last_weights(folder, device)
    predictions: dict[str, PredictionFacts | None] = {"train": None, "val": None}
    try:
        if detector is not None and preset.draws_predictions and not detector.model.takes_text:
            predictions = {role: prediction_facts(detector, splits[role]) for role in predictions}
    except NonFiniteError:
        is_finite = False
    return RunFacts(
        model=preset.name,
        weights="pretrained" if about.get("pretrained") else str(about["weights"]),
        metric=metric,
        best=max((float(values.get(metric) or 0.0) for values in evaluations), default=None),
        num_queries=preset.model.num_queries,
        learning_rate=preset.recipe.learning_rate,
        usual_learning_rate=get_preset(preset.name).recipe.learning_rate,
        backbone_learning_rate=preset.recipe.backbone_learning_rate,
        warmup_steps=_warmup_steps(folder, preset),
        freeze=preset.recipe.freeze,
        frozen_stages=getattr(preset.model.backbone, "frozen_stages", 0),  # of a ResNet
        steps=max((row["step"] for row in steps), default=0),
        losses=tuple(row["loss"] for row in steps),
        rates=tuple(row["learning_rate"] for row in steps),
        diverged=not is_finite or any(row["kind"] == "nonfinite" for row in rows),
        class_rows=rows_of_head,
        train=split_facts(splits["train"]),
        val=split_facts(splits["val"]),
        train_predictions=predictions["train"],
        val_predictions=predictions["val"],
    )


def _warmup_steps(folder: Path, preset: Preset) -> int:
    """The warm-up of the recipe, or that of the plan if the recipe sets none."""
    if preset.recipe.warmup_steps is not None:
        return preset.recipe.warmup_steps
    plan = load_checkpoint(folder / "last").facts["plan"] if find_checkpoint(folder / "last") else None
    return plan["warmup_steps"] if plan else 0


def split_facts(data: DetectionData) -> SplitFacts:
    """Collect the facts about a split. Opens some of its images."""
    boxes, sizes, labels = [], [], Counter[str]()
    for image in data.images:
        for obj in image.objects:
            if not obj.crowd:
                boxes.append(obj.box)
                sizes.append((image.width, image.height))
                labels[data.categories.names[data.categories.label_of_id(obj.category_id)]] += 1
    corners, image_sizes = np.array(boxes).reshape(-1, 4), np.array(sizes).reshape(-1, 2)
    failures = []
    opened = spread(data.images, _NUM_OPENED)
    for image in opened:
        try:
            read_record(image)
        except ImageError as error:
            failures.append(str(error))
    return SplitFacts(
        objects=len(boxes),
        object_counts=tuple(sum(not obj.crowd for obj in image.objects) for image in data.images),
        class_counts=dict(labels),
        wrong_boxes=_count_faults(data, _WRONG_BOX_KINDS),
        boxes_without_area=_count_faults(data, _WITHOUT_AREA),
        largest_coordinate=float((corners[:, :2] + corners[:, 2:]).max()) if boxes else 0.0,
        sides=_median((corners[:, 2:] / image_sizes).mean(1)),
        pixel_sides=_median(corners[:, 2:].min(1)),
        read=len(opened),
        unreadable=len(failures),
        first_unreadable=failures[0] if failures else "",
    )


def prediction_facts(detector: Predictor, data: DetectionData) -> PredictionFacts | None:
    """Collect the facts about the predictions for a few images with objects. None if no image can be read."""
    labels: list[tuple[int, int]] = []
    sides: list[float] = []
    scores: list[float] = []
    num_objects, known = 0, detector.categories.names
    for image in spread([image for image in data.images if image.objects], _NUM_PREDICTED):
        try:
            detections = detector.predict(image.path, min_score=0.0)
        except ImageError:
            continue
        assert isinstance(detections, Detections)  # of one image
        objects = [obj for obj in image.objects if not obj.crowd]
        best = detections[: max(5, len(objects))]
        height, width = detections.size
        corners = best.boxes.double().numpy()
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
        true_names = [data.categories.names[data.categories.label_of_id(obj.category_id)] for obj in objects]
        true_labels = [known.index(name) if name in known else -1 for name in true_names]
        labels += _matched_labels(boxes, best, np.array([obj.box for obj in objects]).reshape(-1, 4), true_labels)
        sides += (boxes[:, 2:] / (width, height)).mean(1).tolist()
        scores += detections.scores.tolist()
        num_objects += len(objects)
    if not scores:
        return None
    return PredictionFacts(
        objects=num_objects,
        matched=len(labels),
        labels=tuple(labels),
        num_classes=len(detector.categories),
        sides=_median(np.array(sides)),
        score_spread=float(np.std(scores)),
    )


def _matched_labels(
    boxes: np.ndarray, detections: Detections, objects: np.ndarray, true_labels: Sequence[int]
) -> list[tuple[int, int]]:
    """The label in the ground truth and the predicted label of each matched object.

    Each box matches at most one object.
    """
    pairs, free = [], np.ones(len(objects), bool)
    for index, label in enumerate(detections.labels.tolist()):
        for position in np.flatnonzero(free).tolist():
            one = match_boxes(boxes[index : index + 1], np.ones(1), objects[position : position + 1], np.zeros(1, bool))
            if one.correct[0]:
                pairs.append((true_labels[position], label))
                free[position] = False
                break
    return pairs


def _last_weights(folder: Path, device: str) -> tuple[Predictor | None, dict[str, tuple[float, float]], bool]:
    """The detector of the last checkpoint, the facts about its class heads, and whether its weights are finite."""
    last = find_checkpoint(folder / "last")
    if last is None:
        return None, {}, True
    path = last / "model.safetensors"
    state = read_state(path)
    is_finite = all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())
    rows = {
        name: (float(value.float().std(correction=0)), float(value.float().abs().max()))
        for name, value in state.items()
        if ".class_head." in f".{name}" or ".class_heads." in f".{name}"
    }
    if not is_finite:
        return None, rows, False
    try:
        return load(path, device=device), rows, True
    except WeightsError:
        return None, rows, True


def _count_faults(data: DetectionData, kinds: Set[FaultKind]) -> int:
    return sum(fault.count for fault in data.fault_counts if fault.kind in kinds)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else 0.0
