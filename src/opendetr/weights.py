"""Weights: our own files, the official layout, the transfer to other classes. No pickled object is ever built."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from opendetr.categories import Categories
from opendetr.layouts import OFFICIAL, is_official, our_name
from opendetr.models.detector import Detector

_KEY = "opendetr"
_FORMAT = 1


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line."""


@dataclass(frozen=True)
class ModelCard:
    """What a weights file of ours says about the model in it.

    Attributes:
        config: the run's configuration as plain values, the preset's name under "name".
        categories: what the labels stand for.
        facts: anything else worth knowing, plain values (metrics, steps, data).
    """

    config: dict[str, Any]
    categories: Categories
    facts: dict[str, Any]


@dataclass(frozen=True)
class TransferReport:
    """Which classes a transfer kept.

    Attributes:
        kept: in both, by name: their rows were copied.
        new: only in the new model: their rows are random.
        dropped: only in the old one.
    """

    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {what}" + (f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else "")
            for what, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped))
        ]
        return "classes: " + ", ".join(parts)


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` found.

    Attributes:
        layout: "opendetr" or "official".
        num_tensors: tensors that were loaded.
    """

    layout: str
    num_tensors: int


def cache_folder() -> Path:
    """Where downloads are kept: what the environment variable OPENDETR_CACHE names, else ~/.cache/opendetr."""
    return Path(os.environ.get("OPENDETR_CACHE") or Path.home() / ".cache" / "opendetr")


def download(url: str) -> Path:
    """A file whose name carries the start of its hash (NAME-HASH.pth), from the cache or from where it is published.

    Raises:
        WeightsError: it cannot be had, or it is not the published file.
    """
    path = cache_folder() / url.rpartition("/")[2]
    prefix = path.stem.rpartition("-")[2]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"cannot download {url} ({error}); without a network, put the file at {path}") from None
    with path.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(prefix):
            raise WeightsError(f"{path}: not the published file, its hash does not begin with {prefix}; remove it")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file whose pickle holds nothing but tensors and plain values.

    Raises:
        WeightsError: when the file is missing, cut off, in another format, or wants to run code.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        except SafetensorError as error:
            raise WeightsError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path}: refused, its pickle holds more than tensors and could run code; save its state dict alone"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first_line = str(error).partition("\n")[0]
        raise WeightsError(f"{path}: not a whole PyTorch file ({first_line}); copy it again") from None
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no state dict; expected names and tensors, perhaps under the key 'model'")
    return state


def in_our_layout(model: Detector, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our layout, whatever layout it came in.

    Raises:
        WeightsError: two names mean one parameter of the model, with different values.
    """
    if not is_official(state):
        return dict(state)
    own = model.state_dict()
    ours: dict[str, Tensor] = {}
    for theirs, value in state.items():
        name = our_name(theirs, OFFICIAL[model.family], own)
        if name in ours and not torch.equal(ours[name], value):
            raise WeightsError(f"{theirs}: this model shares {name} between layers, but these weights do not")
        ours[name] = value
    return ours


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Load weights strictly, in our or, for a detector, the official layout.

    Args:
        model: receives the weights.
        source: a path (.safetensors, .pth) or a state dict.

    Raises:
        WeightsError: naming every key that is missing, unknown or of another shape; the model is left as it was.
    """
    state = read_state(Path(source)) if isinstance(source, str | Path) else dict(source)
    own, layout = model.state_dict(), "opendetr"
    if isinstance(model, Detector) and is_official(state):
        layout, state = "official", in_our_layout(model, state)
    state = {name: value for name, value in state.items() if name in own or not name.endswith("num_batches_tracked")}
    uncounted = {name: own[name] for name in own if name.endswith("num_batches_tracked") and name not in state}
    state |= uncounted  # a frozen norm has no such count, and a trainable one does not need it
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unknown {name}" for name in state if name not in own]
    faults += [
        f"shape of {name}: expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    if faults:
        where = f"{source}: " if isinstance(source, str | Path) else ""
        raise WeightsError(f"{where}{len(faults)} keys do not fit this model ({layout} layout): " + "; ".join(faults))
    model.load_state_dict(state)
    return LoadReport(layout, len(state))


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
    content = {"format": _FORMAT, "config": card.config, "categories": card.categories.to_dict(), "facts": card.facts}
    # Not safetensors' own writing of files: that makes them readable for their owner alone.
    path.write_bytes(save(state, metadata={_KEY: json.dumps(content)}))


def read_card(path: Path) -> ModelCard | None:
    """The card of our own file, None for a file that has none.

    Raises:
        WeightsError: the file is missing or cut off, or its card cannot be used.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        return None
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


def transfer(
    model: nn.Module, state: Mapping[str, Tensor], old: Categories, new: Categories, class_rows: Sequence[str]
) -> TransferReport:
    """Load weights into a model with other classes: rows of classes of the same name are copied, new ones stay random.

    Args:
        model: the new model; its state dict is that of `state` but for the number of classes.
        state: our layout.
        old, new: what the rows of `state` and of `model` stand for.
        class_rows: names of the tensors with a row a class; rows behind the classes ("no object") are copied too.

    Raises:
        WeightsError: anything else does not fit.
    """
    state = dict(state)
    kept = [name for name in new.names if name in old.names]
    to = [new.label_of_name(name) for name in kept]
    of = [old.label_of_name(name) for name in kept]
    own = model.state_dict()
    for name in class_rows:
        if name not in state or state[name].shape[1:] != own[name].shape[1:]:
            continue  # load_weights names it
        rows = own[name].clone()
        rows[to] = state[name][of].to(rows)
        rows[len(new) :] = state[name][len(old) :].to(rows)
        state[name] = rows
    load_weights(model, state)
    return TransferReport(
        tuple(kept),
        tuple(name for name in new.names if name not in old.names),
        tuple(name for name, used in zip(old.names, old.used, strict=True) if used and name not in new.names),
    )
