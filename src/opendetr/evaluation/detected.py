"""Ground truth and detections of a whole dataset as arrays.

Shape letters: I images, n detections, m objects.
Frame: a box is x, y, w, h in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from opendetr.data import DetectionData, coco_truth
from opendetr.results import Detections


@dataclass(frozen=True)
class Objects:
    """The ground truth of all images.

    Attributes:
        image: (m,) int64, the index of the image.
        label: (m,) int64, the label of the dataset.
        box: (m, 4) float64.
        area: (m,) float64, in pixels.
        crowd: (m,) bool, crowd regions, which do not count.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def of(cls, data: DetectionData) -> Objects:
        """The annotated things of a dataset."""
        rows = coco_truth(data)["annotations"]
        index = {image.id: position for position, image in enumerate(data.images)}
        return cls(
            np.array([index[row["image_id"]] for row in rows], np.int64),
            np.array([data.categories.label_of_id(row["category_id"]) for row in rows], np.int64),
            np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
            np.array([row["area"] for row in rows], np.float64),
            np.array([row["iscrowd"] for row in rows], bool),
        )


@dataclass(frozen=True)
class Found:
    """The detections of one decoder layer in all images, image by image in descending order of the score.

    Attributes:
        image: (n,) int64, the index of the image.
        label: (n,) int64, the label of the dataset.
        score: (n,) float64.
        box: (n, 4) float64.
        query: (n,) int64; -1 if it is not known.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    box: np.ndarray
    query: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, chosen: np.ndarray) -> Found:
        """The detections of a mask (n,) or of indices."""
        parts = (self.image, self.label, self.score, self.box, self.query)
        return Found(*(part[chosen] for part in parts))

    @classmethod
    def of(cls, results: Sequence[tuple[int, Detections, Tensor]]) -> Found:
        """The detections of images, as triples of the index of the image, its detections and their queries."""
        boxes = np.concatenate([np.empty((0, 4)), *(found.boxes.double().numpy() for _, found, _ in results)])
        boxes[:, 2:] -= boxes[:, :2]
        return cls(
            np.repeat([image for image, _, _ in results], [len(found) for _, found, _ in results]).astype(np.int64),
            np.concatenate([np.empty(0, np.int64), *(found.labels.numpy() for _, found, _ in results)]),
            np.concatenate([np.empty(0), *(found.scores.double().numpy() for _, found, _ in results)]),
            boxes,
            np.concatenate([np.empty(0, np.int64), *(queries.numpy() for _, _, queries in results)]),
        )

    @classmethod
    def of_coco(cls, data: DetectionData, rows: Sequence[Mapping[str, Any]]) -> Found:
        """The detections of a COCO results file, such as `Evaluation.results`; their queries are not known."""
        index = {image.id: position for position, image in enumerate(data.images)}
        image = np.array([index[row["image_id"]] for row in rows], np.int64)
        score = np.array([row["score"] for row in rows], np.float64)
        order = np.lexsort((-score, image))
        return cls(
            image[order],
            np.array([data.categories.label_of_id(row["category_id"]) for row in rows], np.int64)[order],
            score[order],
            np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)[order],
            np.full(len(rows), -1),
        )


@dataclass(frozen=True)
class DatasetDetections:
    """The ground truth of a dataset, and the detections of a detector in it.

    Attributes:
        data: the dataset.
        objects: its ground truth.
        found: the detections.
    """

    data: DetectionData
    objects: Objects
    found: Found

    @property
    def num_images(self) -> int:
        """The number of images."""
        return len(self.data)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each label of the dataset; repeated names have their id appended."""
        return tuple(self.data.categories.distinct_names)

    @property
    def labels(self) -> list[int]:
        """The labels with objects that count, in ascending order: the classes of AP."""
        return np.unique(self.objects.label[~self.objects.crowd]).tolist()
