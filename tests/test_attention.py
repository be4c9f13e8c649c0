"""Attention against the formula, head by head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opendetr.nn.attention import MultiHeadAttention, scaled_dot_product_attention

HEADS = 4


def by_formula(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
    results = []
    for q, k, v in zip(query.chunk(HEADS, -1), key.chunk(HEADS, -1), value.chunk(HEADS, -1), strict=True):
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], -torch.inf)
        results.append(scores.softmax(-1) @ v)
    return torch.cat(results, -1)


@pytest.mark.parametrize("key_width", [32, 64, 16], ids=["as wide as values", "wider", "narrower"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_attention_equals_the_formula(key_width, padded, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5, key_width), (2, 7, key_width), (2, 7, 32))
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    mask = padding if padded else None
    result = scaled_dot_product_attention(query, key, value, HEADS, mask)
    assert result.dtype == dtype
    expected = by_formula(query.float(), key.float(), value.float(), mask)
    torch.testing.assert_close(result.float(), expected, atol=tolerance, rtol=0)


def test_dropout_is_that_of_torch_to_the_bit():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, n, 32, generator=generator) for n in (5, 7, 7))
    heads = [tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2) for tokens in (query, key, value)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = torch.nn.functional.scaled_dot_product_attention(*heads, dropout_p=0.5).transpose(1, 2).flatten(2)
        torch.manual_seed(3)
        result = scaled_dot_product_attention(query, key, value, HEADS, dropout=0.5)
    assert torch.equal(result, expected)
    assert not torch.equal(result, scaled_dot_product_attention(query, key, value, HEADS))


@torch.no_grad()
def test_a_query_attends_only_to_the_keys_of_its_group():
    torch.manual_seed(0)
    module = MultiHeadAttention(32, 4).eval()
    query, key, value = (torch.randn(2, 12, 32) for _ in range(3))
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[0, 3] = padding[1, 8:10] = True
    found = module(query, key, value, padding, num_groups=3)
    weights = module.weights(query, key, value, padding, num_groups=3)
    for first in range(0, 12, 4):
        own = slice(first, first + 4)
        group = query[:, own], key[:, own], value[:, own], padding[:, own]
        torch.testing.assert_close(found[:, own], module(*group), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[:, :, own, own], module.weights(*group), atol=1e-6, rtol=0)
        weights[:, :, own, own] = 0
    assert not weights.any()
