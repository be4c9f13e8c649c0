"""Weights: our own files, the official layout, and the transfer to other classes. Nothing is ever unpickled into objects."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


class WeightsError(ValueError):
    """Weights that cannot be used; the message is one line."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` found.

    Attributes:
        layout: "opendetr" or "official".
        num_tensors: tensors that were loaded.
    """

    layout: str
    num_tensors: int


# Official name -> ours, first rule that matches from the start of the name.
_OFFICIAL: tuple[tuple[str, str], ...] = (
    (r"transformer\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"transformer\.encoder\.layers\.(\d+)\.linear", r"encoder.layers.\1.feed_forward.linear"),
    (r"transformer\.encoder\.layers\.(\d+)\.norm1\.", r"encoder.layers.\1.attention_residual.norm."),
    (r"transformer\.encoder\.layers\.(\d+)\.norm2\.", r"encoder.layers.\1.feed_forward_residual.norm."),
    (r"transformer\.encoder\.norm\.", r"encoder.norm."),
    (r"transformer\.decoder\.layers\.(\d+)\.self_attn\.", r"decoder.layers.\1.self_attention."),
    (r"transformer\.decoder\.layers\.(\d+)\.multihead_attn\.", r"decoder.layers.\1.cross_attention."),
    (r"transformer\.decoder\.layers\.(\d+)\.linear", r"decoder.layers.\1.feed_forward.linear"),
    (r"transformer\.decoder\.layers\.(\d+)\.norm1\.", r"decoder.layers.\1.self_attention_residual.norm."),
    (r"transformer\.decoder\.layers\.(\d+)\.norm2\.", r"decoder.layers.\1.cross_attention_residual.norm."),
    (r"transformer\.decoder\.layers\.(\d+)\.norm3\.", r"decoder.layers.\1.feed_forward_residual.norm."),
    (r"transformer\.decoder\.norm\.", r"decoder.norm."),
    (r"class_embed\.", r"class_head."),
    (r"bbox_embed\.", r"box_head."),
    (r"query_embed\.", r"queries."),
    (r"input_proj\.", r"project."),
    (r"backbone\.0\.body\.", r"backbone.body."),
    (r"backbone\.1\.", r"position."),
)


def from_official(name: str) -> str:
    """Our name of an official state-dict key; names of ours come back as they are."""
    for pattern, replacement in _OFFICIAL:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            return renamed
    return name


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


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Load weights strictly, in our or the official layout.

    Args:
        model: receives the weights.
        source: a path (.safetensors, .pth) or a state dict.

    Raises:
        WeightsError: naming every key that is missing, unknown or of another shape; the model is left as it was.
    """
    state = read_state(Path(source)) if isinstance(source, str | Path) else dict(source)
    own = model.state_dict()
    layout = "opendetr"
    if any(name.startswith(("transformer.", "backbone.0.")) for name in state):
        layout = "official"
        state = {from_official(name): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name in own or not name.endswith("num_batches_tracked")}
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
