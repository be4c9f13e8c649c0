"""Exports detectors to the layouts of the original implementations and of Hugging Face Transformers ("transformers").

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
from opendetr.data import resized_shape
from opendetr.files import atomic_path, write_atomically
from opendetr.models import Detector
from opendetr.presets import Preset
from opendetr.scoring import ScoreThresholds
from opendetr.weights import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    ModelCard,
    Rows,
    WeightFamily,
    config_json,
    family_of,
    part_without_counterpart,
    preprocessor_json,
    their_names,
    unpack_projections,
    unsupported_reason,
    uses_timm,
)

WEIGHTS_FILE = "model.safetensors"
_NEVER = -100.0  # the logit of a label that is never predicted
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def export_official(model: Detector, preset: Preset, path: Path) -> None:
    """Write a checkpoint file of the original implementation: {"model": state dict}.

    Args:
        model: the detector.
        preset: the configuration of the detector.
        path: a new file. Missing parent folders are created.

    Raises:
        ConfigError: the path exists, or the original implementation does not support the model.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; give the name of a new file")
    family = _require_family(model, preset)
    _expect_common_parts(preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save({"model": _renamed(model, family, family.official, model.state_dict())}, temporary)


def export_huggingface(
    model: Detector,
    preset: Preset,
    categories: Categories,
    folder: Path,
    *,
    thresholds: ScoreThresholds | None = None,
) -> None:
    """Write a folder for `from_pretrained` of transformers: model, configuration and image processor.

    The weights file also contains the preset and the classes, so `opendetr.load` can load the folder. transformers has
    no labels that are never predicted, so the rows of these labels are replaced by ones that never have a score. See
    `huggingface_difference` for what its image processor does differently.

    Args:
        model: the detector.
        preset: the configuration of the detector; the image processor gets its image size.
        categories: the classes of the detector's labels.
        folder: an empty or new folder.
        thresholds: score thresholds that OpenDETR predicts with; transformers does not read them.

    Raises:
        ConfigError: the folder is not empty or has the name of a file, or transformers does not support the model.
    """
    if folder.suffix in _FILE_SUFFIXES:
        raise ConfigError(f"{folder}: this layout is a folder; leave out {folder.suffix}, or choose official")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; give the name of a new one")
    family = _require_family(model, preset)
    _expect_common_parts(preset)
    reason = huggingface_unsupported_reason(model, preset)
    if reason:
        raise ConfigError(f"{preset.name}: cannot be exported to Hugging Face: {reason}; use --format official")
    assert family.huggingface is not None
    settings = to_dict(preset)["model"]
    rows = family.huggingface.writing(timm=uses_timm(settings))
    state = unpack_projections(_renamed(model, family, rows, _without_unused(model, categories)))
    config = config_json(family.huggingface, settings, categories, model)
    processor = preprocessor_json(family.huggingface, preset.data.image_size, preset.data.max_size)
    exported = replace(preset, model=replace(preset.model, backbone=preset.model.backbone.frozen()))
    card = ModelCard(to_dict(exported), categories, {}, thresholds)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG_FILE, config)
    _write_json(folder / PREPROCESSOR_FILE, processor)
    # safetensors does not accept tensors that share memory.
    content = save({name: value.clone() for name, value in state.items()}, {"format": "pt"} | card.to_metadata())
    write_atomically(folder / WEIGHTS_FILE, content)


def huggingface_unsupported_reason(model: Detector, preset: Preset) -> str | None:
    """The reason why transformers does not support a detector; None if it does."""
    return unsupported_reason(family_of(model), to_dict(preset))


def huggingface_difference(preset: Preset) -> str:
    """What the image processor of transformers does differently for some images, and by how much, in a sentence.

    It cannot round sides to a multiple. If the long side reaches its limit, it rounds differently: by half a pixel of
    the short side, which the aspect ratio multiplies.
    """
    data = preset.data
    if data.side_multiple == 1:
        return (
            f"the image processor of transformers gives images longer than {data.max_size / data.image_size:.2f}:1 a "
            "long side that differs by up to half their aspect ratio in pixels, so their scores differ slightly"
        )
    examples = []
    for height, width in ((480, 640), (1080, 1920)):
        theirs = resized_shape(height, width, data.image_size, data.max_size)
        ours = resized_shape(height, width, data.image_size, data.max_size, data.side_multiple)
        examples.append(f"{width}x{height} becomes {theirs[1]}x{theirs[0]} there and {ours[1]}x{ours[0]} here")
    return (
        f"the image processor of transformers does not round sides to multiples of {data.side_multiple} pixels "
        f"({'; '.join(examples)}), so scores and boxes differ a little for images that are not square; for equal "
        "results, resize the images yourself and set do_resize=False"
    )


def _without_unused(model: Detector, categories: Categories) -> dict[str, Tensor]:
    """The state dict in which the rows of labels that are never predicted have no score, whatever the image."""
    state = dict(model.state_dict())
    unused = [label for label, used in enumerate(categories.used) if not used]
    for name in model.class_rows if unused else ():
        rows = state[name].clone()
        rows[unused] = _NEVER if rows.ndim == 1 else 0.0
        state[name] = rows
    return state


def _require_family(model: Detector, preset: Preset) -> WeightFamily:
    """The weight family of a model. Raises ConfigError if it is not registered."""
    family = family_of(model)
    if family is None:
        raise ConfigError(f"{preset.name}: exists only in OpenDETR; use the weights file of the run")
    return family


def _expect_common_parts(preset: Preset) -> None:
    """Raise ConfigError if the model has a part that other implementations do not have."""
    part = preset.model.backbone.without_counterpart() or part_without_counterpart(to_dict(preset))
    if part:
        raise ConfigError(f"{preset.name}: {part} exists only in OpenDETR; use the weights file of the run")


def _renamed(model: Detector, family: WeightFamily, rows: Rows, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights `own` of the model with the names of another layout.

    A tensor is repeated if it has several names in the layout.
    """
    absent = family.absent(model)
    state = {name: value.cpu().contiguous() for name, value in own.items() if not name.endswith("num_batches_tracked")}
    names = their_names(state, rows, family.num_heads(model))
    assert set(names.values()) == state.keys()
    return {theirs: state[ours] for theirs, ours in names.items() if not any(part in theirs for part in absent)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2))
