"""Images of the training data in the run folder: statistics of the dataset, and the first batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from opendetr.boxes import cxcywh_to_xyxy
from opendetr.categories import Categories
from opendetr.data import DataStatistics, DetectionData, count_noun, denormalise
from opendetr.structures import Batch, Target
from opendetr.training.callbacks import write_image
from opendetr.training.events import BatchLoaded, Callback, RunStarted
from opendetr.visualize import contact_sheet, draw_boxes, draw_statistics

LABELS_FILE = "labels.png"
BATCH_FILE = "images/batch.jpg"
_MOST_IMAGES = 16
_MASK_FILL = 0.15  # opacity of masks; more would hide an augmentation of the colours
_SIDE = 480  # longer side of an image of the batch, in pixels


class DataImages(Callback):
    """Draws the data of a new run: `labels.png` with statistics, and `images/batch.jpg` with the first batch.

    The batch is drawn as it is trained on: after the augmentation, with boxes, classes and masks. With several
    processes, it is the part of the main process.

    Args:
        splits: the splits of the dataset by their roles; "train" is that of the batch.
    """

    def __init__(self, splits: Mapping[str, DetectionData]) -> None:
        self._splits = splits
        self._folder = Path()
        self._is_drawn = True

    def on_start(self, event: RunStarted) -> None:
        """Draw the statistics of a new run."""
        self._folder, self._is_drawn = event.folder, event.step > 0
        if not self._is_drawn:
            drawn = draw_statistics({name: DataStatistics.of(data) for name, data in self._splits.items()})
            write_image(drawn, self._folder / LABELS_FILE)

    def on_batch(self, event: BatchLoaded) -> None:
        """Draw the first batch of a new run."""
        if not self._is_drawn:
            self._is_drawn = True
            write_image(batch_sheet(event.batch, self._splits["train"].categories), self._folder / BATCH_FILE)


def batch_sheet(batch: Batch, categories: Categories) -> Image.Image:
    """The first 16 images of a batch, without padding, with the boxes, classes and masks of their objects."""
    images, titles = [], []
    for index in range(min(len(batch), _MOST_IMAGES)):
        pixels, target, name = batch.images.pixels[index], batch.targets[index], batch.image_names[index]
        height, width = target.size
        image = denormalise(pixels[:, :height, :width]).permute(1, 2, 0).cpu().numpy()
        images.append(_with_objects(image, target, categories))
        titles.append(f"{Path(name).name}: {count_noun(len(target), 'object')}")
    return contact_sheet(images, math.ceil(math.sqrt(len(images))), titles)


def _with_objects(image: np.ndarray, target: Target, categories: Categories) -> Image.Image:
    """An image of a batch, with its longer side at 480 pixels, with masks and, over them, boxes and class names."""
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    boxes = cxcywh_to_xyxy(target.boxes.cpu().double()).numpy() * (width, height, width, height)
    names = [categories.names[label] for label in target.labels.tolist()]
    colours = [categories.colours[label] for label in target.labels.tolist()]
    if target.masks is None:
        return draw_boxes(image, boxes, names, colours, scale=scale)
    masks = target.masks.cpu().numpy()
    masked = draw_boxes(image, boxes, [""] * len(names), colours, masks=masks, fill=_MASK_FILL, scale=scale)
    return draw_boxes(masked, boxes * scale, names, colours, scale=1)
