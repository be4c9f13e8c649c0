"""The facts about a run that a diagnosis is made from: its settings and metrics, its data, and its last weights.

Frame: a box is x, y, w, h as fractions of the image's width and height.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opendetr.config import ConfigError
from opendetr.data import DetectionData, ImageError, ImageRecord, Kind, read_record
from opendetr.data.formats import open_data
from opendetr.evaluation import match_boxes
from opendetr.inference import Predictor, load
from opendetr.presets import Preset, get_preset, preset_from_dict
from opendetr.results import Detections
from opendetr.structures import NonFiniteError
from opendetr.training.callbacks import read_metrics
from opendetr.training.checkpoint import find_checkpoint, load_checkpoint
from opendetr.training.settings import CONFIG_FILE, read_config
from opendetr.weights import WeightsError, read_state

_IMAGES_READ = 24  # images of a split that are opened to see whether they can be read
_IMAGES_PREDICTED = 16  # images of a split that are predicted
_WRONG_BOX = frozenset({Kind.OUT_OF_IMAGE, Kind.NO_AREA, Kind.INVALID_BOX})


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """The facts about a split of the data.

    Attributes:
        objects: number of objects that are trained or evaluated on.
        object_counts: number of objects of each image.
        class_counts: number of objects of each class that has any, by name.
        wrong_boxes: number of boxes that the image does not contain completely, or not at all.
        largest_coordinate: of all boxes, in pixels.
        sides: the mean of width and height of a typical (median) object, as a fraction of the image.
        pixel_sides: the smaller side of a typical object, in pixels of the image.
        read, unreadable: number of images that were opened, and of those that could not be read.
        first_unreadable: the message about the first of them.
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


@dataclass(frozen=True, kw_only=True)
class PredictionFacts:
    """The facts about the predictions of the last weights for a few images of a split.

    Attributes:
        objects: number of objects in these images.
        matched: number of them that a prediction matches at IoU 0.5 when labels are ignored, among as many of the best
            predictions per image as it has objects, at least five.
        labels: the pairs of true and predicted label of the matched ones; -1 for a class that the model lacks.
        num_classes: number of labels.
        sides: the mean of width and height of a typical (median) box among these predictions.
        score_spread: standard deviation of all scores.
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
        weights: the initial weights: "none", "imagenet", "published", or a path or address.
        metric, best: the main metric and its best value; None without an evaluation.
        num_queries, learning_rate, backbone_learning_rate, warmup_steps, freeze, frozen_stages: the settings.
        usual_learning_rate: that of the preset in the catalogue.
        steps: number of steps taken.
        losses, rates: total loss and learning rate of each step in the metrics file; None for a loss that is not
            finite.
        diverged: whether a loss, a gradient or a weight is not finite.
        class_rows: for each tensor of the class heads, its standard deviation and largest absolute value.
        train, val: the two splits.
        train_predictions, val_predictions: None if there are no weights, or no image can be read.
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
    """Collect the facts about a run: read its files, open its data, and predict a few images with its last weights.

    Raises:
        ConfigError: the folder is not a run folder.
        DataError: the data of the run is missing or cannot be opened.
    """
    record, about = read_config(folder / CONFIG_FILE)
    if "data" not in about:
        raise ConfigError(f"{folder / CONFIG_FILE}: does not name the data of the run; give the folder of a run")
    preset = preset_from_dict(record)
    splits = _open(preset, Path(about["data"]))
    rows = read_metrics(folder)
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row["metrics"] for row in rows if row["kind"] == "evaluation"]
    metric = preset.metrics(splits["val"])[0]
    detector, rows_of_head, is_finite = _last_weights(folder, device)
    predictions: dict[str, PredictionFacts | None] = {"train": None, "val": None}
    try:
        if detector is not None:
            predictions = {role: prediction_facts(detector, splits[role]) for role in predictions}
    except NonFiniteError:
        is_finite = False
    return RunFacts(
        model=preset.name,
        weights=str(about["weights"]),
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
    """The warm-up of the recipe, or that of the plan if the recipe leaves it to the length of the run."""
    if preset.recipe.warmup_steps is not None:
        return preset.recipe.warmup_steps
    plan = load_checkpoint(folder / "last").facts["plan"] if find_checkpoint(folder / "last") else None
    return plan["warmup_steps"] if plan else 0


def _open(preset: Preset, data: Path) -> dict[str, DetectionData]:
    config = preset.data
    return open_data(
        data,
        val_fraction=config.val_fraction,
        train_split=config.train_split,
        val_split=config.val_split,
        strict=config.strict,
        masks=config.masks,
    )


def split_facts(data: DetectionData) -> SplitFacts:
    """The facts about a split; some of its images are opened."""
    boxes, sizes, labels = [], [], Counter[str]()
    for image in data.images:
        for thing in image.objects:
            if not thing.crowd:
                boxes.append(thing.box)
                sizes.append((image.width, image.height))
                labels[data.categories.names[data.categories.label_of_id(thing.category_id)]] += 1
    corners, image_sizes = np.array(boxes).reshape(-1, 4), np.array(sizes).reshape(-1, 2)
    failures = []
    opened = _spread(data.images, _IMAGES_READ)
    for image in opened:
        try:
            read_record(image)
        except ImageError as error:
            failures.append(str(error))
    return SplitFacts(
        objects=len(boxes),
        object_counts=tuple(sum(not thing.crowd for thing in image.objects) for image in data.images),
        class_counts=dict(labels),
        wrong_boxes=sum(fault.count for fault in data.fault_counts if fault.kind in _WRONG_BOX),
        largest_coordinate=float((corners[:, :2] + corners[:, 2:]).max()) if boxes else 0.0,
        sides=_median((corners[:, 2:] / image_sizes).mean(1)),
        pixel_sides=_median(corners[:, 2:].min(1)),
        read=len(opened),
        unreadable=len(failures),
        first_unreadable=failures[0] if failures else "",
    )


def prediction_facts(detector: Predictor, data: DetectionData) -> PredictionFacts | None:
    """The facts about the predictions for a few images with objects; None if none of them can be read."""
    labels: list[tuple[int, int]] = []
    sides: list[float] = []
    scores: list[float] = []
    num_objects, known = 0, detector.categories.names
    for image in _spread([image for image in data.images if image.objects], _IMAGES_PREDICTED):
        try:
            detections = detector.predict(image.path, min_score=0.0)
        except ImageError:
            continue
        assert isinstance(detections, Detections)  # of one image
        things = [thing for thing in image.objects if not thing.crowd]
        best = detections[: max(5, len(things))]
        height, width = detections.size
        corners = best.boxes.double().numpy()
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
        true_names = [data.categories.names[data.categories.label_of_id(thing.category_id)] for thing in things]
        true_labels = [known.index(name) if name in known else -1 for name in true_names]
        labels += _matched_labels(boxes, best, np.array([thing.box for thing in things]).reshape(-1, 4), true_labels)
        sides += (boxes[:, 2:] / (width, height)).mean(1).tolist()
        scores += detections.scores.tolist()
        num_objects += len(things)
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
    """True and predicted label of each object that a box matches; each box and each object takes part once."""
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


def _spread(images: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """At most `count` images, evenly spread over all of them."""
    positions = np.linspace(0, len(images) - 1, min(count, len(images))).round()
    return [images[int(position)] for position in positions]


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else 0.0
