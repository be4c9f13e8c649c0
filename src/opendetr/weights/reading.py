"""Finds weights files in folders and reads their tensors. No pickled code is ever run."""

from __future__ import annotations

import argparse
import codecs
import json
import pathlib
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opendetr.config import some_of
from opendetr.files import IMAGE_SUFFIXES, near_path
from opendetr.weights.errors import WeightsError
from opendetr.weights.wrappings import unwrapped, without_prefixes

_INDEX = ".index.json"
_LOAD_ERRORS = (  # of torch.load for a file that is damaged or something else
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError),
)
# The first bytes of files that are taken for weights by mistake.
_KINDS = {
    b"\xff\xd8\xff": "an image",
    b"\x89PNG": "an image",
    b"GIF8": "an image",
    b"BM": "an image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a compressed archive",
    b"version https://git-lfs": "a Git LFS pointer instead of the file it stands for",
    b"<": "a web page or XML",
}
# Candidates in a run folder or a Hugging Face folder, in order of preference.
_FILES = (
    "best/model.safetensors",
    "last/model.safetensors",
    "model.safetensors",
    "model.safetensors" + _INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + _INDEX,
)


def weights_file(source: Path) -> Path:
    """The weights file in a run folder (the best ones) or a Hugging Face folder; a file is returned as it is.

    Raises:
        WeightsError: the folder contains no weights.
    """
    if not source.is_dir():
        return source
    for candidate in _FILES:
        if (source / candidate).is_file():
            return source / candidate
    runs = sorted(inner for inner in source.iterdir() if any((inner / file).is_file() for file in _FILES))
    if runs:
        raise WeightsError(f"{source}: contains several runs; choose one of {', '.join(map(str, runs))}")
    raise WeightsError(f"{source}: contains no weights; expected a run folder of `opendetr train` or model.safetensors")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file.

    The file is a .safetensors file, the index of a state dict in several files, or a file of torch.save whose pickle
    contains only tensors and plain values. The state dict may be wrapped as trainers do it; see `wrappings`. An
    average of the weights beside it is preferred, with one line about it on standard error.

    Raises:
        WeightsError: the file is missing, incomplete, in another format, or could run code.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file{near_path(path)}")
    if path.name.endswith(_INDEX):
        return _read_parts(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises WeightsError if the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: contains no JSON object; copy it again")
    return content


def _read_parts(index: Path) -> dict[str, Tensor]:
    file_of_tensor = read_json(index).get("weight_map")
    if not isinstance(file_of_tensor, dict) or not all(isinstance(file, str) for file in file_of_tensor.values()):
        raise WeightsError(f"{index}: contains no valid weight_map; copy it again")
    # Only files next to the index are read, whatever folder the index names.
    parts = [read_state(index.parent / Path(file).name) for file in sorted(set(file_of_tensor.values()))]
    return {name: value for part in parts for name, value in part.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return without_prefixes({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  not a dict
    except SafetensorError as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}); copy or save it again") from None


def _other_kind(path: Path) -> str | None:
    """What a file is that torch.save has not written, such as "an image"; None for a pickle or an unknown kind."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    known = next((kind for magic, kind in _KINDS.items() if start.startswith(magic)), None)
    if known or start.startswith(b"\x80"):  # a pickle
        return known
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "an image"
    return "a text file" if start.decode("ascii", "ignore").encode() == start and b"\0" not in start else None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        # The original training scripts also save their options, plain values in a namespace, and metrics of NumPy.
        with torch.serialization.safe_globals(_plain_types()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        kind = _other_kind(path)
        if kind:
            raise WeightsError(
                f"{path}: is {kind}, not a file of weights; give a run folder or a weights file"
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path}: its pickle contains more than tensors and could run code; save only its state dict"
            ) from None
        first_line = str(error).partition("\n")[0]
        raise WeightsError(f"{path}: not a complete PyTorch file ({first_line}); copy it again") from None
    state, average = unwrapped(content)
    if state is None:
        keys = f"; it has {some_of(list(map(str, content)))}" if isinstance(content, dict) and content else ""
        raise WeightsError(
            f"{path}: contains no state dict; expected named tensors, optionally under a key such as 'model'{keys}"
        )
    if average is not None:
        print(f"{path}: contains an average of the weights over the training ({average}), which is used",
              file=sys.stderr)  # fmt: skip
    return state


def _plain_types() -> list[Any]:
    """The types besides tensors that a checkpoint may contain. None of them runs code when it is read."""
    scalar = np.float64(0).__reduce__()[0]
    array = np.zeros(0).__reduce__()[0]
    return [
        argparse.Namespace, pathlib.PosixPath, np.ndarray, np.dtype, scalar, array,
        (scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct"),  # of NumPy 1
        (scalar, "numpy._core.multiarray.scalar"), (array, "numpy._core.multiarray._reconstruct"),
        *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgSU"}, codecs.encode,
    ]  # fmt: skip
