"""Statistics of a split: objects by class, sizes of boxes, objects per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opendetr.data.records import DetectionData


@dataclass(frozen=True)
class DataStatistics:
    """The objects of a split, without crowd regions.

    Attributes:
        class_counts: class name -> number of its objects, in the order of the classes, without unused ones.
        box_sizes: (n, 2) width and height of each box as fractions of its image, in 0..1.
        objects_per_image: (m,) the number of objects of each image.
    """

    class_counts: Mapping[str, int]
    box_sizes: np.ndarray
    objects_per_image: np.ndarray

    @classmethod
    def of(cls, data: DetectionData) -> DataStatistics:
        """The statistics of a split. Boxes are clipped to their image."""
        counts = Counter[int]()
        sizes: list[tuple[float, float]] = []
        per_image: list[int] = []
        for image in data.images:
            objects = [obj for obj in image.objects if not obj.crowd]
            per_image.append(len(objects))
            counts.update(obj.category_id for obj in objects)
            for obj in objects:
                _, _, width, height = obj.clipped_box(image.height, image.width)
                sizes.append((width / image.width, height / image.height))
        classes = zip(data.categories.ids, data.categories.names, data.categories.used, strict=True)
        return cls(
            {name: counts[id_] for id_, name, used in classes if used},
            np.array(sizes, dtype=np.float64).reshape(-1, 2),
            np.array(per_image, dtype=np.int64),
        )
