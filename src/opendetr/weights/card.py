"""Our own file of weights: safetensors, with what the model is and what its labels stand for in the header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from opendetr.categories import Categories
from opendetr.weights.errors import WeightsError
from opendetr.weights.huggingface import config_beside, settings_of

_KEY = "opendetr"
_FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """What a file of weights says about the model in it.

    Attributes:
        config: the run's configuration as plain values, the preset's name under "name".
        categories: what the labels stand for.
        facts: anything else worth knowing, plain values (metrics, steps, data).
    """

    config: dict[str, Any]
    categories: Categories
    facts: dict[str, Any]

    def to_metadata(self) -> dict[str, str]:
        """What stands in the header of a safetensors file."""
        content = {
            "format": _FORMAT, "config": self.config, "categories": self.categories.to_dict(), "facts": self.facts,
        }  # fmt: skip
        return {_KEY: json.dumps(content)}


def save_weights(path: Path, model: nn.Module, card: ModelCard, *, half: bool = False) -> None:
    """Write our own file: safetensors, the card as JSON in its header.

    Args:
        path: where to, written as it is; callers that must survive a kill write aside and rename.
        model: gives the state dict.
        card: describes it.
        half: store matrices in half precision (norms and biases stay as they are).
    """
    state = {
        name: (value.half() if half and value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for name, value in model.state_dict().items()
    }
    # Not safetensors' own writing of files: that makes them readable for their owner alone.
    path.write_bytes(save(state, metadata=card.to_metadata()))


def read_card(path: Path) -> ModelCard | None:
    """What a file says about its model: the card in our own, the config.json beside Hugging Face's; else None.

    Raises:
        WeightsError: the file is missing or cut off, or its card cannot be used.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
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
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None
    if text is None:
        return None
    try:
        content = json.loads(text)
        return ModelCard(content["config"], Categories.from_dict(content["categories"]), content["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its description cannot be read ({error}); save it again") from None
