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
from opendetr.losses.class_terms import Classification
from opendetr.structures import Matches, Output, Target


@dataclass(frozen=True, kw_only=True)
class MatcherConfig:
    """What a pair of query and object costs.

    Attributes:
        class_cost, l1_cost, giou_cost: weights of the three terms.
    """

    class_cost: float = 1.0
    l1_cost: float = 5.0
    giou_cost: float = 2.0


@torch.no_grad()
def pair_costs(
    output: Output, targets: Sequence[Target], classification: Classification, config: MatcherConfig
) -> Tensor:
    """The cost of every object with every query of its own image: (n, L, Q), objects in the order of the images."""
    image = torch.cat([torch.full_like(target.labels, index) for index, target in enumerate(targets)])
    labels = torch.cat([target.labels for target in targets])
    boxes = torch.cat([target.boxes for target in targets])[:, None, None]
    logits = torch.stack([layer.logits for layer in output.layers])
    guesses = torch.stack([layer.boxes for layer in output.layers])[:, image].transpose(0, 1)
    return (
        config.class_cost * classification.cost(logits, image, labels)
        + config.l1_cost * box_l1(guesses, boxes)
        + config.giou_cost * (box_giou(guesses, boxes) - 1)
    )


def match(output: Output, targets: Sequence[Target], classification: Classification, config: MatcherConfig) -> Matches:
    """The cheapest one-to-one assignment in every layer and image; min(objects, Q) pairs each.

    The costs of all layers and images go to the host in one transfer. Numbers that are not finite count as very dear,
    so that a diverged model ends in a loss that says so, not in the solver.

    Args:
        output: predictions of L layers.
        targets: B targets.
        classification: gives the class cost.
        config: weights of the costs.

    Returns:
        Matches on the device of the predictions, sorted by layer, image and query.
    """
    costs = pair_costs(output, targets, classification, config)
    device = costs.device
    on_host = costs.float().nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    counts = [len(target) for target in targets]
    per_image = np.split(on_host, np.cumsum(counts)[:-1]) if counts else []
    rows = [np.empty((0, 4), np.int64)]
    for layer in range(len(output.layers)):
        for image, cost in enumerate(per_image):
            query, target = linear_sum_assignment(cost[:, layer].T)
            rows.append(np.stack((np.full_like(query, layer), np.full_like(query, image), query, target), 1))
    return Matches(*torch.from_numpy(np.concatenate(rows)).to(device).unbind(1))
