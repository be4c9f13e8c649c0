"""Many objects of one class: drawn images with more of them than any training image has.

Carion et al. (2020), section 4.3: DETR finds all of 24 giraffes, although no training image has more than 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from opendetr.evaluation import Found, Objects, match_found
from opendetr.inference import Predictor
from opendetr.results import Detections, draw_detections
from opendetr.synthetic import CATEGORIES, Scene, SceneConfig, draw_scene
from opendetr.visualize import draw_curves

COUNTS = (1, 2, 4, 8, 13, 18, 24, 32, 40)
"""The numbers of objects that are drawn."""
_PER_COUNT = 4  # images of each number, each of another class
_SHOWN = 24
_MATCH_IOU = np.array([0.5])
_SIDES = (0.09, 0.11)  # of the image; all counts have objects of the same size


@dataclass(frozen=True)
class ManyOfOne:
    """The detections in images of many objects of one class; means over the images of each number.

    Attributes:
        drawn: the numbers of objects that were drawn.
        present: the number of objects of which enough is visible to count.
        found: the number of these with a correct detection.
        detected: the number of detections of the class.
        most_in_training: the largest number of objects of one class in a scene that the generator draws by default.
    """

    drawn: tuple[int, ...]
    present: tuple[float, ...]
    found: tuple[float, ...]
    detected: tuple[float, ...]
    most_in_training: int


def known_classes(names: Sequence[str]) -> list[str]:
    """The classes of a detector that the generator draws."""
    return [str(row["name"]) for row in CATEGORIES if row["isthing"] and row["name"] in names]


def analyse_many(
    detector: Predictor, threshold: Callable[[str], float], *, counts: Sequence[int] = COUNTS
) -> tuple[ManyOfOne, Image.Image] | None:
    """Draw the images, and count what the detector finds.

    Args:
        detector: the detector.
        threshold: gives the score threshold of a class by its name.
        counts: the numbers of objects.

    Returns:
        The numbers, and an image of 24 objects with the detections; None if the detector knows no class that is drawn.
    """
    classes = known_classes(detector.names)
    if not classes:
        return None
    scenes, chosen = [], []
    for count in counts:
        for number in range(_PER_COUNT):
            name = classes[number * len(classes) // _PER_COUNT % len(classes)]
            scenes.append(_draw(name, count, number))
            chosen.append(name)
    rows = []
    shown: Image.Image | None = None
    results = detector.predict([scene.image for scene in scenes], min_score=0.0)
    for index, (scene, name, detections) in enumerate(zip(scenes, chosen, results, strict=True)):
        label = detector.names.index(name)
        kept = detections[(detections.labels == label) & (detections.scores >= threshold(name))]
        rows.append(_counts(scene, kept))
        if shown is None and counts[index // _PER_COUNT] >= _SHOWN:
            shown = draw_detections(kept)
    means = np.array(rows, np.float64).reshape(len(counts), _PER_COUNT, 3).mean(1)
    present, found, detected = (tuple(column.tolist()) for column in means.T)
    facts = ManyOfOne(tuple(counts), present, found, detected, SceneConfig().max_per_category)
    return facts, shown or draw_detections(kept)


def _draw(name: str, count: int, number: int) -> Scene:
    config = SceneConfig(
        classes=(name,),
        min_objects=count,
        max_objects=count,
        max_per_category=count,
        min_scale=_SIDES[0],
        max_scale=_SIDES[1],
        clustering=0.0,
    )
    return draw_scene(number, split=f"many-{count}", config=config)


def _counts(scene: Scene, detections: Detections) -> tuple[int, int, int]:
    """The number of objects, of those found, and of detections."""
    corners = np.array([label.box for label in scene.objects], np.float64).reshape(-1, 4)
    boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
    zeros = np.zeros(len(boxes), np.int64)
    crowd = np.array([label.iscrowd for label in scene.objects], bool)
    objects = Objects(zeros, zeros, boxes, boxes[:, 2:].prod(1), crowd)
    found = Found.of([(0, detections, detections.labels)])
    found = replace(found, label=np.zeros_like(found.label))
    matches = match_found(objects, found, 1, thresholds=_MATCH_IOU)
    correct = (matches.object[0] >= 0) & ~matches.ignored[0]
    return int((~crowd).sum()), int(correct.sum()), len(detections)


def draw_many(facts: ManyOfOne) -> Image.Image:
    """A chart of the objects found and the detections, by the number of objects present."""
    lines = {
        "present": list(zip(facts.drawn, facts.present, strict=True)),
        "found": list(zip(facts.drawn, facts.found, strict=True)),
        "detections": list(zip(facts.drawn, facts.detected, strict=True)),
    }
    return draw_curves(
        lines,
        "Many objects of one class: found against present",
        x_label="objects drawn in an image",
        y_label="objects, mean over the images",
        mark=(facts.most_in_training, "most in training"),
    )
