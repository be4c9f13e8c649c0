"""Groups images of similar shape into batches, to keep padding small.

Images are given by their index in the data. `shapes` holds the height and width of each image in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opendetr.data.records import DetectionData

Shapes = Mapping[int, tuple[int, int]]
Batches = list[tuple[int, ...]]
Groups = Callable[["DetectionData", Shapes, int], list[Batches]]


def equal_batches(indices: Sequence[int], shapes: Shapes, batch_size: int) -> list[tuple[int, ...]]:
    """Batches of images of similar height and width; only the last batch may be smaller than `batch_size`.

    As in a k-d tree, the images are split in half along the side that varies most (as a ratio), and each half again.
    Images of one shape keep their order.
    """
    if len(indices) <= batch_size:
        return [tuple(indices)]
    height_ratio, width_ratio = (
        max(shapes[index][side] for index in indices) / min(shapes[index][side] for index in indices) for side in (0, 1)
    )
    along = (0, 1) if height_ratio > width_ratio else (1, 0)
    ordered = sorted(indices, key=lambda index: (shapes[index][along[0]], shapes[index][along[1]]))
    num_batches = math.ceil(len(ordered) / batch_size)
    middle = num_batches // 2 * batch_size
    halves = ordered[:middle], ordered[middle:]
    return [batch for half in halves for batch in equal_batches(half, shapes, batch_size)]


def same_shape_batches(indices: Sequence[int], shapes: Shapes, batch_size: int) -> list[tuple[int, ...]]:
    """Batches of at most `batch_size` images of one shape, without padding. Images of one shape keep their order."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        by_shape.setdefault(shapes[index], []).append(index)
    return [
        tuple(same_shape[first : first + batch_size])
        for _, same_shape in sorted(by_shape.items())
        for first in range(0, len(same_shape), batch_size)
    ]


def same_shape_groups(indices: Sequence[int], shapes: Shapes, batch_size: int) -> list[Batches]:
    """The batches of `same_shape_batches`, each as a group of its own."""
    return [[batch] for batch in same_shape_batches(indices, shapes, batch_size)]


def bounded_batches(indices: Sequence[int], shapes: Shapes, batch_size: int, max_pixels: int) -> list[tuple[int, ...]]:
    """Batches of at most `batch_size` images of similar shape and at most `max_pixels` pixels, padding included.

    An image with more pixels than `max_pixels` becomes a batch of one.
    """
    batches: list[tuple[int, ...]] = []
    batch: tuple[int, ...] = ()
    for (index,) in equal_batches(indices, shapes, 1):
        longer = (*batch, index)
        if batch and (len(longer) > batch_size or padded_pixels(longer, shapes) > max_pixels):
            batches.append(batch)
            longer = (index,)
        batch = longer
    return [*batches, batch]


def repeat_or_drop(batches: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """`count` batches: the batches with the fewest images are dropped, or those with the most are repeated."""
    return list(islice(cycle(sorted(batches, key=len, reverse=True)), count))


def padded_pixels(batch: Sequence[int], shapes: Shapes) -> int:
    """Number of pixels of a batch, padding included."""
    height, width = (max(shapes[index][side] for index in batch) for side in (0, 1))
    return len(batch) * height * width
