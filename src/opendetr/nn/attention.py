"""Multi-head attention in which positions are added to queries and keys only, and the weights of any attention.

Shape letters: B batch, N queries, M keys, D width of values, E width of queries and keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, padding: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of projected tokens, each head with its share of the features.

    Args:
        query: (B, N, E).
        key: (B, M, E).
        value: (B, M, D).
        num_heads: heads; it divides E and D.
        padding: (B, M) bool, True where a key must not be looked at; None costs nothing.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, N, D).
    """
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        # torch's CPU kernel takes twice as long in bfloat16 as in float32, forward and backward.
        with torch.autocast("cpu", enabled=False):
            whole = query.float(), key.float(), value.float()
            return scaled_dot_product_attention(*whole, num_heads, padding, dropout).to(query.dtype)
    q, k, v = (_split_heads(tokens, num_heads) for tokens in (query, key, value))
    if query.device.type == "cpu" and dropout and padding is None:
        return _attention_with_dropout(q, k, v, dropout).transpose(1, 2).flatten(2)
    seen = None if padding is None else ~padding[:, None, None, :]
    width = v.shape[-1]
    if query.device.type == "cpu" and width < q.shape[-1]:
        # torch's fused CPU kernel, half the time of the other one, wants values as wide as keys.
        v = F.pad(v, (0, q.shape[-1] - width))
    attended = F.scaled_dot_product_attention(q, k, v, seen, dropout)
    return attended[..., :width].transpose(1, 2).flatten(2)


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, E) -> (B, heads, N, E / heads)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attention_with_dropout(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """(B, H, N, E), (B, H, M, E), (B, H, M, D) -> (B, H, N, D), to the bit what torch's kernel gives.

    That one has no fused path with dropout on a CPU, and spends a tenth of its time on rows that see nothing. Without
    padding there are none.
    """
    scale = math.sqrt(1 / math.sqrt(query.shape[-1]))
    weights = torch.matmul(query * scale, (key * scale).transpose(-2, -1)).softmax(-1)
    return torch.matmul(F.dropout(weights, dropout), value)


def attention_weights(query: Tensor, key: Tensor, num_heads: int, padding: Tensor | None = None) -> Tensor:
    """The weights that `scaled_dot_product_attention` gives to the values, without dropout.

    Args:
        query: (B, N, E), projected.
        key: (B, M, E), projected.
        num_heads: heads; it divides E.
        padding: (B, M) bool, True where a key must not be looked at, or None.

    Returns:
        (B, heads, N, M) float32. Each row sums to 1 over the keys, and padded keys have exactly 0. Where all keys of
        an image are padded, its rows are 0, as is the attention.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = (_split_heads(tokens.float(), num_heads) for tokens in (query, key))
        scores = torch.matmul(q / math.sqrt(q.shape[-1]), k.transpose(-2, -1))
        if padding is None:
            return scores.softmax(-1)
        hidden = padding[:, None, None, :]
        return scores.masked_fill(hidden, -math.inf).softmax(-1).masked_fill(hidden, 0.0)


class AttentionModule(nn.Module):
    """Base class of all attention modules: each can tell the weights that its forward pass uses."""

    def weights(self, *args: Any, **kwargs: Any) -> Any:
        """The attention weights that `forward` uses for the same arguments, before dropout.

        Neither the module nor torch's random state changes, and gradients flow as usual. `forward` does not depend on
        this method being called; `opendetr.nn.collect_attention` calls it for every attention module of a model.

        Returns:
            What the subclass documents: a float32 tensor, or `DeformableWeights`.
        """
        raise NotImplementedError


class MultiHeadAttention(AttentionModule):
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
        q, k = self._project(query, key)
        v = F.linear(value, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(scaled_dot_product_attention(q, k, v, self.num_heads, padding, dropout))

    def weights(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """The attention weights for the arguments of `forward`; `value` is not used.

        Returns:
            (B, heads, N, M) float32, without dropout. Each row sums to 1 over the keys; padded keys have 0.
        """
        return attention_weights(*self._project(query, key), self.num_heads, padding)

    def _project(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Projected queries (B, N, D) and keys (B, M, D); one multiplication where both are the same object."""
        width = query.shape[-1]
        if query is key:
            projected = F.linear(query, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width])
            q, k = projected.chunk(2, -1)
            return q, k
        q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k = F.linear(key, self.in_proj_weight[width : 2 * width], self.in_proj_bias[width : 2 * width])
        return q, k
