"""DETR's encoder and decoder: positions enter every attention layer, through queries and keys only.

Shape letters: B batch, N tokens of the memory, Q queries, L decoder layers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opendetr.nn.attention import MultiHeadAttention
from opendetr.nn.layers import FeedForward, Residual, xavier_initialise


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of encoder and decoder.

    Attributes:
        width: D, features of a token.
        num_heads: attention heads.
        ffn_width: hidden features of the feed-forward blocks.
        encoder_layers, decoder_layers: blocks of each.
        dropout: probability, at every site of the original: attention weights, after attention, in and after the FFN.
        norm_first: pre-norm (True) or post-norm (False, the published models).
    """

    width: int = 256
    num_heads: int = 8
    ffn_width: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1
    norm_first: bool = False


class EncoderLayer(nn.Module):
    """Self-attention among the tokens, then a feed-forward block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(config.width, config.num_heads, config.dropout)
        self.attention_residual = Residual(config.width, config.dropout, config.norm_first)
        self.feed_forward = FeedForward(config.width, config.ffn_width, config.dropout)
        self.feed_forward_residual = Residual(config.width, config.dropout, config.norm_first)

    def forward(self, tokens: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens (B, N, D), their positions (B, N, D), padding (B, N) or None -> (B, N, D)."""

        def attend(x: Tensor) -> Tensor:
            placed = x + position
            return self.attention(placed, placed, x, padding)

        return self.feed_forward_residual(self.attention_residual(tokens, attend), self.feed_forward)


class Encoder(nn.Module):
    """The encoder layers; pre-norm ends with a norm of its own, post-norm does not need one."""

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
        self.feed_forward = FeedForward(config.width, config.ffn_width, config.dropout)
        self.feed_forward_residual = Residual(config.width, config.dropout, config.norm_first)

    def forward(
        self, content: Tensor, query_position: Tensor, memory: Tensor, keys: Tensor, padding: Tensor | None
    ) -> Tensor:
        """One round of looking.

        Args:
            content: (B, Q, D), what each query has gathered so far.
            query_position: (B, Q, D), the object queries: what each query looks for.
            memory: (B, N, D), the encoder's output.
            keys: (B, N, D), memory with its position added.
            padding: (B, N) bool, True where the memory is padding, or None.

        Returns:
            (B, Q, D).
        """

        def exchange(x: Tensor) -> Tensor:
            placed = x + query_position
            return self.self_attention(placed, placed, x)

        def look(x: Tensor) -> Tensor:
            return self.cross_attention(x + query_position, keys, memory, padding)

        content = self.self_attention_residual(content, exchange)
        content = self.cross_attention_residual(content, look)
        return self.feed_forward_residual(content, self.feed_forward)


class Decoder(nn.Module):
    """The decoder layers; one shared norm on what every layer gives, which the heads read."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)
        xavier_initialise(self)

    def forward(self, query_position: Tensor, memory: Tensor, position: Tensor, padding: Tensor | None) -> Tensor:
        """Object queries (B, Q, D), memory and its positions (B, N, D), padding (B, N) or None -> (L, B, Q, D)."""
        content = torch.zeros_like(query_position)
        keys = memory + position
        outputs = []
        for layer in self.layers:
            content = layer(content, query_position, memory, keys, padding)
            outputs.append(self.norm(content))
        return torch.stack(outputs)
