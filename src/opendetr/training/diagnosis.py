"""Find out why a run has learned nothing.

Independent checks examine the facts about the run. The most certain causes come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import fmean

from opendetr.data import DataError, count_noun
from opendetr.training.checkpoint import CheckpointError
from opendetr.training.run_facts import PredictionFacts, RunFacts, collect_facts
from opendetr.weights import WeightsError

FAILED_BELOW = 0.01
"""A run has learned nothing if its main metric stays below this value."""

_MIN_STEPS, _MIN_STEPS_FROM_DETECTOR = 1000, 200
# What a run starts from, by its initial weights; others are those of a detector.
_ORIGINS = {"none": "random weights", "imagenet": "a backbone alone", "pretrained": "pre-trained weights"}
_MAX_FRACTION = 1.5  # if no coordinate is larger, boxes are fractions of the image, not pixels
_MIN_LOSS_STEPS = 100  # fewer steps do not show whether the loss falls
_MIN_IMAGES_COMPARED = 10  # objects of fewer images differ in size by chance


class Cause(StrEnum):
    """A reason why a run has learned nothing."""

    UNREADABLE_IMAGES = "unreadable images"
    CLASS_NAMES = "class names never match"
    WRONG_SCALE = "boxes in the wrong scale"
    DEGENERATE_BOXES = "degenerate boxes"
    TOO_MANY_OBJECTS = "more objects than queries"
    FROZEN_RANDOM_BACKBONE = "frozen random backbone"
    RATE_TOO_LARGE = "learning rate too large"
    RATE_TOO_SMALL = "learning rate too small"
    UNINITIALISED_HEAD = "head without initialisation"
    SHIFTED_LABELS = "shifted labels"
    LOSS_NOT_FALLING = "loss not falling"
    TOO_FEW_STEPS = "too few steps"


@dataclass(frozen=True)
class Diagnosis:
    """A cause of a run's failure.

    Attributes:
        cause: the cause.
        text: the evidence, and what to do, in one line.
    """

    cause: Cause
    text: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.text}"


def diagnose(facts: RunFacts) -> list[Diagnosis]:
    """The causes why a run has learned nothing, the most certain first. Empty for a run that has learned something.

    The two symptoms, a loss that does not fall and too few steps, can result from any cause. They are named only if no
    other cause is found.
    """
    if facts.best is not None and facts.best >= FAILED_BELOW:
        return []
    causes = [diagnosis for check in CHECKS if (diagnosis := check(facts)) is not None]
    return causes or [diagnosis for check in SYMPTOMS if (diagnosis := check(facts)) is not None][:1]


def diagnose_run(folder: Path, *, device: str = "auto") -> list[str]:
    """The lines to print at the end of a run. None for a run that has learned something.

    If the run cannot be examined, the only line says why.
    """
    try:
        facts = collect_facts(folder, device=device)
    except (DataError, WeightsError, CheckpointError) as error:
        return [f"diagnosis: not possible, {error}"]
    return report_lines(facts)


def report_lines(facts: RunFacts) -> list[str]:
    """The main metric with the most probable cause, and up to two further causes, one per line.

    Empty for a run that has learned something.
    """
    if facts.best is not None and facts.best >= FAILED_BELOW:
        return []
    outcome = "there was no evaluation" if facts.best is None else f"the best {facts.metric} was {facts.best:.3f}"
    outcome += f" in {count_noun(facts.steps, 'step')}"
    causes = diagnose(facts)
    lines = [f"{outcome}; probable cause: {diagnosis}" for diagnosis in causes[:1]]
    lines += [f"also possible: {diagnosis}" for diagnosis in causes[1:3]]
    return lines or [
        f"{outcome}, and the checks found no cause; train longer, and compare ground truth and predictions in images/"
    ]


# -------------------------------------------------------------------------------------------------------------- checks


def unreadable_images(facts: RunFacts) -> Diagnosis | None:
    """At least half of the opened images of a split cannot be read."""
    for name, split in (("training", facts.train), ("validation", facts.val)):
        if split.read and 2 * split.unreadable >= split.read:
            return Diagnosis(
                Cause.UNREADABLE_IMAGES,
                f"{split.unreadable} of {split.read} {name} images cannot be read ({split.first_unreadable}); "
                "`opendetr data check` lists them",
            )
    return None


def class_names(facts: RunFacts) -> Diagnosis | None:
    """Training and validation images have no class in common."""
    trained, evaluated = facts.train.class_counts, facts.val.class_counts
    if not trained or not evaluated or trained.keys() & evaluated.keys():
        return None
    return Diagnosis(
        Cause.CLASS_NAMES,
        f"the training images have objects of {_first_names(trained)}, the validation images of "
        f"{_first_names(evaluated)}; give the same classes the same names and ids in both splits",
    )


def wrong_scale(facts: RunFacts) -> Diagnosis | None:
    """Boxes are fractions where pixels are expected, lie outside the images, or differ in scale between the splits."""
    for name, split in (("training", facts.train), ("validation", facts.val)):
        if split.objects and split.largest_coordinate <= _MAX_FRACTION:
            return Diagnosis(
                Cause.WRONG_SCALE,
                f"the boxes of the {name} images end at {split.largest_coordinate:.2f} pixels, so they are probably "
                "fractions of the image; multiply them by its width and height",
            )
        outside = split.wrong_boxes - split.boxes_without_area
        if outside > 0.5 * max(split.objects, 1):
            return Diagnosis(
                Cause.WRONG_SCALE,
                f"{outside} boxes of the {name} images extend beyond the image; they were probably "
                "annotated at another image size, so scale them to the size of the image files",
            )
    small, large = sorted((facts.train.sides, facts.val.sides))
    if small > 0 and large > 4 * small and _images_of_smaller_split(facts) >= _MIN_IMAGES_COMPARED:
        return Diagnosis(
            Cause.WRONG_SCALE,
            f"a typical object is {100 * facts.train.sides:.0f} % of a training image and {100 * facts.val.sides:.0f} "
            "% of a validation image in size; compare both with `opendetr data show`, and scale the boxes of one",
        )
    return None


def _images_of_smaller_split(facts: RunFacts) -> int:
    return min(len(facts.train.object_counts), len(facts.val.object_counts))


def degenerate_boxes(facts: RunFacts) -> Diagnosis | None:
    """Most boxes of the data have no area or are thinner than 2 pixels, or the predicted boxes have collapsed."""
    for name, split in (("training", facts.train), ("validation", facts.val)):
        if split.boxes_without_area > max(split.objects, 1):
            return Diagnosis(
                Cause.DEGENERATE_BOXES,
                f"{split.boxes_without_area} boxes of the {name} images have no area or are invalid, {split.objects} "
                "are usable; check the order of the four numbers of a box with `opendetr data check`",
            )
        if split.objects and split.pixel_sides < 2 and split.largest_coordinate > _MAX_FRACTION:
            return Diagnosis(
                Cause.DEGENERATE_BOXES,
                f"half of the boxes of the {name} images are thinner than 2 pixels; check the order of the four "
                "numbers of a box (x, y, width, height in COCO) with `opendetr data show`",
            )
    predicted = facts.train_predictions
    if predicted is not None and facts.train.sides > 0 and predicted.sides < 0.05 * facts.train.sides:
        return Diagnosis(
            Cause.DEGENERATE_BOXES,
            f"the predicted boxes have collapsed: a typical one is {100 * predicted.sides:.2f} % of the image in size, "
            f"a typical object {100 * facts.train.sides:.0f} %; start again from other weights "
            "or with a lower learning rate",
        )
    return None


def too_many_objects(facts: RunFacts) -> Diagnosis | None:
    """At least a quarter of the training images have more objects than the model has queries."""
    crowded = sum(count > facts.num_queries for count in facts.train.object_counts)
    if 4 * crowded < max(len(facts.train.object_counts), 1):
        return None
    most = max(facts.train.object_counts)
    return Diagnosis(
        Cause.TOO_MANY_OBJECTS,
        f"{crowded} of {len(facts.train.object_counts)} training images have more objects than the {facts.num_queries} "
        f"queries of the model; train with --num-queries {max(most, 2 * facts.num_queries)}",
    )


def frozen_random_backbone(facts: RunFacts) -> Diagnosis | None:
    """The backbone started from random weights and is not trained."""
    if facts.weights != "none":
        return None
    is_frozen = any(part.split(".")[0] == "backbone" for part in facts.freeze) or facts.frozen_stages > 2
    if not is_frozen and facts.backbone_learning_rate > 0:
        return None
    return Diagnosis(
        Cause.FROZEN_RANDOM_BACKBONE,
        "the backbone has random weights and is not trained; start from --weights published or imagenet, or leave out "
        "--freeze",
    )


def rate_too_large(facts: RunFacts) -> Diagnosis | None:
    """The run diverged, or its learning rate is at least 50 times that of the catalogue."""
    if not facts.diverged and facts.learning_rate < 50 * facts.usual_learning_rate:
        return None
    evidence = "a loss, gradient or weight was not finite" if facts.diverged else "nothing was learned"
    return Diagnosis(
        Cause.RATE_TOO_LARGE,
        f"{evidence} with a learning rate of {facts.learning_rate:g}; the default of {facts.model} is "
        f"{facts.usual_learning_rate:g}; leave out --lr, or lower it",
    )


def rate_too_small(facts: RunFacts) -> Diagnosis | None:
    """The learning rate of the run is at most a fiftieth of that of the catalogue."""
    reached = facts.learning_rate if facts.steps > facts.warmup_steps else max(facts.rates, default=0.0)
    # The setting decides, not the rate that was reached: a run that ended in its warm-up was only too short.
    if facts.learning_rate > facts.usual_learning_rate / 50:
        return None
    return Diagnosis(
        Cause.RATE_TOO_SMALL,
        f"the learning rate was at most {reached:g}; the default of {facts.model} is {facts.usual_learning_rate:g}; "
        "leave out --lr, or raise it",
    )


def uninitialised_head(facts: RunFacts) -> Diagnosis | None:
    """A class head has equal or exploded weights, or all scores are equal."""
    predicted = facts.train_predictions
    constant = [name for name, (spread, _) in facts.class_rows.items() if name.endswith("weight") and spread < 1e-6]
    exploded = [name for name, (_, largest) in facts.class_rows.items() if largest > 50]
    if constant or exploded:
        name = (constant or exploded)[0]
        evidence = f"all weights of {name} are equal" if constant else f"a value of {name} is above 50"
    elif predicted is not None and predicted.score_spread < 1e-6:
        evidence = "all predictions have the same score"
    else:
        return None
    return Diagnosis(
        Cause.UNINITIALISED_HEAD,
        f"{evidence}, so the class head was not initialised or has diverged; start from other weights",
    )


def shifted_labels(facts: RunFacts) -> Diagnosis | None:
    """The boxes match, and most of their labels are off by one."""
    for name, predicted in (("validation", facts.val_predictions), ("training", facts.train_predictions)):
        shift = None if predicted is None else _shift(predicted)
        if shift is not None:
            assert predicted is not None
            return Diagnosis(
                Cause.SHIFTED_LABELS,
                f"predicted boxes match {predicted.matched} of {predicted.objects} objects in {name} images, and most "
                f"of their labels are {'one above' if shift > 0 else 'one below'} those of the annotations; check "
                "whether class ids start at 0 or 1 in all annotation files and weights",
            )
    return None


def _shift(predicted: PredictionFacts) -> int | None:
    """The shift, 1 or -1 modulo the number of classes, of most matched labels. None without such a shift."""
    # The labels of fewer matches can all be off by chance.
    if predicted.matched < max(8, 0.2 * predicted.objects) or predicted.num_classes < 2:
        return None
    shifts = Counter((label - true) % predicted.num_classes for true, label in predicted.labels)
    # With only one label in the data or in the predictions, wrong labels look like a shift.
    distinct = min(len(set(labels)) for labels in zip(*predicted.labels, strict=True))
    for shift in (1, -1):
        if distinct > 1 and shifts[shift % predicted.num_classes] >= 0.8 * predicted.matched:
            return shift
    return None


def loss_not_falling(facts: RunFacts) -> Diagnosis | None:
    """The loss has not fallen by 5 % from the start to the end."""
    losses = [loss for loss in facts.losses if loss is not None]
    if facts.steps < _MIN_LOSS_STEPS or len(losses) < 20:
        return None
    part = max(5, len(losses) // 10)
    first, last = fmean(losses[:part]), fmean(losses[-part:])
    if last < 0.95 * first:
        return None
    return Diagnosis(
        Cause.LOSS_NOT_FALLING,
        f"the loss was {first:.2f} at the start and is {last:.2f} after {facts.steps:,} steps; check the annotations "
        "with `opendetr data show`, and try a tenth of the learning rate",
    )


def too_few_steps(facts: RunFacts) -> Diagnosis | None:
    """The run has fewer steps than training from its initial weights needs."""
    needed = max(_MIN_STEPS if facts.weights in _ORIGINS else _MIN_STEPS_FROM_DETECTOR, 2 * facts.warmup_steps)
    if facts.steps >= needed:
        return None
    origin = _ORIGINS.get(facts.weights, "trained weights")
    return Diagnosis(
        Cause.TOO_FEW_STEPS,
        f"a model that starts from {origin} needs at least {needed:,} steps; give it more --epochs or --time",
    )


def _first_names(names: object) -> str:
    known = list(names)  # type: ignore[call-overload]
    return ", ".join(known[:5]) + (" ..." if len(known) > 5 else "")


CHECKS: tuple[Callable[[RunFacts], Diagnosis | None], ...] = (
    unreadable_images,
    class_names,
    wrong_scale,
    degenerate_boxes,
    too_many_objects,
    frozen_random_backbone,
    rate_too_large,
    rate_too_small,
    uninitialised_head,
    shifted_labels,
)
"""Checks for causes, the most certain first."""

SYMPTOMS: tuple[Callable[[RunFacts], Diagnosis | None], ...] = (loss_not_falling, too_few_steps)
"""Checks for symptoms that many causes have in common."""
