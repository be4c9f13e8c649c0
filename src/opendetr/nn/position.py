"""Position encodings of cells: sine encodings and learned tables.

Shape letters: B batch, D width, h w features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from opendetr.structures import FeatureMap


def _wavelengths(num_features: int, temperature: float, like: Tensor) -> Tensor:
    """(num_features,): two features share a wave length, one for the sine and one for the cosine."""
    exponents = 2 * torch.div(torch.arange(num_features, dtype=like.dtype), 2, rounding_mode="floor")
    return (temperature ** (exponents / num_features)).to(like.device)


def _waves(place: Tensor, wavelengths: Tensor) -> Tensor:
    """Positions (...), wavelengths (n,) -> (..., n): sine in even features, cosine in odd features."""
    phase = place[..., None] / wavelengths
    return torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), -1).flatten(-2)


def embed_coordinates(coordinates: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of points or boxes, as `SinePosition` does for cells.

    Args:
        coordinates: (..., k) float32 in 0..1. `SinePosition` has y before x.
        num_features: features per coordinate, an even number.
        temperature: base of the wavelengths.

    Returns:
        (..., k * num_features), in the order of the coordinates.
    """
    return _waves(2 * math.pi * coordinates, _wavelengths(num_features, temperature, coordinates)).flatten(-2)


class SinePosition(nn.Module):
    """Sine encoding of each cell's position among the valid cells, y features before x features.

    Positions are counted from 1, divided by the number of valid cells on the axis, and multiplied by 2 pi. So images of
    all sizes span the same range (DETR, appendix A.4; "Attention is all you need", section 3.5).

    Args:
        width: D, output features, half of them for each axis.
        temperature: base of the wavelengths.
        shift: added to each count. -0.5 gives the centre of a cell (Deformable DETR), 0 its far edge (DETR).
    """

    def __init__(self, width: int, temperature: float = 10000.0, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift
        self.num_features, self.temperature = width // 2, temperature

    def forward(self, features: FeatureMap) -> Tensor:
        """Features (their shape and padding only) -> (B, D, h, w), in float32 at least."""
        b, _, h, w = features.values.shape
        device, dtype = features.values.device, torch.promote_types(features.values.dtype, torch.float32)
        if features.padding is None:
            y = torch.arange(1, h + 1, dtype=dtype, device=device)[None, :, None].expand(1, h, w)
            x = torch.arange(1, w + 1, dtype=dtype, device=device)[None, None, :].expand(1, h, w)
        else:
            valid = ~features.padding
            y, x = valid.cumsum(1, dtype=dtype), valid.cumsum(2, dtype=dtype)
        wavelengths = _wavelengths(self.num_features, self.temperature, y)
        y = _waves((y + self.shift) / (y[:, -1:, :] + 1e-6) * (2 * math.pi), wavelengths)
        x = _waves((x + self.shift) / (x[:, :, -1:] + 1e-6) * (2 * math.pi), wavelengths)
        return torch.cat((y, x), -1).permute(0, 3, 1, 2).expand(b, -1, -1, -1)


class LearnedPosition(nn.Module):
    """Learned encoding with one vector per column and per row, x features before y features. Padding is ignored.

    Args:
        width: D, output features, half of them for each axis.
        num_cells: maximum side of a feature map, in cells.
    """

    def __init__(self, width: int, num_cells: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(num_cells, width // 2)
        self.col_embed = nn.Embedding(num_cells, width // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, features: FeatureMap) -> Tensor:
        """Features (their shape only) -> (B, D, h, w).

        Raises:
            ValueError: a side has more cells than the table.
        """
        b, _, h, w = features.values.shape
        num_cells = self.row_embed.num_embeddings
        if max(h, w) > num_cells:
            raise ValueError(
                f"learned positions: a feature map of {h}x{w} cells does not fit a table of {num_cells}; "
                "use smaller images or position=sine"
            )
        rows = self.row_embed.weight[:h, None, :].expand(h, w, -1)
        columns = self.col_embed.weight[None, :w, :].expand(h, w, -1)
        return torch.cat((columns, rows), -1).permute(2, 0, 1).expand(b, -1, -1, -1)
