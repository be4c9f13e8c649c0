"""Exports detectors to the layouts of the original implementations and of Hugging Face.

Trainable batch norm in the backbone is exported as frozen batch norm. Both have the same tensors and give the same
results in evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from opendetr.categories import Categories
from opendetr.config import ConfigError, to_dict
from opendetr.files import atomic_path, write_atomically
from opendetr.models import Detector
from opendetr.presets import Preset
from opendetr.weights import (
    CONFIG,
    PREPROCESSOR,
    ModelCard,
    Rows,
    WeightFamily,
    config_json,
    family_of,
    preprocessor_json,
    their_names,
    unpacked,
    unwritable,
    uses_timm,
)

WEIGHTS = "model.safetensors"


def export_official(model: Detector, preset: Preset, path: Path) -> None:
    """Write a checkpoint file of the original implementation: {"model": state dict}.

    Args:
        model: the detector.
        preset: its configuration.
        path: a new file. Missing parent folders are created.

    Raises:
        ConfigError: the path exists, or the original implementation does not support the model.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; give the name of a new file")
    family = _known_family(model, preset)
    _expect_common_backbone(preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save({"model": _named(model, family, family.official)}, temporary)


def export_huggingface(model: Detector, preset: Preset, categories: Categories, folder: Path) -> None:
    """Write a folder for `from_pretrained` of transformers: model, configuration and image processor.

    The model file also contains our own settings and classes, so `opendetr.load` accepts the folder like a run folder.

    Args:
        model: the detector.
        preset: its configuration, and the size of the images.
        categories: the classes of its labels.
        folder: an empty or new folder.

    Raises:
        ConfigError: the folder is not empty, or transformers does not support the model.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; give the name of a new one")
    family = _known_family(model, preset)
    _expect_common_backbone(preset)
    reason = not_for_huggingface(model, preset)
    if reason:
        raise ConfigError(f"{preset.name}: cannot be exported to Hugging Face: {reason}; use --format official")
    assert family.huggingface is not None
    settings = to_dict(preset)["model"]
    rows = family.huggingface.writing(timm=uses_timm(settings))
    state = unpacked(_named(model, family, rows))
    config = config_json(family.huggingface, settings, categories, model)
    processor = preprocessor_json(family.huggingface, preset.data.image_size, preset.data.max_size)
    exported = replace(preset, model=replace(preset.model, backbone=preset.model.backbone.frozen()))
    card = ModelCard(to_dict(exported), categories, {})
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, config)
    _write_json(folder / PREPROCESSOR, processor)
    # safetensors does not accept tensors that share memory.
    content = save({name: value.clone() for name, value in state.items()}, {"format": "pt"} | card.to_metadata())
    write_atomically(folder / WEIGHTS, content)


def not_for_huggingface(model: Detector, preset: Preset) -> str | None:
    """The reason why transformers does not support a detector, in a few words; None if it does."""
    return unwritable(family_of(model), to_dict(preset))


def _known_family(model: Detector, preset: Preset) -> WeightFamily:
    """The weight family of a model. Raises ConfigError if it is not registered."""
    family = family_of(model)
    if family is None:
        raise ConfigError(f"{preset.name}: exists only in OpenDETR; use its own weights file")
    return family


def _expect_common_backbone(preset: Preset) -> None:
    """Raise ConfigError if the backbone has a part that other implementations do not have."""
    part = preset.model.backbone.without_counterpart()
    if part:
        raise ConfigError(f"{preset.name}: {part} exists only in OpenDETR; use its own weights file")


def _named(model: Detector, family: WeightFamily, rows: Rows) -> dict[str, Tensor]:
    """The state dict with the names of `rows`. A tensor with several names there is listed under all of them."""
    absent = family.absent(model)
    own = {
        name: value.cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    names = their_names(own, rows, family.num_heads(model))
    assert set(names.values()) == own.keys()
    return {theirs: own[ours] for theirs, ours in names.items() if not any(part in theirs for part in absent)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2))
