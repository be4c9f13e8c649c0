"""The settings of a run: catalogue, weights, `config.yaml` and the user's choices become one preset; later ones win."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from opendetr.config import ConfigError, parse_assignment, replaced, to_dict
from opendetr.data import DetectionData, counted
from opendetr.files import write_atomically
from opendetr.presets import (
    DEFAULT_MODEL,
    Preset,
    get_preset,
    name_with_masks,
    name_without_masks,
    preset_from_dict,
    trained_from_nothing,
    with_frozen_detector,
)
from opendetr.recipe import parse_duration
from opendetr.training.checkpoint import writing
from opendetr.training.starting_weights import IMAGENET, NOTHING, PUBLISHED, starting_point, weights_choice
from opendetr.weights import ModelCard, read_card

CONFIG_FILE = "config.yaml"
_SMALLEST_IMAGE = 32  # pixels; a cell of the coarsest features


@dataclass(frozen=True)
class Setup:
    """What a run is made from; `config.yaml` holds it.

    Attributes:
        preset: every setting.
        data: the dataset folder.
        weights: "none", "imagenet", "published" or a path: what the run starts from.
        given: names of the recipe's settings that the user gave.
    """

    preset: Preset
    data: Path
    weights: str
    given: frozenset[str] = frozenset()

    @property
    def starts_from_detector(self) -> bool:
        """Whether the run starts from the weights of a detector."""
        return self.weights not in (NOTHING, IMAGENET)


def set_up(
    data: Path,
    model: str | None,
    weights: str | Path | None,
    config: str | Path | None,
    *,
    freeze_detector: bool,
) -> tuple[Setup, Any]:
    """The settings before the user's changes, and where the weights come from (see `starting_point`)."""
    record, about = read_config(Path(config)) if config else ({}, {})
    weights = weights if weights is not None else about.get("weights")
    name = _one_of(model, record.get("name"), f"{config}: is about {record.get('name')}")
    choice = weights_choice(name or DEFAULT_MODEL, weights)
    origin = starting_point(name or DEFAULT_MODEL, choice)
    card = read_card(origin) if isinstance(origin, Path) else None
    asked = name or (DEFAULT_MODEL if choice == PUBLISHED else None)
    preset = get_preset(_model_name(asked, card, origin, with_masks=freeze_detector and name is None))
    if origin == NOTHING:
        preset = trained_from_nothing(preset)
    elif card is not None:
        of_card = preset_from_dict(card.config)
        is_detector_of_card = preset.name == of_card.without_masks
        masks = of_card.masks if of_card.has_masks and not is_detector_of_card else preset.masks
        preset = replace(preset, model=of_card.model, masks=masks)
        if freeze_detector:  # it sees images of the size that it was trained for
            of = of_card.data
            seen = replace(preset.data, image_size=of.image_size, max_size=of.max_size, side_multiple=of.side_multiple)
            if of_card.has_masks:
                seen = replace(seen, masks=of.masks)
            preset = replace(preset, data=seen, criterion=of_card.criterion)
    if isinstance(origin, Path):  # a trained detector learns the data's classes in less than the published length
        recipe = replace(preset.recipe, warmup_steps=None, ema_decay=None, fit_to_data=True)
        preset = replace(preset, recipe=recipe)
    if freeze_detector:
        preset = with_frozen_detector(preset)
    preset = replaced(preset, record)
    preset = replace(preset, freeze_detector=preset.freeze_detector or freeze_detector)
    return Setup(preset, data.resolve(), choice, frozenset(record.get("recipe", {}))), origin


def _model_name(name: str | None, card: ModelCard | None, origin: str | Path, *, with_masks: bool) -> str:
    """The model that is asked for, or that of the weights; `with_masks` when it is to have a mask head in any case.

    A detector's weights do for the model with a mask head around it, and those of that model for the detector.
    """
    of_card = str(card.config.get("name")) if card else None
    if name and of_card and name_without_masks(name) == name_without_masks(of_card):
        found = name
    else:
        found = _one_of(name, of_card, f"{origin}: holds {of_card}") or DEFAULT_MODEL
    has_head = card is not None and of_card == found and preset_from_dict(card.config).has_masks  # perhaps by a setting
    return name_with_masks(found) if with_masks and not has_head else found


def fit_to_data(setup: Setup, num_images: int) -> Setup:
    """Settings whose recipe has `fit_to_data`, with epochs, batch size and learning rate for a number of images.

    The images that a run sees grow with the square root of the dataset: 50 epochs of 160 images when it starts from a
    detector, 4 times as many when it does not; 2 epochs (8) of 100,000. A run on fewer than 100 images has half of the
    batch size, one on 20,000 or more has twice the batch size; the learning rate follows by the square root. What the
    user gave stays.
    """
    preset, recipe = setup.preset, setup.preset.recipe
    if not recipe.fit_to_data:
        return setup
    fitted: dict[str, Any] = {}
    if "epochs" not in setup.given and not preset.freeze_detector:
        fit = 50 * math.sqrt(160 / num_images) * (1 if setup.starts_from_detector else 4)
        fitted["epochs"] = round(min(max(fit, 1), 300))
    if "batch_size" not in setup.given:
        factor = 0.5 if num_images < 100 else 2 if num_images >= 20_000 else 1
        fitted["batch_size"] = max(2, round(recipe.batch_size * factor), recipe.accumulate)
        if "learning_rate" not in setup.given:
            rate = math.sqrt(fitted["batch_size"] / recipe.batch_size)
            fitted["learning_rate"] = recipe.learning_rate * rate
            fitted["backbone_learning_rate"] = recipe.backbone_learning_rate * rate
    return replace(setup, preset=replace(preset, recipe=replace(recipe, **fitted)))


def require_hope(preset: Preset, parts: Mapping[str, DetectionData]) -> list[str]:
    """Refuse settings with which nothing can be learned; returns warnings about others, a line each.

    Raises:
        ConfigError: a learning rate of zero, or images of a few pixels.
    """
    recipe, size = preset.recipe, preset.data.image_size
    if recipe.learning_rate == 0 and "backbone" not in recipe.freeze:
        raise ConfigError("recipe.learning_rate: 0 changes no weight; leave it out for the model's own rate")
    if size < _SMALLEST_IMAGE:
        raise ConfigError(
            f"data.image_size: {size} pixels leave nothing to detect; give at least {_SMALLEST_IMAGE}, or leave it out"
        )
    most = max((len(image.objects) for image in parts["train"].images), default=0)
    count = sum(len(image.objects) > preset.model.num_queries for image in parts["train"].images)
    if not count:
        return []
    return [
        f"warning: {counted(count, 'training image')} with more objects than the model's {preset.model.num_queries} "
        f"queries, {most} at most; the rest cannot be detected: give --num-queries {most}"
    ]


def require_lessons(preset: Preset, origin: str | Path) -> None:
    """Raise ConfigError for a mask head that would get nothing to learn from."""
    if preset.has_masks and preset.data.masks == "none":
        raise ConfigError(f"{preset.name}: has a mask head, but no masks are read; set data.masks to auto")
    if preset.freeze_detector and not isinstance(origin, Path):
        raise ConfigError("a frozen detector learns nothing: give a trained one, weights RUN, FILE or published")


def _one_of(wanted: str | None, found: str | None, where: str) -> str | None:
    """Whichever of two names is given. Raises ConfigError when they differ."""
    if wanted and found and wanted != found:
        raise ConfigError(f"{where}, not {wanted}; leave the model out, or give another file")
    return wanted or found


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A YAML file of settings: those of the preset, and what it says about its run."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a run folder and its settings are made by training") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(content, dict) or not isinstance(content.get("run", {}), dict):
        raise ConfigError(f"{path}: holds no settings; expected keys such as name, model, recipe")
    about = content.pop("run", {})
    return content, about


def write_config(folder: Path, setup: Setup, fingerprint: str) -> None:
    """Write a run's `config.yaml`, whole or not at all; `read_config` is the inverse."""
    about = {"data": str(setup.data), "weights": setup.weights, "fingerprint": fingerprint}
    text = yaml.safe_dump(to_dict(setup.preset) | {"run": about}, sort_keys=False, width=120)
    path = folder / CONFIG_FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text, sync=True)


def nested(changes: Mapping[str, Any] | Iterable[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Changes as nested mappings, whichever way they were given; later ones win."""
    merged: dict[str, Any] = {}
    for change in (changes,) if isinstance(changes, Mapping) else changes:
        _merge(merged, parse_assignment(change) if isinstance(change, str) else change)
    if "name" in merged:
        raise ConfigError("config: 'name' is the model's; choose another model instead of renaming this one")
    return merged


def _merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def run_length(epochs: int | None, max_steps: int | None, time: str | float | None) -> dict[str, Any]:
    """The recipe's changes for the length of the run."""
    if sum(length is not None for length in (epochs, max_steps, time)) > 1:
        raise ConfigError("give the length of the run in epochs, in steps or as a time, not more than one of them")
    if epochs is not None:
        return {"epochs": epochs, "max_steps": None, "time": None}
    if max_steps is not None:
        return {"max_steps": max_steps, "time": None}
    if time is None:
        return {}
    try:
        return {"max_steps": None, "time": parse_duration(str(time))}
    except ValueError as error:
        raise ConfigError(str(error)) from None


def adjusted(
    preset: Preset,
    recipe: dict[str, Any],
    batch_size: int | None,
    learning_rate: float | None,
    image_size: int | None,
    num_queries: int | None,
    seed: int | None,
) -> Preset:
    """The preset with the settings that have a name of their own; `recipe` holds some already."""
    if batch_size is not None:
        recipe["batch_size"] = batch_size
    if seed is not None:
        recipe["seed"] = seed
    if learning_rate is not None:
        before = preset.recipe
        share = before.backbone_learning_rate / before.learning_rate if before.learning_rate else 1.0
        recipe |= {"learning_rate": learning_rate, "backbone_learning_rate": learning_rate * share}
    data = {}
    if image_size is not None:
        try:
            resized = preset.data.resized(image_size)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        data = {"image_size": resized.image_size, "max_size": resized.max_size}
    model = {} if num_queries is None else {"num_queries": num_queries}
    return replaced(preset, {"recipe": recipe, "data": data, "model": model})
