"""Convert mask logits to masks in pixels of the original image.

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

# Limits on the values of resized masks held at a time: 64 MiB of float32, and 16 MiB where masks are resized by rows.
_PIXELS_AT_ONCE = 2**24
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class MaskFrame:
    """Maps the cells of an image's mask logits to its pixels. Sizes are (height, width) in pixels.

    The cells evenly cover the padded size of the batch, as in training.

    Attributes:
        padded: size of the padded batch.
        processed: size of the resized image, which lies at the top left of the padded area.
        original: size of the image before resizing.
    """

    padded: tuple[int, int]
    processed: tuple[int, int]
    original: tuple[int, int]

    def extent(self, logits: Tensor) -> tuple[float, float]:
        """Rows and columns of (m, h, w) logits that the image covers; fractional if its border cuts a cell."""
        rows, columns = logits.shape[-2:]
        return rows * self.processed[0] / self.padded[0], columns * self.processed[1] / self.padded[1]

    def cropped(self, logits: Tensor) -> Tensor:
        """The cells that the image covers at least partly."""
        rows, columns = (math.ceil(cells - 1e-6) for cells in self.extent(logits))
        return logits[..., :rows, :columns]

    def resized(self, logits: Tensor) -> Tensor:
        """Resize (m, h, w) logits to (m, H, W) bilinearly. Cells of padding have no influence."""
        extent = self.extent(logits)
        scales = [side / cells for side, cells in zip(self.original, extent, strict=True)]
        return _resize(self.cropped(logits).float(), self.original, scales)

    def rows(self, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the result of `resized` in parts (m, rows, W), which bounds memory for many large masks."""
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
        """The result of `resized` at single pixels: (m, h, w) logits, p rows and p columns -> (m, p)."""
        cells = self.cropped(logits).float()
        extent = self.extent(logits)
        top, bottom, down = _neighbours(rows, extent[0] / self.original[0], cells.shape[-2])
        left, right, across = _neighbours(columns, extent[1] / self.original[1], cells.shape[-1])
        upper = cells[:, top, left].lerp(cells[:, top, right], across)
        lower = cells[:, bottom, left].lerp(cells[:, bottom, right], across)
        return upper.lerp(lower, down)

    def chunks(self, num_masks: int) -> Iterator[slice]:
        """Yield slices of the masks, which bound memory for large images."""
        step = max(1, _PIXELS_AT_ONCE // (self.original[0] * self.original[1]))
        return (slice(start, min(start + step, num_masks)) for start in range(0, num_masks, step))


def _resize(values: Tensor, size: tuple[int, int], scales: Sequence[float]) -> Tensor:
    """Resize (m, h, w) to (m, H, W) bilinearly. `scales` are H and W pixels per cell, also fractional."""
    # `interpolate` takes either a size or a scale. An image border within a cell needs both.
    resized: Tensor = torch.ops.aten.upsample_bilinear2d.default(values[None], list(size), False, *scales)
    return resized[0]


def _neighbours(pixels: Tensor, cells_per_pixel: float, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel the two cells whose centres enclose its centre, and the interpolation weight of the second."""
    position = ((pixels + 0.5) * cells_per_pixel - 0.5).clamp(0, num_cells - 1).float()
    before = position.long()
    return before, (before + 1).clamp(max=num_cells - 1), position - before


@torch.no_grad()
def mask_logits(output: Output, queries: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The mask logits (m, h, w) of the given queries (m,) of each image. Repeated queries are computed once.

    Raises:
        NonFiniteError: a logit is not finite.
    """
    distinct = [image_queries.unique(return_inverse=True) for image_queries in queries]
    images = torch.cat([torch.full_like(unique, index) for index, (unique, _) in enumerate(distinct)])
    device = output.final.boxes.device
    assert output.masks is not None
    logits = output.masks(images.to(device), torch.cat([unique for unique, _ in distinct]).to(device))
    require_finite("a mask logit", logits)
    parts = logits.split([len(unique) for unique, _ in distinct])
    return tuple(part[inverse.to(device)] for part, (_, inverse) in zip(parts, distinct, strict=True))


def mask_frames(images: ImageBatch, sizes: Tensor) -> list[MaskFrame]:
    """The frame of each image. `sizes` (B, 2): height and width of the original images in pixels."""
    rows = zip(images.sizes.tolist(), sizes.tolist(), strict=True)
    return [
        MaskFrame(padded=images.shape, processed=(h, w), original=(height, width)) for (h, w), (height, width) in rows
    ]


@torch.no_grad()
def instance_masks(logits: Tensor, frame: MaskFrame, *, merge: Merge = "default") -> Tensor:
    """The masks of one image in its original size, on the CPU.

    "default" crops the logits to the image and resizes them bilinearly to the original size in one step. A pixel
    belongs to a mask if its logit is positive, that is, if its probability is above 0.5.

    "published" follows the code of DETR exactly: resize the logits bilinearly to the padded batch, threshold, crop to
    the image, and resize the masks to the original size with nearest-neighbour interpolation.

    Args:
        logits: (m, h, w) float, covering the padded batch.
        frame: maps the cells of the logits to pixels of the image.
        merge: the rule, "default" or "published".

    Returns:
        (m, H, W) bool.
    """
    masks = torch.empty(len(logits), *frame.original, dtype=torch.bool)
    for chunk in frame.chunks(len(logits)):
        part = logits[chunk]
        masks[chunk] = _published_masks(part, frame) if merge == "published" else frame.resized(part) > 0
    return masks


def _published_masks(logits: Tensor, frame: MaskFrame) -> Tensor:
    height, width = frame.processed
    probabilities = F.interpolate(logits[:, None].float(), frame.padded, mode="bilinear").sigmoid()
    processed = (probabilities > 0.5)[..., :height, :width].float()
    return F.interpolate(processed, frame.original, mode="nearest")[:, 0].bool()
