"""A detector in the layouts of others: what it has learned can leave as it came.

A backbone with trainable batch norm is written as the frozen one that it is in evaluation: its statistics and its scale
are the same tensors.
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
)

WEIGHTS = "model.safetensors"


def export_official(model: Detector, preset: Preset, path: Path) -> None:
    """Write the file of the original implementation: {"model": names and tensors}.

    Args:
        model: the detector.
        preset: what it is made of.
        path: a file that is not there yet; the folder it is in is made.

    Raises:
        ConfigError: something is there, or the original has no such backbone.
    """
    if path.exists():
        raise ConfigError(f"{path}: is there already; give the name of a new file")
    family = _known_family(model, preset)
    _refuse_group_norm(preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save({"model": _named(model, family, family.official)}, temporary)


def export_huggingface(model: Detector, preset: Preset, categories: Categories, folder: Path) -> None:
    """Write a folder that `from_pretrained` of transformers reads: model, configuration, image processor.

    The model's own settings and classes are in it, too, so that `opendetr.load` reads it like a run folder.

    Args:
        model: the detector.
        preset: what it is made of, and the size of its images.
        categories: what its labels stand for.
        folder: a folder that is empty or not there yet.

    Raises:
        ConfigError: something is there, or transformers has no such model.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; give the name of a new one")
    family = _known_family(model, preset)
    _refuse_group_norm(preset)
    reason = not_for_huggingface(model, preset)
    if reason:
        raise ConfigError(f"{preset.name}: cannot be written for Hugging Face: {reason}; --format official can hold it")
    assert family.huggingface is not None
    rows = family.huggingface.writing(timm=preset.model.backbone.dilation)
    state = unpacked(_named(model, family, rows))
    config = config_json(family.huggingface, to_dict(preset)["model"], categories, model)
    processor = preprocessor_json(family.huggingface, preset.data.image_size, preset.data.max_size)
    card = ModelCard(to_dict(_with_frozen_norm(preset)), categories, {})
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, config)
    _write_json(folder / PREPROCESSOR, processor)
    # Each tensor in a place of its own: safetensors refuses those that share one.
    content = save({name: value.clone() for name, value in state.items()}, {"format": "pt"} | card.to_metadata())
    write_atomically(folder / WEIGHTS, content)


def not_for_huggingface(model: Detector, preset: Preset) -> str | None:
    """Why transformers cannot hold a detector, in a few words; None when it can."""
    return unwritable(family_of(model), to_dict(preset))


def _known_family(model: Detector, preset: Preset) -> WeightFamily:
    """What is known about the weights of a model. Raises ConfigError when it is nothing."""
    family = family_of(model)
    if family is None:
        raise ConfigError(f"{preset.name}: exists only here, so no other layout can hold it; use our own files")
    return family


def _refuse_group_norm(preset: Preset) -> None:
    if preset.model.backbone.norm == "group":
        raise ConfigError(f"{preset.name}: a backbone with group norm exists only here; use our own files")


def _with_frozen_norm(preset: Preset) -> Preset:
    backbone = replace(preset.model.backbone, norm="frozen")
    return replace(preset, model=replace(preset.model, backbone=backbone))


def _named(model: Detector, family: WeightFamily, rows: Rows) -> dict[str, Tensor]:
    """The state dict under the names of `rows`, a tensor that others keep under several names under all of them."""
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
