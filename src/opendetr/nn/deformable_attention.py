"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, section 4.1, eq. 3).

Every query attends to a few points of every level of the memory, instead of all cells. It predicts the points.

Shape letters: B batch, N tokens of all levels, Q queries, H heads, L levels, P points per head and level, D width,
d = D / H, h w cells of a level, R cells of all framed levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from opendetr.nn.attention import AttentionModule
from opendetr.nn.layers import full_precision
from opendetr.nn.native import library, sample_native

Shapes = Sequence[tuple[int, int]]

_SAMPLES_AT_ONCE = 1 << 18  # bounds the memory; smaller values need more passes over the table in backward


def sample_and_sum(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples of all levels. Samples outside a level are zero.

    Args:
        value: (B, N, H, d), all levels in order, each flattened row by row.
        shapes: h and w of each of the L levels. The products h w sum to N.
        locations: (B, Q, H, L, P, 2), x and y; 0 and 1 are the edges of a level, including padding.
        weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H d) float32.
    """
    value, locations, weights = full_precision(value), full_precision(locations), full_precision(weights)
    if value.device.type != "cpu" or value.dtype != torch.float32 or _is_traced():
        return _sample_levels(value, shapes, locations, weights)
    if library() is not None:
        return sample_native(value, shapes, locations, weights)
    return _SampleRows.apply(value, tuple(shapes), locations, weights)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


# ------------------------------------------------------------------------------ all devices, compilation and export


def _sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_and_sum` with `grid_sample`, level by level."""
    levels = value.split([h * w for h, w in shapes], 1)
    sums = []
    for index, (level, shape) in enumerate(zip(levels, shapes, strict=True)):
        pieces = level, shape, locations[:, :, :, index], weights[:, :, :, index]
        if torch.is_grad_enabled() and not _is_traced():  # backward samples again, which saves memory
            sums.append(checkpoint(_sample_level, *pieces, use_reentrant=False))
        else:
            sums.append(_sample_level(*pieces))
    return torch.stack(sums).sum(0)


def _sample_level(level: Tensor, shape: tuple[int, int], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, h w, H, d), (B, Q, H, P, 2), (B, Q, H, P) -> (B, Q, H d)."""
    maps = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, shape)  # (B H, d, h, w)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B H, Q, P, 2)
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    summed = (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # (B H, d, Q)
    return summed.unflatten(0, (level.shape[0], -1)).permute(0, 3, 1, 2).flatten(2)


# ----------------------------------------------------------------------------------------- CPUs without a C compiler


class _Table:
    """The layout of all levels as one table, with one row of d numbers per cell and head.

    Every level has a frame of zero cells, and locations are clamped to the frame. So corners need no bounds checks, and
    samples outside are zero. With such a table `embedding_bag` can do the sampling. It reads the d numbers of a sample
    from consecutive memory, which `grid_sample` does not.

    Args:
        shapes: h and w of each level.
        batch, heads, num_points: B, H, P.
    """

    def __init__(self, shapes: Shapes, batch: int, heads: int, num_points: int) -> None:
        self.shapes, self.batch, self.heads = shapes, batch, heads
        # The neighbours of the last cell are read with weight 0, so they must exist.
        lengths = [(h + 2) * (w + 2) + w + 3 for h, w in shapes]
        self.starts = [sum(lengths[:index]) for index in range(len(lengths))]
        self.num_cells = sum(lengths)
        assert batch * self.num_cells * heads < 1 << 31, "rows are counted in 32 bits"
        # One entry per sample of a query and head, because broadcasting along a short last axis is slow.
        self.num_points = num_points
        self.sizes = self._of_samples([(w, h) for h, w in shapes])  # (L P 2,), x and y
        self.strides = self._of_samples([(w + 2,) for _, w in shapes])  # (L P,)
        self.offsets = self._of_samples([(start,) for start in self.starts])  # (L P,)
        self.row_strides = self.strides.to(torch.int32) * heads

    def _of_samples(self, of_levels: list[tuple[int, ...]]) -> Tensor:
        return torch.tensor(of_levels, dtype=torch.float32)[:, None].expand(-1, self.num_points, -1).flatten()

    def filled(self, value: Tensor) -> Tensor:
        """(B, N, H, d) -> (B R H, d)."""
        rows = value.new_zeros(self.batch, self.num_cells, value.shape[2] * value.shape[3])
        levels = value.flatten(2).split([h * w for h, w in self.shapes], 1)
        for inner, level, shape in zip(self._levels(rows), levels, self.shapes, strict=True):
            inner.copy_(level.unflatten(1, shape))
        return rows.view(-1, value.shape[3])

    def read(self, rows: Tensor) -> Tensor:
        """The inverse of `filled`: (B R H, d) -> (B, N, H, d)."""
        levels = self._levels(rows.view(self.batch, self.num_cells, -1))
        return torch.cat([level.flatten(1, 2) for level in levels], 1).unflatten(2, (self.heads, -1))

    def _levels(self, rows: Tensor) -> Iterator[Tensor]:
        """Views (B, h, w, H d) of the cells inside the frame of each level."""
        for start, (h, w) in zip(self.starts, self.shapes, strict=True):
            framed = rows[:, start : start + (h + 2) * (w + 2)].unflatten(1, (h + 2, w + 2))
            yield framed[:, 1:-1, 1:-1]

    def add_corners(self, rows: Tensor, sums: Tensor, corner: int) -> None:
        """Add `sums` (B R H, d), indexed by the first cell of the samples, to `rows` (B R H, d) at one corner."""
        rows, sums = (x.view(self.batch, self.num_cells, -1) for x in (rows, sums))
        for start, (h, w) in zip(self.starts, self.shapes, strict=True):
            step, end = corner // 2 * (w + 2) + corner % 2, start + (h + 2) * (w + 2) + w + 3
            rows[:, start + step : end] += sums[:, start : end - step]


@dataclass(frozen=True)
class _Corners:
    """The four cells around each sample, for S = L P samples of each of m pairs of query and head.

    Attributes:
        first: (m, S) int32, the row of the upper left cell.
        shares: four (m, S), bilinear weights times attention weights.
        x, y: (m, S), position of the sample between the centres of the cells, in 0..1.
        inside: (m, 2 S) bool, False where x or y was clamped, so its gradient is zero.
    """

    first: Tensor
    shares: tuple[Tensor, ...]
    x: Tensor
    y: Tensor
    inside: Tensor

    def rows(self, table: _Table) -> Tensor:
        """(m, 4 S) int32, the rows of all corners."""
        below = self.first + table.row_strides
        return torch.cat((self.first, self.first + table.heads, below, below + table.heads), 1)

    def weights(self) -> Tensor:
        """(m, 4 S), in the order of `rows`."""
        return torch.cat(self.shares, 1)


def _corners(table: _Table, first_row: Tensor, locations: Tensor, weights: Tensor) -> _Corners:
    """The corners of locations (m, 2 S) with weights (m, S). `first_row` (m, 1) is that of the image and head."""
    place = (locations * table.sizes).add_(0.5)  # 0 is the centre of the frame's first cell
    inside = (place > 0) & (place < table.sizes + 1)
    torch.minimum(place.clamp_(min=0), table.sizes + 1, out=place)
    cell = place.floor()
    x, y = place.sub_(cell).unflatten(1, (-1, 2)).unbind(-1)
    column, line = cell.unflatten(1, (-1, 2)).unbind(-1)
    first = (line * table.strides).add_(column).add_(table.offsets).to(torch.int32)
    first = first.clamp_(min=0).mul_(table.heads).add_(first_row)  # NaN locations have no cell
    right, lower = weights * x, weights * y
    lower_right = right * y
    upper_right, lower_left = right - lower_right, lower - lower_right
    upper_left = weights - upper_right - lower
    return _Corners(first, (upper_left, upper_right, lower_left, lower_right), x, y, inside)


def _pieces(table: _Table, num_queries: int) -> Iterator[tuple[slice, Tensor]]:
    """Split the B Q H pairs of query and head to bound the memory. Yields slices and their `first_row` (m, 1)."""
    heads, total = table.heads, table.batch * num_queries
    size = max(1, _SAMPLES_AT_ONCE // (heads * len(table.strides)))
    head = torch.arange(heads, dtype=torch.int32)
    for start in range(0, total, size):
        stop = min(start + size, total)
        image = torch.arange(start, stop).div_(num_queries, rounding_mode="floor").to(torch.int32)
        first_row = (image[:, None] * (table.num_cells * heads) + head).view(-1, 1)
        yield slice(start * heads, stop * heads), first_row


class _SampleRows(torch.autograd.Function):
    """`sample_and_sum` with `embedding_bag`. Only the arguments are saved for backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        batch, num_queries, heads, _, num_points = weights.shape
        table = _Table(shapes, batch, heads, num_points)
        rows = table.filled(value)
        locations, weights = locations.reshape(-1, len(table.sizes)), weights.reshape(-1, len(table.strides))
        out = value.new_empty(len(weights), value.shape[3])
        for piece, first_row in _pieces(table, num_queries):
            corners = _corners(table, first_row, locations[piece], weights[piece])
            out[piece] = F.embedding_bag(corners.rows(table), rows, per_sample_weights=corners.weights(), mode="sum")
        return out.view(batch, num_queries, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, locations, weights = ctx.saved_tensors
        batch, num_queries, heads, _, num_points = weights.shape
        table = _Table(ctx.shapes, batch, heads, num_points)
        rows = table.filled(value)
        of_locations, of_weights = torch.empty(locations.shape), torch.empty(weights.shape)
        locations, weights = locations.reshape(-1, len(table.sizes)), weights.reshape(-1, len(table.strides))
        gradient = gradient.reshape(len(weights), -1)
        for piece, first_row in _pieces(table, num_queries):
            corners = _corners(table, first_row, locations[piece], weights[piece])
            slope, worth = _place_gradients(table, corners, rows, gradient[piece])
            of_weights.view_as(weights)[piece] = worth
            slope.mul_(weights[piece][..., None])
            of_locations.view_as(locations)[piece] = slope.flatten(1).mul_(table.sizes).mul_(corners.inside)
        of_rows = rows.zero_()  # corners are computed twice to avoid a second table
        for piece, first_row in _pieces(table, num_queries):
            corners = _corners(table, first_row, locations[piece], weights[piece])
            _add_row_gradients(table, corners, gradient[piece], of_rows)
        return table.read(of_rows), None, of_locations, of_weights


def _place_gradients(table: _Table, corners: _Corners, rows: Tensor, of_sums: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the samples' positions in cells, (m, S, 2), and of their weights, (m, S).

    The backward pass of `embedding_bag` computes the gradients of the corner weights.
    """
    with torch.enable_grad():
        weights = corners.weights().requires_grad_()
        sums = F.embedding_bag(corners.rows(table), rows, per_sample_weights=weights, mode="sum")
        (worth,) = torch.autograd.grad(sums, weights, of_sums)
    upper_left, upper_right, lower_left, lower_right = worth.chunk(4, 1)
    across_top, across_bottom = upper_right - upper_left, lower_right - lower_left
    top = (corners.x * across_top).add_(upper_left)
    down = (corners.x * across_bottom).add_(lower_left).sub_(top)
    across = across_bottom.sub_(across_top).mul_(corners.y).add_(across_top)
    return torch.stack((across, down), -1), (corners.y * down).add_(top)


def _add_row_gradients(table: _Table, corners: _Corners, of_sums: Tensor, of_rows: Tensor) -> None:
    """Add each sample's share of `of_sums` (m, d) to its four rows.

    Samples are sorted by their first row, so `embedding_bag` can sum the gradients of each row. The other corners are
    shifts of the same sums.
    """
    keys, order = corners.first.flatten().sort()
    shares = [share.flatten().index_select(0, order) for share in corners.shares]
    query = order.div_(corners.first.shape[1], rounding_mode="floor").to(torch.int32)
    offsets = torch.searchsorted(keys, torch.arange(len(of_rows), dtype=torch.int32), out_int32=True)
    for corner, share in enumerate(shares):
        sums = F.embedding_bag(query, of_sums, offsets, per_sample_weights=share, mode="sum")
        table.add_corners(of_rows, sums, corner)


# -------------------------------------------------------------------------------------------------------------- module


class DeformableWeights(NamedTuple):
    """The sampling locations of deformable attention and their weights.

    Attributes:
        locations: (B, Q, H, L, P, 2) float32, x and y; 0 and 1 are the edges of each padded level. Locations may lie
            outside, where samples are zero. For coordinates in 0..1 of the unpadded image, divide by the share of the
            padded width and height that the image covers.
        weights: (B, Q, H, L, P) float32. The weights of a query and head sum to 1 over levels and points. Samples in
            the padding keep their weight, but the values there are zero.
    """

    locations: Tensor
    weights: Tensor


class DeformableAttention(AttentionModule):
    """Attention to a few sampled points of every level.

    Args:
        width: D, features of queries, memory and output.
        num_heads, num_levels, num_points: H, L, P.
        swap_offsets: divide offsets from a point by (h, w) of the level instead of (w, h), as TransTrack does.

    Raises:
        ValueError: `num_heads` does not divide `width`.
    """

    def __init__(
        self, width: int, num_heads: int, num_levels: int, num_points: int, *, swap_offsets: bool = False
    ) -> None:
        super().__init__()
        self.swap_offsets = swap_offsets
        if width % num_heads:
            raise ValueError(f"attention: width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(width, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(width, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.initialise()

    def initialise(self) -> None:
        """Place point p of each head p + 1 cells from the reference, in one direction per head, with equal weights."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angles.cos(), angles.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # onto a square
        distance = torch.arange(1, self.num_points + 1)[:, None]
        offsets = (direction[:, None, None] * distance).expand(-1, self.num_levels, -1, -1)  # (H, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for zeros in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zeros)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> Tensor:
        """Apply the attention.

        Args:
            query: (B, Q, D), with position.
            reference: (B, Q, L, 2) x and y, or (B, Q, L, 4) cx, cy, w, h; 0 and 1 are the edges of each padded level.
            memory: (B, N, D), all levels in order, without position.
            shapes: h and w of each level.
            padding: (B, N) bool, True where the memory is padding, or None.

        Returns:
            (B, Q, D).
        """
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        locations, weights = self._sampling(query, reference, shapes)
        sampled = sample_and_sum(value.unflatten(-1, (self.num_heads, -1)), shapes, locations, weights)
        return self.output_proj(sampled.to(value.dtype))

    def weights(
        self, query: Tensor, reference: Tensor, memory: Tensor, shapes: Shapes, padding: Tensor | None = None
    ) -> DeformableWeights:
        """Sampling locations and weights for the arguments of `forward`; `memory` and `padding` are not used."""
        return DeformableWeights(*self._sampling(query, reference, shapes))

    def _sampling(self, query: Tensor, reference: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, H, L, P, 2) and weights (B, Q, H, L, P), both float32."""
        of_samples = (self.num_heads, self.num_levels, self.num_points)
        weights = full_precision(self.attention_weights(query)).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        offsets = full_precision(self.sampling_offsets(query)).unflatten(-1, (*of_samples, 2))
        return self._locate(reference, offsets, shapes), weights.unflatten(-1, of_samples[1:])

    def _locate(self, reference: Tensor, offsets: Tensor, shapes: Shapes) -> Tensor:
        """Offsets (B, Q, H, L, P, 2) from the references, in cells or, for boxes, in shares of half a box.

        Nothing is broadcast along the short last axes, which CPUs do cell by cell: it is spread for all heads first.
        """
        reference = reference.to(offsets.dtype)[:, :, None, :, None].expand(-1, -1, -1, -1, self.num_points, -1)
        centre = reference[..., :2].flatten(3)  # (B, Q, 1, L P 2)
        if reference.shape[-1] == 2:
            sides = [(h, w) if self.swap_offsets else (w, h) for h, w in shapes]
            sizes = torch.tensor(sides, dtype=offsets.dtype, device=offsets.device)
            unit = offsets.flatten(3) / sizes[:, None].expand(-1, self.num_points, -1).flatten()
        else:
            unit = offsets.flatten(3) * (reference[..., 2:] * (0.5 / self.num_points)).flatten(3)
        return (centre + unit).view_as(offsets)
