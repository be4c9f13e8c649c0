"""From a batch's output to the masks and the map of each image: the one way for prediction, scores and benchmarks.

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
    """What a mask head says of one image; masks and map of its original size are made when they are asked for.

    Attributes:
        of_queries: (n, h, w) float, the mask logits of the queries that were asked for.
        found: the queries that take part in the map.
        of_found: (m, h, w) float, the mask logits of these.
        frame: where the logits lie.
    """

    of_queries: Tensor
    found: Candidates
    of_found: Tensor
    frame: MaskFrame

    def instances(self, *, merge: Merge = "default") -> Tensor:
        """(n, H, W) bool, the masks of the queries that were asked for, as `instance_masks` makes them."""
        return instance_masks(self.of_queries, self.frame, merge=merge)

    def panoptic(self, categories: Categories, *, merge: Merge = "default") -> Panoptic:
        """The map, as `panoptic_map` makes it."""
        return panoptic_map(self.found, self.of_found, self.frame, categories, merge=merge)


def image_masks(
    output: Output,
    images: ImageBatch,
    sizes: Tensor,
    *,
    queries: Sequence[Tensor] | None = None,
    found: Sequence[Candidates] | None = None,
) -> list[ImageMasks]:
    """What the mask head says of each image of a batch; no mask is computed twice.

    Args:
        output: of a model with a mask head, for the batch.
        images: the batch.
        sizes: (B, 2), height and width of the original images.
        queries: (n,) of each image, to get masks of; none when omitted.
        found: the queries of each image that take part in its map; none when omitted.
    """
    if queries is None:
        queries = [torch.empty(0, dtype=torch.int64)] * len(sizes)
    if found is None:
        found = [Candidates.none()] * len(sizes)
    asked = [torch.cat((some, others.queries)) for some, others in zip(queries, found, strict=True)]
    masks = []
    logits = mask_logits(output, asked)
    for others, of_image, frame in zip(found, logits, mask_frames(images, sizes), strict=True):
        of_queries, of_found = of_image.split((len(of_image) - len(others), len(others)))
        masks.append(ImageMasks(of_queries, others, of_found, frame))
    return masks
