"""The model that is trained if the user names none: the best published one that fits into the memory of the GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch

from opendetr.presets import DEFAULT_MODEL, TRAINING_MEMORY, weights_origin
from opendetr.weights import published_files

AUTO = "auto"
_LEAST_MEMORY = 8  # GB of a GPU for a published model
_USABLE = 0.85  # of the memory
_GB, _GIB = 10**9, 2**30


class AutomaticModel(NamedTuple):
    """A chosen model.

    Attributes:
        name: its name in the catalogue.
        reason: one line: what was chosen and why, and how to choose another.
        images_at_once: the number of images whose train step fits into the memory of a GPU; None on other devices.
    """

    name: str
    reason: str
    images_at_once: int | None = None


def automatic_model(device: torch.device) -> AutomaticModel:
    """The published model with the best AP on COCO that can be trained on a CUDA GPU of 8 GB or more, else the default.

    Only models whose weights are available without a download by hand are considered.
    """
    if device.type != "cuda":
        reason = f"because the device is {'a CPU' if device.type == 'cpu' else device.type}, not a CUDA GPU"
        return AutomaticModel(DEFAULT_MODEL, _line(DEFAULT_MODEL, reason, "detr-r50"))
    memory = torch.cuda.get_device_properties(device).total_memory
    if memory < _LEAST_MEMORY * _GB:
        reason = f"because the GPU has {memory / _GB:.0f} GB, less than {_LEAST_MEMORY}"
        return AutomaticModel(DEFAULT_MODEL, _line(DEFAULT_MODEL, reason, "detr-r50"))
    files = published_files()
    fitting = {
        name: int((_USABLE * memory / _GIB - of_model) / of_image)
        for name, (of_model, of_image) in TRAINING_MEMORY.items()
        if weights_origin(name) is not None
    }
    candidates = [(files[name].ap or 0.0, name) for name, count in fitting.items() if count >= 1 and name in files]
    if not candidates:
        return AutomaticModel(
            DEFAULT_MODEL, _line(DEFAULT_MODEL, "because no published weights are available", "detr-r50")
        )
    ap, name = max(candidates)
    reason = f"the best published weights (AP {ap:.3f} on COCO) that fit into a GPU of {memory / _GB:.0f} GB"
    return AutomaticModel(name, _line(name, reason, DEFAULT_MODEL), fitting[name])


def _line(name: str, reason: str, other: str) -> str:
    return f"model: {name}, {reason}; for another: --model {other} (`opendetr models` lists all)"
