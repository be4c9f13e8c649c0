"""From mask logits to one map in which every pixel belongs to one thing or one stuff.

Shape letters: B batch, Q queries, C class logits, m queries kept in one image, h w cells of the mask logits, H W the
original image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from opendetr.categories import Categories
from opendetr.postprocess.finite import require_finite
from opendetr.postprocess.masks import MaskFrame, Merge
from opendetr.results import Panoptic, Segment
from opendetr.structures import Predictions

# Segments of so many pixels or fewer are dropped (Carion et al., 2020, in the published code).
_NEGLIGIBLE_AREA = 4


@dataclass(frozen=True)
class Candidates:
    """The queries of one image that take part in its map.

    Attributes:
        queries: (m,) int64, ascending.
        labels: (m,) int64 in 0..K-1.
        scores: (m,) float in 0..1.
    """

    queries: Tensor
    labels: Tensor
    scores: Tensor

    @classmethod
    def none(cls) -> Candidates:
        """No queries."""
        return cls(*(torch.empty(0, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float32)))

    def __len__(self) -> int:
        return len(self.queries)


@torch.no_grad()
def candidates(
    predictions: Predictions,
    categories: Categories,
    *,
    min_score: float | Tensor | None = None,
    merge: Merge = "default",
) -> list[Candidates]:
    """The queries of each image whose best answer is a class, not "no object", with a score above `min_score`.

    Args:
        predictions: one decoder layer's logits (B, Q, C).
        categories: what the labels stand for.
        min_score: of a query; (K,) gives every class its own; what the scoring says when omitted.
        merge: the rule of the map; the published one keeps categories that are marked unused.

    Raises:
        ValueError: a label has no category.
        NonFiniteError: a logit or a box is not finite.
    """
    min_score = predictions.scoring.panoptic_score if min_score is None else min_score
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    scores, labels = (each.cpu() for each in predictions.scoring.best(predictions.logits.float()))
    if labels.numel() and int(labels.max()) >= len(categories):
        raise ValueError(
            f"panoptic: the model found label {int(labels.max())}, but there are {len(categories)} categories; "
            "pass the categories that it was trained with"
        )
    kept = scores > torch.as_tensor(min_score, dtype=scores.dtype).expand(len(categories))[labels]
    if merge != "published":
        kept &= torch.tensor(categories.used, dtype=torch.bool)[labels]
    return [
        Candidates(chosen.nonzero()[:, 0], of_image[chosen], scored[chosen])
        for chosen, of_image, scored in zip(kept, labels, scores, strict=True)
    ]


@torch.no_grad()
def panoptic_map(
    found: Candidates, logits: Tensor, frame: MaskFrame, categories: Categories, *, merge: Merge = "default"
) -> Panoptic:
    """The map of one image: every pixel goes to the query whose mask is strongest there. On the CPU.

    "default" cuts the logits to the image before it resizes them, once, to the original size. All stuff of one class is
    one segment. What has at most 4 pixels is dropped, and its pixels go to the segment that is strongest there among
    those that remain.

    "published" is the rule of Carion et al. (2020) as its code has it, with its faults: the logits of the whole padded
    batch are squeezed into the image; stuff of one class is one segment only until something is dropped, and what had
    been merged into it counts as having no pixels, so that those go to whatever mask is next best.

    Args:
        found: the queries that take part.
        logits: (m, h, w) float, the mask logits of these queries, of the padded batch.
        frame: where they lie.
        categories: what the labels stand for.
        merge: the rule.

    Raises:
        ValueError: there are not as many masks as queries, or the rule is none.
    """
    if merge not in get_args(Merge):
        raise ValueError(f"merge: expected {' or '.join(get_args(Merge))}, got {merge!r}")
    if logits.ndim != 3 or len(logits) != len(found):
        raise ValueError(f"panoptic_map: expected logits of ({len(found)}, h, w), got {tuple(logits.shape)}")
    isthing = [categories.isthing[label] for label in found.labels.tolist()]
    if not len(found):
        kept: list[list[int]] = []
        indices, strengths = torch.zeros(frame.original, dtype=torch.int64), torch.full(frame.original, -torch.inf)
    elif merge == "published":
        indices, strengths, kept = _published(logits, frame, _merged(found.labels.tolist(), isthing))
    else:
        indices, strengths, kept = _default(logits, frame, _merged(found.labels.tolist(), isthing))
    areas = torch.bincount(indices.flatten(), minlength=len(kept)).tolist()
    info = tuple(
        Segment(
            id=index + 1,
            label=int(found.labels[members[0]]),
            isthing=isthing[members[0]],
            area=areas[index],
            score=float(found.scores[members].max()),
        )
        for index, members in enumerate(kept)
    )
    segments = (indices + 1 if kept else indices).to(torch.int32)
    return Panoptic(segments.cpu(), info, strengths.sigmoid().cpu(), categories, frame.original)


def _merged(labels: list[int], isthing: list[bool]) -> list[list[int]]:
    """Positions of queries that are one segment: things alone, stuff of one class together; in order of the first."""
    groups: dict[object, list[int]] = {}
    for position, (label, thing) in enumerate(zip(labels, isthing, strict=True)):
        groups.setdefault(("thing", position) if thing else label, []).append(position)
    return list(groups.values())


def _default(logits: Tensor, frame: MaskFrame, groups: list[list[int]]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """(H, W) positions in the groups that are returned, (H, W) logits, and the groups that have pixels."""
    group_of = _group_of(groups, len(logits)).to(logits.device)
    winners, strengths = _strongest(logits, frame)
    indices = group_of[winners]
    large = torch.bincount(indices.flatten(), minlength=len(groups)) > _NEGLIGIBLE_AREA
    if not large.any():
        return torch.zeros_like(indices), torch.full_like(strengths, -torch.inf), []
    if not large.all():
        rows, columns = (~large)[indices].nonzero(as_tuple=True)
        remaining = large[group_of].nonzero()[:, 0]
        # The others only gain pixels, so that none of them becomes small: once is enough.
        values, places = frame.sampled(logits[remaining], rows, columns).max(0)
        indices[rows, columns], strengths[rows, columns] = group_of[remaining[places]], values
    renumbered = large.cumsum(0) - 1
    return renumbered[indices], strengths, [group for group, kept in zip(groups, large.tolist(), strict=True) if kept]


def _group_of(groups: list[list[int]], num_queries: int) -> Tensor:
    """(m,) the group that each query is in."""
    group_of = torch.empty(num_queries, dtype=torch.int64)
    for number, members in enumerate(groups):
        group_of[members] = number
    return group_of


def _strongest(logits: Tensor, frame: MaskFrame) -> tuple[Tensor, Tensor]:
    """(H, W) position of the strongest of m masks in the original image, and its logit."""
    winners = torch.empty(frame.original, dtype=torch.int64, device=logits.device)
    strengths = torch.empty(frame.original, device=logits.device)
    for rows, resized in frame.rows(logits):
        strengths[rows], winners[rows] = resized.max(0)
    return winners, strengths


def _published(logits: Tensor, frame: MaskFrame, groups: list[list[int]]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """As `_default`, with single queries as groups: of stuff that was merged only the first is left in the end."""
    masks = F.interpolate(logits[:, None].float(), frame.processed, mode="bilinear")[:, 0]
    first_of = torch.tensor([groups[group][0] for group in _group_of(groups, len(logits)).tolist()])
    kept = torch.arange(len(logits))
    indices = _nearest(first_of[masks.softmax(0).argmax(0).cpu()], frame.original)
    while len(kept):
        large = torch.bincount(indices.flatten(), minlength=len(kept)) > _NEGLIGIBLE_AREA
        if large.all():
            strengths = masks[kept].amax(0).cpu()
            return indices, _nearest(strengths, frame.original), [[query] for query in kept.tolist()]
        kept = kept[large]
        if len(kept):
            indices = _nearest(masks[kept].softmax(0).argmax(0).cpu(), frame.original)
    return torch.zeros_like(indices), torch.full(frame.original, -torch.inf), []


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W): the nearest pixel of each, as Pillow takes it."""
    image = Image.fromarray(values.numpy().astype(np.int32 if values.dtype == torch.int64 else np.float32))
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))
    return torch.from_numpy(resized.astype(resized.dtype, copy=True)).to(values.dtype)
