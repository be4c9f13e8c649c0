"""The objects of a dataset: how many in an image and of a class, and how large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from opendetr.analysis.predictions import Collected
from opendetr.evaluation import SIZES
from opendetr.visualize import draw_histogram

_MOST_BINS = 40


@dataclass(frozen=True)
class ObjectFacts:
    """The objects of a split, without crowd regions.

    Attributes:
        images: number of images.
        objects: number of objects.
        per_image: mean number of objects in an image.
        most_per_image: largest number of objects in an image.
        most_of_class: largest number of objects of one class in an image.
        most_of_class_name: the name of this class; "" without objects.
        per_class: number of objects of each class.
        images_per_class: number of images with objects of each class.
        sizes: number of small, medium and large objects, by COCO's limits of 32 and 96 pixels squared.
        counts: (I,) the number of objects of each image.
    """

    images: int
    objects: int
    per_image: float
    most_per_image: int
    most_of_class: int
    most_of_class_name: str
    per_class: dict[str, int]
    images_per_class: dict[str, int]
    sizes: dict[str, int]
    counts: tuple[int, ...]


def analyse_objects(collected: Collected) -> ObjectFacts:
    """Count the objects."""
    objects = collected.objects
    counted = ~objects.crowd
    image, label = objects.image[counted], objects.label[counted]
    counts = np.bincount(image, minlength=collected.num_images)
    pairs, numbers = np.unique(np.stack((image, label), 1), axis=0, return_counts=True)
    top = int(numbers.argmax()) if len(numbers) else -1
    names = collected.names
    area = objects.area[counted]
    lower = {"small": 0.0, "medium": SIZES["medium"][0], "large": SIZES["large"][0]}
    bins = np.digitize(area, list(lower.values())[1:])
    return ObjectFacts(
        images=collected.num_images,
        objects=int(counted.sum()),
        per_image=float(counts.mean()) if len(counts) else 0.0,
        most_per_image=int(counts.max(initial=0)),
        most_of_class=int(numbers[top]) if top >= 0 else 0,
        most_of_class_name=names[int(pairs[top, 1])] if top >= 0 else "",
        per_class={names[each]: int((label == each).sum()) for each in collected.labels},
        images_per_class={names[each]: int((pairs[:, 1] == each).sum()) for each in collected.labels},
        sizes={name: int((bins == index).sum()) for index, name in enumerate(lower)},
        counts=tuple(counts.tolist()),
    )


def draw_objects(facts: ObjectFacts) -> Image.Image:
    """A histogram of the objects per image."""
    wide = -(-(facts.most_per_image + 1) // _MOST_BINS)
    edges = np.arange(0, facts.most_per_image + wide + 1, wide) - 0.5
    counts, _ = np.histogram(facts.counts, edges)
    return draw_histogram(counts, edges, "Objects per image", x_label="objects", y_label="images")
