"""From mask logits to masks in pixels of the original image.

Shape letters: m queries of one image, h w cells of the mask logits, H W the original image, p single pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from opendetr.postprocess.finite import require_finite
from opendetr.structures import ImageBatch, Output

Merge = Literal["default", "published"]

# So many values of resized masks are held at a time: 64 MiB of float32, and where each is read once 16 MiB.
_PIXELS_AT_ONCE = 2**24
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class MaskFrame:
    """Where the mask logits of one image lie; heights and widths in pixels.

    The logits cover the batch as it was padded, evenly: so they are trained.

    Attributes:
        padded: of the batch.
        processed: of the image in it, at its top left.
        original: of the image before it was resized.
    """

    padded: tuple[int, int]
    processed: tuple[int, int]
    original: tuple[int, int]

    def extent(self, logits: Tensor) -> tuple[float, float]:
        """Rows and columns of cells of (m, h, w) logits that the image covers; its border may lie within a cell."""
        rows, columns = logits.shape[-2:]
        return rows * self.processed[0] / self.padded[0], columns * self.processed[1] / self.padded[1]

    def cropped(self, logits: Tensor) -> Tensor:
        """The cells that the image covers, also in part."""
        rows, columns = (math.ceil(cells - 1e-6) for cells in self.extent(logits))
        return logits[..., :rows, :columns]

    def resized(self, logits: Tensor) -> Tensor:
        """(m, h, w) logits -> (m, H, W), in one bilinear step; cells of padding are never read."""
        extent = self.extent(logits)
        scales = [side / cells for side, cells in zip(self.original, extent, strict=True)]
        return _resize(self.cropped(logits).float(), self.original, scales)

    def rows(self, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """What `resized` gives, (m, rows, W), some rows at a time: for many masks of large images."""
        height, width = self.original
        extent = self.extent(logits)
        cells = self.cropped(logits).float()
        step = max(1, _VALUES_AT_ONCE // (max(len(logits), 1) * width))
        for start in range(0, height, step):
            pixels = torch.arange(start, min(start + step, height), device=logits.device)
            top, bottom, down = _neighbours(pixels, extent[0] / height, cells.shape[-2])
            part = cells[:, top].lerp(cells[:, bottom], down[:, None])
            yield slice(start, start + len(pixels)), _resize(part, (len(pixels), width), (1.0, width / extent[1]))

    def sampled(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """What `resized` has at single pixels: (m, h, w) logits and p rows and columns -> (m, p)."""
        cells = self.cropped(logits).float()
        extent = self.extent(logits)
        top, bottom, down = _neighbours(rows, extent[0] / self.original[0], cells.shape[-2])
        left, right, across = _neighbours(columns, extent[1] / self.original[1], cells.shape[-1])
        upper = cells[:, top, left].lerp(cells[:, top, right], across)
        lower = cells[:, bottom, left].lerp(cells[:, bottom, right], across)
        return upper.lerp(lower, down)

    def chunks(self, num_masks: int) -> Iterator[slice]:
        """So many masks at a time that the original image may be large."""
        step = max(1, _PIXELS_AT_ONCE // (self.original[0] * self.original[1]))
        return (slice(start, min(start + step, num_masks)) for start in range(0, num_masks, step))


def _resize(values: Tensor, size: tuple[int, int], scales: Sequence[float]) -> Tensor:
    """(m, h, w) -> (m, H, W), bilinearly; rows and columns of the result for one of `values`, borders within a cell."""
    # `interpolate` takes a size or a scale; a border that lies within a cell needs both.
    resized: Tensor = torch.ops.aten.upsample_bilinear2d.default(values[None], list(size), False, *scales)
    return resized[0]


def _neighbours(pixels: Tensor, cells_per_pixel: float, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells before and after the centre of each pixel, and how far the centre lies from the first to the second."""
    place = ((pixels + 0.5) * cells_per_pixel - 0.5).clamp(0, num_cells - 1).float()
    before = place.long()
    return before, (before + 1).clamp(max=num_cells - 1), place - before


@torch.no_grad()
def mask_logits(output: Output, queries: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(m, h, w) mask logits of each image, of the queries (m,) that are asked for in it; each is computed once.

    Raises:
        NonFiniteError: a logit is not finite.
    """
    distinct = [some.unique(return_inverse=True) for some in queries]
    image = torch.cat([torch.full_like(some, index) for index, (some, _) in enumerate(distinct)])
    device = output.final.boxes.device
    assert output.masks is not None
    logits = output.masks(image.to(device), torch.cat([some for some, _ in distinct]).to(device))
    require_finite("a mask logit", logits)
    parts = logits.split([len(some) for some, _ in distinct])
    return tuple(part[places.to(device)] for part, (_, places) in zip(parts, distinct, strict=True))


def mask_frames(images: ImageBatch, sizes: Tensor) -> list[MaskFrame]:
    """Where the mask logits of each image lie; `sizes` (B, 2) are those of the original images."""
    rows = zip(images.sizes.tolist(), sizes.tolist(), strict=True)
    return [
        MaskFrame(padded=images.shape, processed=(h, w), original=(height, width)) for (h, w), (height, width) in rows
    ]


@torch.no_grad()
def instance_masks(logits: Tensor, frame: MaskFrame, *, merge: Merge = "default") -> Tensor:
    """The masks of one image in its original pixels, on the CPU.

    "default" cuts the logits to the image and resizes them once, bilinearly; a mask is where they are positive, that is
    where its probability is above one half. "published" is DETR's rule to the letter: bilinear to the padded batch, cut
    to the image, and the nearest pixel of that for each pixel of the original.

    Args:
        logits: (m, h, w) float, of the padded batch.
        frame: where they lie.
        merge: the rule.

    Returns:
        (m, H, W) bool.
    """
    masks = torch.empty(len(logits), *frame.original, dtype=torch.bool)
    for chunk in frame.chunks(len(logits)):
        some = logits[chunk]
        masks[chunk] = _published_masks(some, frame) if merge == "published" else frame.resized(some) > 0
    return masks


def _published_masks(logits: Tensor, frame: MaskFrame) -> Tensor:
    height, width = frame.processed
    probabilities = F.interpolate(logits[:, None].float(), frame.padded, mode="bilinear").sigmoid()
    processed = (probabilities > 0.5)[..., :height, :width].float()
    return F.interpolate(processed, frame.original, mode="nearest")[:, 0].bool()
