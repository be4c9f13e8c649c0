"""The data of presets that detect what a caption names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from opendetr.data import CaptionDataConfig, DetectionData
from opendetr.models import MDETRConfig
from opendetr.nn import TokenizerName, new_tokenizer, unknown_words
from opendetr.structures import Tokens

_MANY_UNKNOWN = 0.02  # share of the words


@dataclass(frozen=True, kw_only=True)
class GroundingDataConfig(CaptionDataConfig):
    """How a dataset with captions becomes batches.

    A preset sets `tokenizer`, `max_tokens`, `questions` and `needs_final` as its model needs them. Other values have no
    effect.

    Attributes:
        tokenizer: the tokenizer of the model's text encoder.
        max_tokens: the longest caption that the text encoder takes; longer ones are cut.
    """

    tokenizer: TokenizerName = "roberta"
    max_tokens: int = 512

    def fitting(self, model: MDETRConfig) -> Self:
        """The configuration with the tokenizer of a model, and with the annotations that it learns from."""
        text = model.text
        return replace(
            self,
            tokenizer=text.tokenizer,
            max_tokens=text.max_tokens,
            questions=model.questions,
            needs_final=model.predict_final,
        )

    def open_splits(self, folder: Path) -> dict[str, DetectionData]:
        """As in `DataConfig`. Raises ConfigError without RoBERTa's vocabulary, if it is needed: before a run begins."""
        new_tokenizer(self.tokenizer)
        return super().open_splits(folder)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """The tokens of B captions. Raises ConfigError without RoBERTa's vocabulary, if it is needed."""
        return new_tokenizer(self.tokenizer)(captions, self.max_tokens)


def caption_advice(captions: Sequence[str], tokenizer: TokenizerName, max_tokens: int) -> str | None:
    """What a text encoder cannot take of the captions of a dataset, and what to do; None if nothing.

    Args:
        captions: the captions, or a sample of them.
        tokenizer: the tokenizer.
        max_tokens: the longest caption that the text encoder takes.
    """
    if not captions:
        return None
    tokens = new_tokenizer(tokenizer)(captions, max_tokens + 1)
    parts = []
    unknown = Counter(word.lower() for word in unknown_words(captions, tokens))
    words = tokens.spans[..., 1] > tokens.spans[..., 0]  # not the start, the end and the padding
    share = unknown.total() / max(int(words.sum()), 1)
    if share >= _MANY_UNKNOWN:
        shown = ", ".join(repr(word) for word, _ in unknown.most_common(3))
        parts.append(
            f"{share:.0%} of the words in the captions are not in its vocabulary, such as {shown}, and it cannot tell "
            "them apart; use a model with RoBERTa, such as mdetr-r50"
        )
    lengths = (~tokens.padding).sum(1)
    if bool((lengths > max_tokens).any()):
        cut = float((lengths > max_tokens).float().mean())
        parts.append(f"{cut:.1%} of the captions are longer than the {max_tokens} tokens that it takes, and are cut")
    return "; ".join(parts) or None
