"""The errors of a detector by kind, and the AP50 that each kind costs (TIDE: Bolya et al., 2020).

An incorrect detection overlaps the objects of its image by an IoU below 0.1 (background), from 0.1 to 0.5 (badly
localised), or above (wrong class, or a second detection of an object).

Shape letters: n detections, m objects.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opendetr.analysis.predictions import Collected
from opendetr.evaluation import (
    SIZES,
    ClassMatches,
    Matches,
    average_precisions,
    box_overlaps,
    defined,
    match_found,
    mean_over,
)
from opendetr.visualize import draw_bars

KINDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, IoU of 0.1 to 0.5",
    "both": "wrong class, IoU of 0.1 to 0.5",
    "duplicate": "an object that another detection has found",
    "background": "no object there",
    "missed": "an object without any detection",
}
"""The kinds of errors in the order in which they are fixed, each with its meaning."""
_CLASS, _PLACE, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
_CORRECT = -1
_FOREGROUND_IOU, _BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True)
class Errors:
    """The errors of a detector at IoU 0.5.

    Attributes:
        ap50: AP50 with all errors; None without objects.
        counts: number of errors of each kind.
        lost: by kind, by how much AP50 rises if only this kind is fixed.
        fixed: by kind, AP50 after this kind and all before it are fixed; the last is 1.
        false_positives: by how much AP50 rises without any incorrect detection.
        false_negatives: by how much AP50 rises if objects that no detection matches do not count.
    """

    ap50: float | None
    counts: dict[str, int]
    lost: dict[str, float]
    fixed: dict[str, float]
    false_positives: float
    false_negatives: float


@dataclass(frozen=True)
class LabelledErrors:
    """The kind of every error.

    Attributes:
        matches: the detections, matched at IoU 0.5.
        kind: (n,) the index of the kind in `KINDS`; -1 for correct detections.
        target: (n,) the object that a detection with the wrong class or place should have; -1 for others.
        used: (m,) bool, the objects that a detection matches.
        missed: (m,) bool, the objects that no detection matches and none has as its target.
    """

    matches: Matches
    kind: np.ndarray
    target: np.ndarray
    used: np.ndarray
    missed: np.ndarray


def analyse_errors(collected: Collected, size: str = "all") -> Errors:
    """The errors of the last layer, for objects of all sizes or of one of `SIZES`."""
    threshold = np.array([_FOREGROUND_IOU])
    matches = match_found(
        collected.objects, collected.found, collected.num_images, size=SIZES[size], thresholds=threshold
    )
    errors = label_errors(matches)
    labels = collected.labels
    base = _ap(errors, labels, ())
    names = list(KINDS)

    def gain(fixed: Collection[str]) -> float:
        return 0.0 if base is None else (_ap(errors, labels, fixed) or 0.0) - base

    counted = errors.kind[~matches.ignored[0]]
    counts = {name: int((counted == index).sum()) for index, name in enumerate(names[:-1])}
    return Errors(
        base,
        counts | {"missed": int(errors.missed.sum())},
        {name: gain((name,)) for name in names},
        {name: (base or 0.0) + gain(names[: index + 1]) for index, name in enumerate(names)},
        _without_false_positives(errors, labels) - (base or 0.0),
        _without_false_negatives(errors, labels) - (base or 0.0),
    )


def label_errors(matches: Matches) -> LabelledErrors:
    """Find the kind of every incorrect detection, with TIDE's rules and their order."""
    found, objects = matches.found, matches.objects
    matched, ignored = matches.object[0], matches.ignored[0]
    used = np.zeros(len(objects), bool)
    used[matched[matched >= 0]] = True
    kind = np.full(len(found), _CORRECT)
    target = np.full(len(found), -1)
    wrong = np.flatnonzero((matched < 0) & ~ignored)
    rows_of = _by_image(found.image[wrong], matches.num_images)
    objects_of = _by_image(objects.image, matches.num_images)
    for rows, all_own in zip(rows_of, objects_of, strict=True):
        own = all_own[~objects.crowd[all_own]]
        detections = wrong[rows]
        if not len(own):
            kind[detections] = _BACKGROUND
            continue
        overlaps = box_overlaps(found.box[detections], objects.box[own], np.zeros(len(own), bool))
        same = found.label[detections][:, None] == objects.label[own]
        _label_image(overlaps, same, used[own], kind, target, detections, own)
    wanted = target[target >= 0]
    missed = matches.counted & ~used
    missed[wanted] = False
    return LabelledErrors(matches, kind, target, used, missed)


def _label_image(
    overlaps: np.ndarray,
    same: np.ndarray,
    used: np.ndarray,
    kind: np.ndarray,
    target: np.ndarray,
    detections: np.ndarray,
    objects: np.ndarray,
) -> None:
    """Fill in the kind and target of the incorrect detections of one image.

    Args:
        overlaps: (n, m) IoU of the detections and objects of the image.
        same: (n, m) bool, whether both have the same class.
        used: (m,) bool, the objects that a detection matches.
        kind: the kinds of all detections, which are filled in.
        target: the targets of all detections, which are filled in.
        detections: (n,) the indices of the detections among all.
        objects: (m,) the indices of the objects among all.
    """
    of_class, of_others = np.where(same, overlaps, -1.0), np.where(same, -1.0, overlaps)
    best, best_other = of_class.max(1), of_others.max(1)
    of_used = np.where(same & used, overlaps, -1.0).max(1)
    is_place = (best >= _BACKGROUND_IOU) & (best < _FOREGROUND_IOU)
    is_class = best_other >= _FOREGROUND_IOU
    rules = (is_place, is_class, of_used >= _FOREGROUND_IOU, overlaps.max(1) < _BACKGROUND_IOU)
    kind[detections] = np.select(rules, (_PLACE, _CLASS, _DUPLICATE, _BACKGROUND), _BOTH)
    targets = np.where(is_place, of_class.argmax(1), of_others.argmax(1))
    target[detections] = np.where(is_place | is_class, objects[targets], -1)


def _by_image(image: np.ndarray, num_images: int) -> list[np.ndarray]:
    """The indices of each image, in ascending order."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))[:num_images]


def _ap(errors: LabelledErrors, labels: Sequence[int], fixed: Collection[str]) -> float | None:
    """AP50 after some kinds of errors are fixed.

    An incorrect class or place is replaced by that of the target if the target has no match, once for each target: for
    the detection with the best score. All other incorrect detections of fixed kinds are removed, and missed objects do
    not count.
    """
    found, objects = errors.matches.found, errors.matches.objects
    label, correct = found.label.copy(), errors.matches.object[0] >= 0
    is_fixed = np.isin(errors.kind, [index for index, name in enumerate(KINDS) if name in fixed])
    repaired = is_fixed & _best_for_target(errors)
    label[repaired] = objects.label[errors.target[repaired]]
    correct[repaired] = True
    kept = ~errors.matches.ignored[0] & (~is_fixed | repaired)
    counted = errors.matches.counted & ~errors.missed if "missed" in fixed else errors.matches.counted
    return _mean_ap(errors, labels, label, correct, kept, counted)


def _best_for_target(errors: LabelledErrors) -> np.ndarray:
    """(n,) bool, the detection with the best score for each target without a match that counts."""
    target = errors.target
    free = (target >= 0) & ~errors.used[target] & errors.matches.counted[target] & ~errors.matches.ignored[0]
    rows = np.flatnonzero(free)  # in descending order of the score
    _, first = np.unique(target[rows], return_index=True)
    best = np.zeros(len(target), bool)
    best[rows[first]] = True
    return best


def _without_false_positives(errors: LabelledErrors, labels: Sequence[int]) -> float:
    correct = (errors.matches.object[0] >= 0) & ~errors.matches.ignored[0]
    value = _mean_ap(errors, labels, errors.matches.found.label, correct, correct, errors.matches.counted)
    return value or 0.0


def _without_false_negatives(errors: LabelledErrors, labels: Sequence[int]) -> float:
    matches = errors.matches
    correct, kept = matches.object[0] >= 0, ~matches.ignored[0]
    value = _mean_ap(errors, labels, matches.found.label, correct, kept, matches.counted & errors.used)
    return value or 0.0


def _mean_ap(
    errors: LabelledErrors,
    labels: Sequence[int],
    label: np.ndarray,
    correct: np.ndarray,
    kept: np.ndarray,
    counted: np.ndarray,
) -> float | None:
    """The mean AP over the classes that have objects before errors are fixed; None if there are none.

    Args:
        errors: the errors.
        labels: the classes.
        label: (n,) the labels of the detections.
        correct: (n,) bool, whether they are correct.
        kept: (n,) bool, the detections that count.
        counted: (m,) bool, the objects that count.
    """
    found, objects = errors.matches.found, errors.matches.objects
    values = []
    for each in labels:
        own = kept & (label == each)
        num_objects = int((counted & (objects.label == each)).sum())
        if not num_objects:  # of a class whose objects were all missed and do not count any more
            had_objects = (errors.matches.counted & (objects.label == each)).any()
            values.append(float(not own.any()) if had_objects else np.nan)
            continue
        order = np.flatnonzero(own)
        one = ClassMatches(
            np.zeros(len(order), np.int64),
            found.score[order],
            correct[None, order],
            np.zeros((1, len(order)), bool),
            np.array([num_objects]),
        )
        values.append(float(average_precisions(one)[0, 0]))
    return defined(mean_over(np.array(values), 0)) if values else None


def draw_errors(errors: Errors) -> Image.Image:
    """Bars of the AP50 that each kind of error costs."""
    return draw_bars({"AP50 lost": errors.lost}, "AP50 lost to each kind of error")
