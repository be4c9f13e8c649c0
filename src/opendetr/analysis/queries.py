"""What each query predicts over a whole dataset (Carion et al., 2020, figure 7).

Shape letters: r images, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from opendetr.analysis.predictions import Collected
from opendetr.visualize import PALETTE, draw_points

_SMALL_AREA = 0.05  # of the image; larger boxes are wide or tall
_WHOLE_SIDE = 0.8  # a box is image-sized if both sides are at least this fraction of the image
_LEAST_SHARE = 0.01  # of its boxes that are image-sized, for a query with such a mode
_GREEN, _RED, _BLUE = PALETTE[2], PALETTE[1], PALETTE[0]
_LEGEND = {"small": _GREEN, "large and wide": _RED, "large and tall": _BLUE}
_MOST_POINTS = 2000  # of a query in the chart


@dataclass(frozen=True)
class QueryFacts:
    """The queries of a detector on a dataset.

    Attributes:
        num_queries: Q.
        learned: whether a query is the same in all images; False for the proposals of a two-stage model.
        fires: for each query the number of images in which its best score reaches the threshold of its class.
        never_fires: the number of queries that never do.
        image_sized: for each query the share of its boxes that are as large as the image.
        image_sized_queries: the share of queries of whose boxes at least 1 % are image-sized.
        most_at_once: the largest number of queries that fire in one image.
        most_objects: the largest number of objects in an image.
        objects_99: 99 % of the images have at most this many objects.
        threshold: the threshold of all classes without one.
    """

    num_queries: int
    learned: bool
    fires: tuple[int, ...]
    never_fires: int
    image_sized: tuple[float, ...]
    image_sized_queries: float
    most_at_once: int
    most_objects: int
    objects_99: int
    threshold: float


def analyse_queries(collected: Collected, thresholds: np.ndarray, default: float) -> QueryFacts:
    """Count what the queries do.

    Args:
        collected: the predictions.
        thresholds: (K,) the score threshold of each label of the dataset.
        default: the threshold of the other classes.
    """
    labels = collected.query_labels
    fired = (labels >= 0) & (collected.query_scores >= thresholds[labels])
    whole = collected.query_boxes[..., 2:].min(-1) >= _WHOLE_SIDE
    shares = whole.mean(0) if len(whole) else np.zeros(whole.shape[1])
    counts = np.bincount(collected.objects.image[~collected.objects.crowd], minlength=collected.num_images)
    return QueryFacts(
        num_queries=whole.shape[1],
        learned=collected.learned_queries,
        fires=tuple(fired.sum(0).tolist()),
        never_fires=int((~fired.any(0)).sum()),
        image_sized=tuple(shares.tolist()),
        image_sized_queries=float((shares >= _LEAST_SHARE).mean()) if len(shares) else 0.0,
        most_at_once=int(fired.sum(1).max(initial=0)),
        most_objects=int(counts.max(initial=0)),
        objects_99=int(np.ceil(np.percentile(counts, 99))) if len(counts) else 0,
        threshold=default,
    )


def draw_queries(query_boxes: np.ndarray, count: int | None = 20) -> Image.Image:
    """The centres of the boxes that each query predicts: small green, large and wide red, large and tall blue.

    Args:
        query_boxes: (I, Q, 4), the box of every query in each image, cxcywh in 0..1; see `Collected`.
        count: number of queries, evenly spread over all; None for all queries.
    """
    num_queries = query_boxes.shape[1]
    count = num_queries if count is None else min(count, num_queries)
    chosen = [index * num_queries // count for index in range(count)]
    images = np.linspace(0, max(len(query_boxes) - 1, 0), min(len(query_boxes), _MOST_POINTS))
    boxes = query_boxes[images.round().astype(int)]
    panels = {}
    for query in chosen:
        own = boxes[:, query]
        small = own[:, 2] * own[:, 3] < _SMALL_AREA
        wide = own[:, 2] >= own[:, 3]
        groups = ((~small & ~wide, _BLUE), (~small & wide, _RED), (small, _GREEN))
        panels[f"query {query}"] = [(own[group, :2], colour) for group, colour in groups]
    title = f"Boxes of {count} of {num_queries} queries in {len(boxes)} images"
    return draw_points(panels, title, legend=_LEGEND, x_label="centre x", y_label="centre y")
