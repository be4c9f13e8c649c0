"""DETR's encoder and decoder. Every attention layer adds positions to queries and keys, but not to values.

Shape letters: B batch, N tokens of the memory, Q queries, L decoder layers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opendetr.nn.attention import MultiHeadAttention
from opendetr.nn.layers import Residual, feed_forward_block, xavier_initialise


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of encoder and decoder.

    Attributes:
        width: D, features of a token.
        num_heads: attention heads.
        ffn_width: hidden features of the feed-forward blocks; 0 for layers without these blocks.
        encoder_layers, decoder_layers: blocks of each.
        dropout: probability for attention weights, after attention, and in and after feed-forward blocks.
        norm_first: pre-norm (True) or post-norm (False, the published models).
    """

    width: int = 256
    num_heads: int = 8
    ffn_width: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    norm_first: bool = False

    def __post_init__(self) -> None:
        if self.ffn_width < 0:
            raise ValueError(f"model.transformer.ffn_width: expected at least 0, got {self.ffn_width}")

    def feed_forward_block(self) -> tuple[nn.Module, nn.Module]:
        """The feed-forward block of a layer and the residual connection around it; see `layers.feed_forward_block`."""
        return feed_forward_block(self.width, self.ffn_width, self.dropout, norm_first=self.norm_first)


class EncoderLayer(nn.Module):
    """Self-attention among the tokens, then a feed-forward block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.attention_residual = Residual(config.width, config.dropout, config.norm_first)
        self.feed_forward, self.feed_forward_residual = config.feed_forward_block()

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens (B, N, D), their positions (B, N, D), padding (B, N) or None -> (B, N, D)."""

        def attention(x: Tensor) -> Tensor:
            query = x + position
            return self.attention(query, query, x, padding)

        return self.feed_forward_residual(self.attention_residual(tokens, attention), self.feed_forward)


class Encoder(nn.Module):
    """The encoder layers. Pre-norm needs a final norm, post-norm does not."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.width) if config.norm_first else nn.Identity()
        xavier_initialise(self)

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens (B, N, D), their positions (B, N, D), padding (B, N) or None -> memory (B, N, D)."""
        for layer in self.layers:
            tokens = layer(tokens, position, padding)
        return self.norm(tokens)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, attention to the memory, a feed-forward block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.self_attention_residual = Residual(config.width, config.dropout, config.norm_first)
        self.cross_attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.cross_attention_residual = Residual(config.width, config.dropout, config.norm_first)
        self.feed_forward, self.feed_forward_residual = config.feed_forward_block()

    def forward(
        self,
        content: Tensor,
        query_position: Tensor,
        memory: Tensor,
        keys: Tensor,
        padding: Tensor | None,
        num_groups: int = 1,
    ) -> Tensor:
        """Update the content of the queries.

        Args:
            content: (B, Q, D), output of the previous layer.
            query_position: (B, Q, D), the object queries.
            memory: (B, N, D), the encoder's output.
            keys: (B, N, D), memory with its position added.
            padding: (B, N) bool, True where the memory is padding, or None.
            num_groups: number of equal groups of queries; a query attends only to those of its group.

        Returns:
            (B, Q, D).
        """

        def self_attention(x: Tensor) -> Tensor:
            query = x + query_position
            return self.self_attention(query, query, x, num_groups=num_groups)

        def cross_attention(x: Tensor) -> Tensor:
            return self.cross_attention(x + query_position, keys, memory, padding)

        content = self.self_attention_residual(content, self_attention)
        content = self.cross_attention_residual(content, cross_attention)
        return self.feed_forward_residual(content, self.feed_forward)


class Decoder(nn.Module):
    """The decoder layers. All layers share one norm on their output, which is the input of the heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        xavier_initialise(self)

    def forward(
        self,
        query_position: Tensor,
        memory: Tensor,
        position: Tensor,
        padding: Tensor | None,
        content: Tensor | None = None,
        num_groups: int = 1,
    ) -> Tensor:
        """Decode the object queries.

        Args:
            query_position: (B, Q, D), the object queries.
            memory: (B, N, D), the encoder's output.
            position: (B, N, D), the position encoding of the memory.
            padding: (B, N) bool, True where the memory is padding, or None.
            content: (B, Q, D), the content of the queries before the first layer; by default zeros.
            num_groups: number of equal groups of queries; a query attends only to those of its group.

        Returns:
            (L, B, Q, D), the content after every layer, normalised.
        """
        content = torch.zeros_like(query_position) if content is None else content
        keys = memory + position
        outputs = []
        for layer in self.layers:
            content = layer(content, query_position, memory, keys, padding, num_groups)
            outputs.append(self.norm(content))
        return torch.stack(outputs)
