"""Text encoders and their tokenizers: RoBERTa of transformers, and a small one that needs no download.

Shape letters: B captions, T tokens, D width.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import Field, dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from opendetr.config import ConfigError, MissingPackageError
from opendetr.files import cache_folder
from opendetr.nn.transformer import Encoder, TransformerConfig
from opendetr.structures import Tokens

START, PAD, END, UNKNOWN = range(4)
"""Ids of RoBERTa's vocabulary, and of ours, that are no words."""
_WORDS = "words.txt"  # the vocabulary of `WordTokenizer`, a word a line, without the four above
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_")
_ROBERTA_FILE = "roberta-base/tokenizer.json"  # in the cache
_ROBERTA_URL = "https://huggingface.co/FacebookAI/roberta-base/resolve/main/tokenizer.json"

TokenizerName = Literal["words", "roberta"]


class Tokenizer(Protocol):
    """Splits captions into tokens."""

    def __call__(self, captions: Sequence[str], max_tokens: int | None = None) -> Tokens:
        """The tokens of B captions, with a token for the start and one for the end, padded to the longest caption.

        Args:
            captions: B captions.
            max_tokens: longer captions are cut, before the token for the end. By default they are not.
        """
        ...


class WordTokenizer:
    """A token for each word, number and punctuation mark; upper and lower case are the same.

    Words that are not in the vocabulary have one token of their own, `UNKNOWN`.

    Args:
        words: the vocabulary.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._ids = {word: index for index, word in enumerate(words, start=UNKNOWN + 1)}

    def __call__(self, captions: Sequence[str], max_tokens: int | None = None) -> Tokens:
        """The tokens of B captions; see `Tokenizer`."""
        rows = []
        for caption in captions:
            found = [(self._ids.get(word[0].lower(), UNKNOWN), word.span()) for word in _WORD.finditer(caption)]
            rows.append(found[: None if max_tokens is None else max_tokens - 2])
        return _padded([[(START, (0, 0)), *row, (END, (0, 0))] for row in rows])


class RobertaTokenizer:
    """RoBERTa's byte-pair encoding.

    Args:
        tokenizer: a `tokenizers.Tokenizer` with RoBERTa's vocabulary.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, captions: Sequence[str], max_tokens: int | None = None) -> Tokens:
        """The tokens of B captions; see `Tokenizer`."""
        rows = []
        for encoding in self._tokenizer.encode_batch(list(captions)):
            row = list(zip(encoding.ids, encoding.offsets, strict=True))
            rows.append(row if max_tokens is None or len(row) <= max_tokens else [*row[: max_tokens - 1], row[-1]])
        return _padded(rows)


def _padded(rows: Sequence[Sequence[tuple[int, tuple[int, int]]]]) -> Tokens:
    """Rows of ids and their spans, padded to the longest."""
    length = max(map(len, rows), default=0)
    ids = torch.full((len(rows), length), PAD)
    padding = torch.ones(len(rows), length, dtype=torch.bool)
    spans = torch.zeros(len(rows), length, 2, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor([id_ for id_, _ in row])
        padding[index, : len(row)] = False
        spans[index, : len(row)] = torch.tensor([span for _, span in row])
    return Tokens(ids, padding, spans, PAD)


@lru_cache
def new_tokenizer(name: TokenizerName) -> Tokenizer:
    """The tokenizer of a name: "words" of the package, or "roberta".

    Raises:
        ConfigError: the vocabulary of RoBERTa is missing, or the extra `text` is not installed. The message says where
            to put it.
    """
    if name == "words":
        text = (resources.files("opendetr") / "assets" / _WORDS).read_text(encoding="utf-8")
        return WordTokenizer(text.split())
    path = cache_folder() / _ROBERTA_FILE
    if not path.is_file():
        raise ConfigError(f"the vocabulary of RoBERTa is missing; download {_ROBERTA_URL} and put it at {path}")
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ModuleNotFoundError:
        raise MissingPackageError("RoBERTa", "tokenizers") from None
    try:
        return RobertaTokenizer(FastTokenizer.from_file(str(path)))
    except Exception as error:  # the library raises nothing more specific
        raise ConfigError(f"{path}: not a tokenizer.json ({error}); download {_ROBERTA_URL} again") from None


def text_fault(text: str, tokenizer: Tokenizer) -> str | None:
    """What is wrong with a text, in one line; None if it has a word that the tokenizer knows."""
    if not text.strip():
        return "the text is empty; name what to find"
    if not bool((tokenizer([text]).ids > UNKNOWN).any()):
        return f"{text!r}: the model knows none of its words; use other words"
    return None


def unknown_words(captions: Sequence[str], tokens: Tokens) -> list[str]:
    """The words of captions that are not in the vocabulary, in their order. A model cannot tell them apart.

    Args:
        captions: B captions.
        tokens: their tokens.
    """
    return [
        captions[index][slice(*tokens.spans[index, token].tolist())]
        for index, token in (tokens.ids == UNKNOWN).nonzero().tolist()
    ]


def lost_text(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    """The end of a text that is left out because it is too long; empty if nothing is."""
    tokens = tokenizer([text])
    if tokens.num_tokens <= max_tokens:
        return ""
    return text[int(tokens.spans[0, max_tokens - 2, 1]) :].strip()


class TextEncoder(nn.Module):
    """Tokens to features.

    Attributes:
        width: features of a token.
        max_tokens: the longest caption that it takes, including the tokens for start and end.
    """

    width: int
    max_tokens: int

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tensor:
        """The features of the tokens, (B, T, D)."""

    @abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """The features of the tokens (B, T, D) -> those of the captions, (B, D)."""

    def unused_without_pooling(self) -> tuple[str, ...]:
        """The names of the parameters that only `pool` uses."""
        return ()


class AnyTextConfig(Protocol):
    """The configuration of a text encoder. Implementations are frozen dataclasses; further fields are their own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def tokenizer(self) -> TokenizerName:
        """The tokenizer whose ids the encoder takes."""
        ...

    @property
    def max_tokens(self) -> int:
        """The longest caption that the encoder takes, including the tokens for start and end."""
        ...

    def build(self) -> TextEncoder:
        """The text encoder, randomly initialised."""
        ...

    def miniature(self) -> AnyTextConfig:
        """The text encoder with the smallest sizes, and a tokenizer that needs no download, for tests."""
        ...


@dataclass(frozen=True, kw_only=True)
class RobertaTextConfig:
    """Configuration of a RoBERTa (Liu et al., 2019). The defaults are those of roberta-base.

    Attributes:
        tokenizer: the tokenizer.
        vocabulary: number of ids.
        width: features of a token.
        layers, num_heads, ffn_width: sizes of the transformer.
        max_positions: rows of the position table, of which the first two are not used.
        dropout: probability, for attention weights and features.
    """

    tokenizer: TokenizerName = "roberta"
    vocabulary: int = 50265
    width: int = 768
    layers: int = 12
    num_heads: int = 12
    ffn_width: int = 3072
    max_positions: int = 514
    dropout: float = 0.1

    @property
    def max_tokens(self) -> int:
        """The longest caption that the encoder takes; positions are counted from the id of padding + 1."""
        return self.max_positions - PAD - 1

    def build(self) -> RobertaEncoder:
        """The text encoder, randomly initialised. Raises MissingPackageError without the extra `text`."""
        return RobertaEncoder(self)

    def miniature(self) -> RobertaTextConfig:
        """The text encoder with the smallest sizes and the tokenizer of the package, for tests."""
        return replace(
            self, tokenizer="words", vocabulary=1024, width=32, layers=1, num_heads=4, ffn_width=32, max_positions=66
        )


class RobertaEncoder(TextEncoder):
    """RoBERTa of transformers, which is imported when a model is built."""

    def __init__(self, config: RobertaTextConfig) -> None:
        super().__init__()
        try:
            from transformers import RobertaConfig, RobertaModel
        except ModuleNotFoundError:
            raise MissingPackageError("RoBERTa", "transformers") from None
        self.width = config.width
        self.max_tokens = config.max_tokens
        self.body = RobertaModel(
            RobertaConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.ffn_width,
                max_position_embeddings=config.max_positions,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
                pad_token_id=PAD,
                bos_token_id=START,
                eos_token_id=END,
            )
        )

    def forward(self, tokens: Tokens) -> Tensor:
        """The features of the tokens, (B, T, D)."""
        return self.body(input_ids=tokens.ids, attention_mask=(~tokens.padding).long()).last_hidden_state

    def pool(self, features: Tensor) -> Tensor:
        """The features of the tokens (B, T, D) -> those of the captions, (B, D), from the first token."""
        assert self.body.pooler is not None
        return self.body.pooler(features)

    def unused_without_pooling(self) -> tuple[str, ...]:
        """The names of the parameters that only `pool` uses."""
        return tuple(name for name, _ in self.named_parameters() if name.startswith("body.pooler."))


@dataclass(frozen=True, kw_only=True)
class WordTextConfig:
    """Configuration of a small text encoder: a transformer over the words of a fixed vocabulary.

    Attributes:
        tokenizer: the tokenizer.
        vocabulary: number of ids; there may be more than the tokenizer uses.
        width: features of a token.
        layers, num_heads, ffn_width: sizes of the transformer.
        max_tokens: the longest caption, including the tokens for start and end.
        dropout: probability, as in `TransformerConfig`.
    """

    tokenizer: TokenizerName = "words"
    vocabulary: int = 1024
    width: int = 128
    layers: int = 2
    num_heads: int = 4
    ffn_width: int = 256
    max_tokens: int = 96
    dropout: float = 0.0

    def build(self) -> WordEncoder:
        """The text encoder, randomly initialised."""
        return WordEncoder(self)

    def miniature(self) -> WordTextConfig:
        """The text encoder with the smallest sizes, for tests."""
        return replace(self, width=32, layers=1, ffn_width=32)


class WordEncoder(TextEncoder):
    """Embeddings of words with learned positions, and the layers of DETR's encoder."""

    def __init__(self, config: WordTextConfig) -> None:
        super().__init__()
        self.width = config.width
        self.max_tokens = config.max_tokens
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.max_tokens, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.encoder = Encoder(
            TransformerConfig(
                width=config.width,
                num_heads=config.num_heads,
                ffn_width=config.ffn_width,
                encoder_layers=config.layers,
                dropout=config.dropout,
            )
        )
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tokens) -> Tensor:
        """The features of the tokens, (B, T, D)."""
        embedded = self.norm(self.words(tokens.ids) + self.positions.weight[: tokens.num_tokens])
        return self.encoder(embedded, torch.zeros_like(embedded), tokens.padding)

    def pool(self, features: Tensor) -> Tensor:
        """The features of the tokens (B, T, D) -> those of the captions, (B, D): those of the first token."""
        return features[:, 0]
