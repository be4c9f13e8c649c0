"""The data of presets that detect what a caption names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from opendetr.data import CaptionDataConfig, DetectionData
from opendetr.models import MDETRConfig
from opendetr.nn import TokenizerName, new_tokenizer
from opendetr.structures import Tokens


@dataclass(frozen=True, kw_only=True)
class GroundingDataConfig(CaptionDataConfig):
    """How a dataset with captions becomes batches.

    A preset sets `tokenizer`, `max_tokens` and `questions` as its model needs them. Other values have no effect.

    Attributes:
        tokenizer: the tokenizer of the model's text encoder.
        max_tokens: the longest caption that the text encoder takes; longer ones are cut.
    """

    tokenizer: TokenizerName = "roberta"
    max_tokens: int = 512

    def fitting(self, model: MDETRConfig) -> Self:
        """The configuration with the tokenizer and the questions of a model."""
        text = model.text
        return replace(self, tokenizer=text.tokenizer, max_tokens=text.max_tokens, questions=model.questions)

    def open_splits(self, folder: Path) -> dict[str, DetectionData]:
        """As in `DataConfig`. Raises ConfigError without RoBERTa's vocabulary, if it is needed: before a run begins."""
        new_tokenizer(self.tokenizer)
        return super().open_splits(folder)

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """The tokens of B captions. Raises ConfigError without RoBERTa's vocabulary, if it is needed."""
        return new_tokenizer(self.tokenizer)(captions, self.max_tokens)
