"""Files of weights: where they lie in a folder, and the tensors in them. No pickled object is ever built."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opendetr.weights.errors import WeightsError

_INDEX = ".index.json"
# Of a run folder and of a folder of Hugging Face's, the best first.
_FILES = (
    "best/model.safetensors",
    "last/model.safetensors",
    "model.safetensors",
    "model.safetensors" + _INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + _INDEX,
)


def weights_file(source: Path) -> Path:
    """The weights in a run folder (the best ones) or in a folder of Hugging Face's, or the file itself.

    Raises:
        WeightsError: the folder holds none.
    """
    if not source.is_dir():
        return source
    for candidate in _FILES:
        if (source / candidate).is_file():
            return source / candidate
    raise WeightsError(f"{source}: holds no weights; expected a run folder of `opendetr train`, or model.safetensors")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    A .safetensors file; the index of a state that is spread over several files; else what torch.save wrote, when its
    pickle holds nothing but tensors and plain values. The state may lie under "model", as in the checkpoints of the
    original implementations, beside an optimiser and the settings of the run.

    Raises:
        WeightsError: when the file is missing, cut off, in another format, or wants to run code.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.name.endswith(_INDEX):
        return _read_parts(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises WeightsError when it does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds no JSON object; copy it again")
    return content


def _read_parts(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise WeightsError(f"{index}: does not say which file holds which tensor; copy it again")
    # A name is that of a file beside the index, whatever path it claims.
    parts = [read_state(index.parent / Path(file).name) for file in sorted(set(places.values()))]
    return {name: value for part in parts for name, value in part.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        # The original training scripts save their options, too: plain values in a namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: refused, its pickle holds more than tensors and could run code; save its state dict alone"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        first_line = str(error).partition("\n")[0]
        raise WeightsError(f"{path}: not a whole PyTorch file ({first_line}); copy it again") from None
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict; expected names and tensors, perhaps under the key 'model'")
    return state
