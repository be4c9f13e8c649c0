"""Multi-head attention with positions in queries and keys only, and attention weights for inspection.

Shape letters: B batch, N queries, M keys, D width of values, E width of queries and keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opendetr.nn.layers import full_precision


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, padding: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Multi-head scaled dot-product attention of projected tokens.

    Args:
        query: (B, N, E).
        key: (B, M, E).
        value: (B, M, D).
        num_heads: number of heads; it divides E and D.
        padding: (B, M) bool, True for keys that must not be attended to, or None.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, N, D).
    """
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        # torch's CPU kernel takes twice as long in bfloat16 as in float32, forward and backward.
        with torch.autocast("cpu", enabled=False):
            tokens = query.float(), key.float(), value.float()
            return scaled_dot_product_attention(*tokens, num_heads, padding, dropout).to(query.dtype)
    q, k, v = (_split_heads(tokens, num_heads) for tokens in (query, key, value))
    if query.device.type == "cpu" and dropout and padding is None:
        return _attention_with_dropout(q, k, v, dropout).transpose(1, 2).flatten(2)
    mask = None if padding is None else ~padding[:, None, None, :]
    width = v.shape[-1]
    if query.device.type == "cpu" and width < q.shape[-1]:
        # torch's fused CPU kernel is twice as fast, but needs values as wide as keys.
        v = F.pad(v, (0, q.shape[-1] - width))
    attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    return attended[..., :width].transpose(1, 2).flatten(2)


def _split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, E) -> (B, heads, N, E / heads)."""
    return tokens.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _split_groups(tokens: Tensor, num_groups: int) -> Tensor:
    """(B, N, ...) -> (B groups, N / groups, ...)."""
    return tokens.unflatten(1, (num_groups, -1)).flatten(0, 1)


def _attention_with_dropout(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Attention (B, H, N, E), (B, H, M, E), (B, H, M, D) -> (B, H, N, D), bit-identical to torch's kernel.

    With dropout on a CPU, torch's kernel is not fused, and a tenth of its time goes into checks for fully masked rows.
    Without padding there are no such rows.
    """
    scale = math.sqrt(1 / math.sqrt(query.shape[-1]))
    weights = torch.matmul(query * scale, (key * scale).transpose(-2, -1)).softmax(-1)
    return torch.matmul(F.dropout(weights, dropout), value)


def attention_weights(query: Tensor, key: Tensor, num_heads: int, padding: Tensor | None = None) -> Tensor:
    """The attention weights of `scaled_dot_product_attention`, without dropout.

    Args:
        query: (B, N, E), projected.
        key: (B, M, E), projected.
        num_heads: number of heads; it divides E.
        padding: (B, M) bool, True for keys that must not be attended to, or None.

    Returns:
        (B, heads, N, M) float32. Each row sums to 1 over the keys, and padded keys have exactly 0. If all keys of an
        image are padded, its rows are 0, and so is the attention.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = (_split_heads(full_precision(tokens), num_heads) for tokens in (query, key))
        scores = torch.matmul(q / math.sqrt(q.shape[-1]), k.transpose(-2, -1))
        if padding is None:
            return scores.softmax(-1)
        hidden = padding[:, None, None, :]
        return scores.masked_fill(hidden, -math.inf).softmax(-1).masked_fill(hidden, 0.0)


class AttentionModule(nn.Module):
    """Base class of all attention modules. `weights` returns the weights that the forward pass uses."""

    def weights(self, *args: Any, **kwargs: Any) -> Any:
        """The attention weights that `forward` uses for the same arguments, before dropout.

        A call changes neither the module nor torch's random state, and does not affect `forward`. Gradients flow as
        usual. `opendetr.nn.collect_attention` calls it for the attention modules of a model.

        Returns:
            A float32 tensor or `DeformableWeights`, as documented by the subclass.
        """
        raise NotImplementedError


class MultiHeadAttention(AttentionModule):
    """Scaled dot-product attention with packed projections (rows of `in_proj_weight`: query, key, value).

    Args:
        width: D, features of queries, keys, values and output.
        num_heads: number of heads, with D / num_heads features each.
        dropout: probability of dropping an attention weight while training.

    Raises:
        ValueError: `num_heads` does not divide `width`.
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

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None, num_groups: int = 1
    ) -> Tensor:
        """Apply the attention.

        Args:
            query: (B, N, D), with position.
            key: (B, M, D), with position. For self-attention pass the same object as `query`, which saves a projection.
            value: (B, M, D), without position.
            padding: (B, M) bool, True for keys that must not be attended to, or None.
            num_groups: queries and keys consist of this number of equal groups, one after another. A query attends only
                to the keys of its group.

        Returns:
            (B, N, D).
        """
        width = query.shape[-1]
        q, k = self._project(query, key)
        v = F.linear(value, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        dropout = self.dropout if self.training else 0.0
        if num_groups == 1:
            return self.out_proj(scaled_dot_product_attention(q, k, v, self.num_heads, padding, dropout))
        q, k, v = (_split_groups(tokens, num_groups) for tokens in (q, k, v))
        padding = None if padding is None else _split_groups(padding, num_groups)
        attended = scaled_dot_product_attention(q, k, v, self.num_heads, padding, dropout)
        return self.out_proj(attended.view(query.shape))

    def weights(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None, num_groups: int = 1
    ) -> Tensor:
        """The attention weights for the arguments of `forward`; `value` is not used.

        Returns:
            (B, heads, N, M) float32, without dropout. Each row sums to 1 over the keys; padded keys and those of other
            groups have 0.
        """
        q, k = self._project(query, key)
        if num_groups == 1:
            return attention_weights(q, k, self.num_heads, padding)
        padding = None if padding is None else _split_groups(padding, num_groups)
        of_groups = attention_weights(
            _split_groups(q, num_groups), _split_groups(k, num_groups), self.num_heads, padding
        ).unflatten(0, (-1, num_groups))
        shape = (len(query), self.num_heads, num_groups, of_groups.shape[-2], num_groups, of_groups.shape[-1])
        weights = of_groups.new_zeros(shape)
        for group in range(num_groups):
            weights[:, :, group, :, group] = of_groups[:, group]
        return weights.flatten(4, 5).flatten(2, 3)

    def _project(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Projected queries (B, N, D) and keys (B, M, D), with one multiplication if both are the same object."""
        width = query.shape[-1]
        if query is key:
            projected = F.linear(query, self.in_proj_weight[: 2 * width], self.in_proj_bias[: 2 * width])
            q, k = projected.chunk(2, -1)
            return q, k
        q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k = F.linear(key, self.in_proj_weight[width : 2 * width], self.in_proj_bias[width : 2 * width])
        return q, k
