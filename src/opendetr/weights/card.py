"""Our own weights file: safetensors, with the model's configuration and classes in the header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from opendetr.categories import Categories
from opendetr.files import near_path
from opendetr.scoring import ScoreThresholds
from opendetr.weights.errors import WeightsError
from opendetr.weights.huggingface import config_beside, settings_of

_KEY = "opendetr"
_FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """The description of the model in a weights file.

    Attributes:
        config: the configuration of the run as plain values, with the preset's name under "name".
        categories: the classes of the labels.
        facts: further plain values, such as metrics, steps and data.
        thresholds: score thresholds to predict with, chosen on validation data; None if they are not known.
    """

    config: dict[str, Any]
    categories: Categories
    facts: dict[str, Any]
    thresholds: ScoreThresholds | None = None

    def to_metadata(self) -> dict[str, str]:
        """The metadata for the header of a safetensors file."""
        content = {
            "format": _FORMAT, "config": self.config, "categories": self.categories.to_dict(), "facts": self.facts,
        }  # fmt: skip
        if self.thresholds is not None:
            content["thresholds"] = {"default": self.thresholds.default, "by_class": dict(self.thresholds.by_class)}
        return {_KEY: json.dumps(content)}


def save_weights(path: Path, model: nn.Module, card: ModelCard, *, half: bool = False) -> None:
    """Write a safetensors file with the card as JSON in its header.

    Args:
        path: the file to write. The write is not atomic.
        model: its state dict is saved.
        card: the description of the model.
        half: store matrices in half precision; norms and biases keep their precision.
    """
    state = {
        name: (value.half() if half and value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for name, value in model.state_dict().items()
    }
    # safetensors' own save_file would make the file readable for its owner only.
    path.write_bytes(save(state, metadata=card.to_metadata()))


def read_card(path: Path) -> ModelCard | None:
    """Read the model card of a weights file: from our own header, or from the config.json next to a Hugging Face file.

    Returns:
        The card, or None if the file has neither.

    Raises:
        WeightsError: the file is missing or incomplete, or its card cannot be used.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file{near_path(path)}")
    own = _own_card(path) if path.suffix == ".safetensors" else None
    if own is not None:
        return own
    config = config_beside(path)
    return None if config is None else ModelCard(*settings_of(config), {})


def _own_card(path: Path) -> ModelCard | None:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}); copy or save it again") from None
    if text is None:
        return None
    try:
        content = json.loads(text)
        thresholds = _thresholds(content.get("thresholds"))
        return ModelCard(content["config"], Categories.from_dict(content["categories"]), content["facts"], thresholds)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its model card cannot be read ({error}); save it again") from None


def _thresholds(record: Any) -> ScoreThresholds | None:
    if record is None:
        return None
    by_class = {str(name): float(value) for name, value in dict(record["by_class"]).items()}
    return ScoreThresholds(float(record["default"]), by_class)
