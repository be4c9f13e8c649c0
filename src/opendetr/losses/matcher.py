"""Bipartite matching of queries with objects (DETR, section 3.1, eq. 1).

Shape letters: B batch, Q queries, L decoder layers, C class logits, n objects of the batch, m matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from opendetr.losses.boxes import box_giou, box_l1
from opendetr.losses.class_terms import ClassTerm, image_index
from opendetr.nn import full_precision
from opendetr.structures import Matches, Output, Target


@dataclass(frozen=True, kw_only=True)
class MatcherConfig:
    """Weights of the matching cost of a query and an object.

    Attributes:
        class_cost, l1_cost, giou_cost: weights of the three terms.
    """

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0


@torch.no_grad()
def pair_costs(output: Output, targets: Sequence[Target], class_term: ClassTerm, config: MatcherConfig) -> Tensor:
    """The costs (n, L, Q) of each object, in the order of the images, with each query of its image."""
    boxes = torch.cat([target.boxes for target in targets])[:, None, None]
    logits = torch.stack([layer.logits for layer in output.layers])
    predicted = torch.stack([layer.boxes for layer in output.layers])[:, image_index(targets)].transpose(0, 1)
    return (
        config.class_cost * class_term.cost(logits, targets)
        + config.l1_cost * box_l1(predicted, boxes)
        + config.giou_cost * (box_giou(predicted, boxes) - 1)
    )


@torch.no_grad()
def match(
    costs: Tensor, counts: Sequence[int], *, candidates: Tensor | None = None, fixed: Matches | None = None
) -> Matches:
    """The one-to-one assignment with the lowest cost, in every layer and image, of min(objects, candidates) pairs.

    The costs of all layers and images are moved to the host in one transfer. Costs that are not finite are replaced by
    very large ones. So a diverged model fails with its loss and not with an error of the solver.

    Args:
        costs: (n, L, Q), costs of each object, in the order of the images, with the queries of its image.
        counts: number of objects of each of the B images.
        candidates: (B, Q) bool, the queries that may be matched. By default all.
        fixed: pairs that are kept in every layer; their `layer` is ignored. The other queries and objects are
            assigned among themselves.

    Returns:
        Matches on the device of the costs, sorted by layer, image and query.
    """
    on_host = full_precision(costs).nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    num_layers, num_queries = costs.shape[1:]
    per_image = np.split(on_host, np.cumsum(counts)[:-1]) if len(counts) else []
    allowed = np.ones((len(counts), num_queries), bool) if candidates is None else candidates.cpu().numpy()
    kept = _pairs_of_images(fixed, len(counts))
    rows, per_layer = [np.empty((0, 4), np.int64)], []
    for layer in range(num_layers):
        before = len(rows)
        for image, cost in enumerate(per_image):
            query, target = _assigned(cost[:, layer].T, allowed[image], kept[image])
            rows.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target), 1))
        per_layer.append(sum(map(len, rows[before:])))
    layer_, image_, query_, target_ = torch.from_numpy(np.concatenate(rows)).to(costs.device).unbind(1)
    return Matches(layer_, image_, query_, target_, tuple(per_layer))


@torch.no_grad()
def match_within_groups(costs: Tensor, targets: Sequence[Target], group_size: int) -> Matches:
    """Match each object with the query of its own group that has the lowest cost, in every layer.

    Args:
        costs: (n, L, Q), as in `match`.
        targets: B targets. The i-th object of an image has the i-th group of queries.
        group_size: number of queries in a group.
    """
    num_layers = costs.shape[1]
    image = image_index(targets)
    target = torch.cat([torch.arange(len(each), device=costs.device) for each in targets])
    own = costs.unflatten(2, (-1, group_size))[torch.arange(len(target), device=costs.device), :, target]
    query = own.argmin(2).T + target * group_size  # (L, n)
    layer = torch.arange(num_layers, device=costs.device).repeat_interleave(len(target))
    per_layer = (len(target),) * num_layers
    return Matches(layer, image.repeat(num_layers), query.flatten(), target.repeat(num_layers), per_layer)


def _pairs_of_images(fixed: Matches | None, num_images: int) -> list[np.ndarray]:
    """The fixed pairs of each image, as (f, 2) query and object indices."""
    if fixed is None:
        return [np.empty((0, 2), np.int64)] * num_images
    image, *pairs = (values.cpu().numpy() for values in (fixed.image, fixed.query, fixed.target))
    return [np.stack(pairs, 1)[image == index] for index in range(num_images)]


def _assigned(cost: np.ndarray, allowed: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of (Q, n) costs, including the fixed pairs: queries in ascending order, and their objects."""
    if allowed.all() and not len(fixed):
        return linear_sum_assignment(cost)
    queries = np.setdiff1d(np.flatnonzero(allowed), fixed[:, 0])
    objects = np.setdiff1d(np.arange(cost.shape[1]), fixed[:, 1])
    chosen_queries, chosen_objects = linear_sum_assignment(cost[np.ix_(queries, objects)])
    query = np.concatenate((fixed[:, 0], queries[chosen_queries]))
    target = np.concatenate((fixed[:, 1], objects[chosen_objects]))
    order = query.argsort(kind="stable")
    return query[order], target[order]
