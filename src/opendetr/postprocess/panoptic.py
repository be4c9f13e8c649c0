"""Convert mask logits to a panoptic map, in which every pixel belongs to at most one segment.

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

# Segments of at most this many pixels are dropped (Carion et al., 2020, in the published code).
_NEGLIGIBLE_AREA = 4


@dataclass(frozen=True)
class Candidates:
    """The queries of one image that take part in its panoptic map.

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
    """The queries of each image that predict a class rather than "no object", with a score above `min_score`.

    Args:
        predictions: the logits (B, Q, C) of one decoder layer.
        categories: the categories of the labels.
        min_score: the threshold. A tensor (K,) holds one threshold per class. None: the default of the scoring.
        merge: the rule of the panoptic map. "published" keeps categories that are marked unused.

    Raises:
        ValueError: a label has no category.
        NonFiniteError: a logit or a box is not finite.
    """
    min_score = predictions.scoring.panoptic_score if min_score is None else min_score
    require_finite("a class logit or box", predictions.logits, predictions.boxes)
    scores, labels = (values.cpu() for values in predictions.scoring.best(predictions.logits.float()))
    if labels.numel() and int(labels.max()) >= len(categories):
        raise ValueError(
            f"panoptic: the model predicts label {int(labels.max())}, but there are {len(categories)} categories; "
            "pass the categories that it was trained with"
        )
    kept = scores > torch.as_tensor(min_score, dtype=scores.dtype).expand(len(categories))[labels]
    if merge != "published":
        kept &= torch.tensor(categories.used, dtype=torch.bool)[labels]
    return [
        Candidates(image_kept.nonzero()[:, 0], image_labels[image_kept], image_scores[image_kept])
        for image_kept, image_labels, image_scores in zip(kept, labels, scores, strict=True)
    ]


@torch.no_grad()
def panoptic_map(
    found: Candidates, logits: Tensor, frame: MaskFrame, categories: Categories, *, merge: Merge = "default"
) -> Panoptic:
    """The panoptic map of one image, on the CPU. Each pixel belongs to the query with the largest mask logit there.

    "default" crops the logits to the image and resizes them to the original size in one step. All stuff of one class is
    one segment. Segments of at most 4 pixels are dropped. Each of their pixels goes to the remaining segment with the
    largest logit there.

    "published" follows the code of Carion et al. (2020) exactly, including its faults. It resizes the logits of the
    whole padded batch to the size of the image, which distorts them. It merges stuff of one class only
    before the first check of areas. There the merged queries count as empty and are dropped, and their pixels go to
    other masks.

    Args:
        found: the queries that take part.
        logits: (m, h, w) float, the mask logits of these queries, covering the padded batch.
        frame: maps the cells of the logits to pixels of the image.
        categories: the categories of the labels.
        merge: the rule, "default" or "published".

    Raises:
        ValueError: the numbers of masks and queries differ, or there is no such rule.
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
    """The positions of each segment's queries: one for a thing, all of a class for stuff; by the first query."""
    groups: dict[object, list[int]] = {}
    for position, (label, thing) in enumerate(zip(labels, isthing, strict=True)):
        groups.setdefault(("thing", position) if thing else label, []).append(position)
    return list(groups.values())


def _default(logits: Tensor, frame: MaskFrame, groups: list[list[int]]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Group index of each pixel (H, W), its logit (H, W), and the remaining groups that the indices refer to."""
    group_of = _group_of(groups, len(logits)).to(logits.device)
    winners, strengths = _strongest(logits, frame)
    indices = group_of[winners]
    large = torch.bincount(indices.flatten(), minlength=len(groups)) > _NEGLIGIBLE_AREA
    if not large.any():
        return torch.zeros_like(indices), torch.full_like(strengths, -torch.inf), []
    if not large.all():
        rows, columns = (~large)[indices].nonzero(as_tuple=True)
        remaining = large[group_of].nonzero()[:, 0]
        # The remaining segments only gain pixels, so none of them becomes small: no second pass is needed.
        values, winner = frame.sampled(logits[remaining], rows, columns).max(0)
        indices[rows, columns], strengths[rows, columns] = group_of[remaining[winner]], values
    renumbered = large.cumsum(0) - 1
    return renumbered[indices], strengths, [group for group, kept in zip(groups, large.tolist(), strict=True) if kept]


def _group_of(groups: list[list[int]], num_queries: int) -> Tensor:
    """(m,) the group index of each query."""
    group_of = torch.empty(num_queries, dtype=torch.int64)
    for number, members in enumerate(groups):
        group_of[members] = number
    return group_of


def _strongest(logits: Tensor, frame: MaskFrame) -> tuple[Tensor, Tensor]:
    """At each pixel of the original image the position of the mask with the largest logit, and the logit, (H, W)."""
    winners = torch.empty(frame.original, dtype=torch.int64, device=logits.device)
    strengths = torch.empty(frame.original, device=logits.device)
    for rows, resized in frame.rows(logits):
        strengths[rows], winners[rows] = resized.max(0)
    return winners, strengths


def _published(logits: Tensor, frame: MaskFrame, groups: list[list[int]]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """As `_default`, but the returned groups are single queries: of merged stuff only the first query remains."""
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
    """Resize (h, w) to (H, W) with the nearest-neighbour interpolation of Pillow."""
    image = Image.fromarray(values.numpy().astype(np.int32 if values.dtype == torch.int64 else np.float32))
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST))
    return torch.from_numpy(resized.astype(resized.dtype, copy=True)).to(values.dtype)
