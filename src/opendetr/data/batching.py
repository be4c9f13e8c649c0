"""Which images meet in a batch: those of like shape, so that little of it is padding.

Images are named by their index in the data; `shapes` holds the height and width that each will have in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

Shapes = Mapping[int, tuple[int, int]]


def equal_batches(indices: Sequence[int], shapes: Shapes, batch_size: int) -> list[tuple[int, ...]]:
    """Batches of images whose heights and widths are alike; only the last may be smaller than `batch_size`.

    As a k-d tree does: the images are halved along the side that varies most (as a ratio), and each half again. Images
    of one shape keep their order.
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
    """Batches of at most `batch_size` images of one shape, so that none is padded; each image keeps its order."""
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        by_shape.setdefault(shapes[index], []).append(index)
    return [
        tuple(alike[first : first + batch_size])
        for _, alike in sorted(by_shape.items())
        for first in range(0, len(alike), batch_size)
    ]


def bounded_batches(indices: Sequence[int], shapes: Shapes, batch_size: int, max_pixels: int) -> list[tuple[int, ...]]:
    """Batches of at most `batch_size` images of like shape and at most `max_pixels` pixels, padding included.

    An image that has more pixels than that by itself is a batch of its own.
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


def exactly(batches: Sequence[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """`count` batches of these: those of the fewest images are left out, or those of the most come twice."""
    return list(islice(cycle(sorted(batches, key=len, reverse=True)), count))


def padded_pixels(batch: Sequence[int], shapes: Shapes) -> int:
    """Pixels of a batch, padding included."""
    height, width = (max(shapes[index][side] for index in batch) for side in (0, 1))
    return len(batch) * height * width
