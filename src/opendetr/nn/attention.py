"""Multi-head attention in which positions are added to queries and keys only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with packed projections (rows of `in_proj_weight`: query, key, value).

    Args:
        width: D, features of queries, keys, values and of the result.
        num_heads: heads; each sees D / num_heads features.
        dropout: probability of dropping an attention weight while training.

    Raises:
        ValueError: when `num_heads` does not divide `width`.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"attention: width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, N, D), position added.
            key: (B, M, D), position added; the very object `query` for self-attention, which saves a projection.
            value: (B, M, D), no position.
            padding: (B, M) bool, True where a key must not be looked at; None costs nothing.

        Returns:
            (B, N, D).
        """
        width = query.shape[-1]
        if query is key:
            projected = F.linear(query, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width])
            q, k = projected.chunk(2, -1)
        else:
            q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k = F.linear(key, self.in_proj_weight[width : 2 * width], self.in_proj_bias[width : 2 * width])
        v = F.linear(value, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        seen = None if padding is None else ~padding[:, None, None, :]
        attended = self._attend(self._heads(q), self._heads(k), self._heads(v), seen)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if q.device.type != "cpu" or q.dtype == torch.float32:
            return F.scaled_dot_product_attention(q, k, v, seen, dropout)
        # torch's CPU kernel takes twice as long in bfloat16 as in float32, forward and backward.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), seen, dropout).to(q.dtype)
