"""Compute the masks and the panoptic map of each image of a batch. Prediction, evaluation and benchmarks use this.

Shape letters: B batch, n queries and m candidates of one image, h w cells of the mask logits, H W the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opendetr.categories import Categories
from opendetr.postprocess.masks import MaskFrame, Merge, instance_masks, mask_frames, mask_logits
from opendetr.postprocess.panoptic import Candidates, panoptic_map
from opendetr.results import Panoptic
from opendetr.structures import ImageBatch, Output


@dataclass(frozen=True)
class ImageMasks:
    """The mask logits of one image. `instances` and `panoptic` resize them to the original image.

    Attributes:
        query_logits: (n, h, w) float, the mask logits of the requested queries.
        candidates: the queries that take part in the panoptic map.
        candidate_logits: (m, h, w) float, the mask logits of `candidates`.
        frame: maps the cells of the logits to pixels of the image.
    """

    query_logits: Tensor
    candidates: Candidates
    candidate_logits: Tensor
    frame: MaskFrame

    def instances(self, *, merge: Merge = "default") -> Tensor:
        """The masks of the requested queries, (n, H, W) bool; see `instance_masks`."""
        return instance_masks(self.query_logits, self.frame, merge=merge)

    def panoptic(self, categories: Categories, *, merge: Merge = "default") -> Panoptic:
        """The panoptic map; see `panoptic_map`."""
        return panoptic_map(self.candidates, self.candidate_logits, self.frame, categories, merge=merge)


def image_masks(
    output: Output,
    images: ImageBatch,
    sizes: Tensor,
    *,
    queries: Sequence[Tensor] | None = None,
    found: Sequence[Candidates] | None = None,
) -> list[ImageMasks]:
    """Compute the mask logits of each image of a batch. The mask of a query is computed only once.

    Args:
        output: the output of a model with a mask head for the batch.
        images: the batch.
        sizes: (B, 2), height and width of the original images in pixels.
        queries: for each image the queries (n,) whose instance masks are requested. None: no queries.
        found: for each image the queries that take part in its panoptic map. None: no queries.
    """
    if queries is None:
        queries = [torch.empty(0, dtype=torch.int64)] * len(sizes)
    if found is None:
        found = [Candidates.none()] * len(sizes)
    all_queries = [torch.cat((requested, chosen.queries)) for requested, chosen in zip(queries, found, strict=True)]
    masks = []
    logits = mask_logits(output, all_queries)
    for chosen, image_logits, frame in zip(found, logits, mask_frames(images, sizes), strict=True):
        query_logits, candidate_logits = image_logits.split((len(image_logits) - len(chosen), len(chosen)))
        masks.append(ImageMasks(query_logits, chosen, candidate_logits, frame))
    return masks
