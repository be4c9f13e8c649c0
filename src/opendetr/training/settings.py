"""The settings of a run: one preset, combined from several sources.

The sources are the catalogue, the card of the weights, `--config` and the user's changes. Each source
overrides the ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from opendetr.config import ConfigError, SettingError, parse_assignment, replaced, to_dict
from opendetr.data import DetectionData, count_noun
from opendetr.data.tools import queries_for
from opendetr.files import near_path, write_atomically
from opendetr.presets import (
    DEFAULT_MODEL,
    Preset,
    fine_tuned_name,
    fine_tuning,
    get_preset,
    list_models,
    name_with_masks,
    name_without_masks,
    preset_from_dict,
    trained_from_nothing,
    with_frozen_detector,
)
from opendetr.recipe import parse_duration
from opendetr.training.checkpoint import writing
from opendetr.training.starting_weights import IMAGENET, NOTHING, PUBLISHED, is_path, starting_point, weights_choice
from opendetr.weights import ModelCard, is_pretraining, is_remote, read_card, read_state

CONFIG_FILE = "config.yaml"
ARGUMENTS = {
    "recipe.epochs": "epochs",
    "recipe.max_steps": "max_steps",
    "recipe.time": "time",
    "recipe.batch_size": "batch_size",
    "recipe.accumulate": "accumulate",
    "recipe.learning_rate": "lr",
    "recipe.precision": "precision",
    "recipe.freeze": "freeze",
    "recipe.ema_decay": "ema",
    "recipe.best_by": "best_by",
    "recipe.patience": "patience",
    "recipe.log": "log",
    "recipe.seed": "seed",
    "data.image_size": "image_size",
    "data.augment": "augment",
    "data.batch_pixels": "batch_pixels",
    "data.val_fraction": "val_fraction",
    "data.train_split": "train_split",
    "data.val_split": "val_split",
    "data.num_workers": "workers",
    "data.allow": "allow",
    "model.num_queries": "num_queries",
}
"""Settings that are arguments of `train` and options of `opendetr train`: name of the setting -> argument."""


@dataclass(frozen=True)
class Setup:
    """The settings of a run that `config.yaml` stores.

    Attributes:
        preset: all settings.
        data: the dataset folder, as the user gave it; `config.yaml` has its absolute path.
        weights: the initial weights: "none", "imagenet", "published", a catalogue name, an address or a path, likewise.
        given: names of the fields of the recipe that the user has set, and "image_size" if the user has set the size of
            the images. `fit_to_data` does not change these.
        is_pretrained: whether the initial weights are those of a pre-training model, and a detector is trained.
        predicts_classes: whether the initial weights predict a class of the dataset. If so, they are evaluated.
    """

    preset: Preset
    data: Path
    weights: str
    given: frozenset[str] = frozenset()
    is_pretrained: bool = False
    predicts_classes: bool = False

    @property
    def starts_from_detector(self) -> bool:
        """Whether the initial weights are those of a detector."""
        return self.weights not in (NOTHING, IMAGENET) and not self.is_pretrained


def set_up(
    data: Path,
    model: str | None,
    weights: str | Path | None,
    config: str | Path | None,
    *,
    freeze_detector: bool,
) -> tuple[Setup, Any]:
    """The settings before the user's changes, and the origin of the initial weights (see `starting_point`)."""
    record, about = read_config(Path(config)) if config else ({}, {})
    weights = weights if weights is not None else about.get("weights")
    name = _same_name(model, record.get("name"), f"{config}: contains the settings of {record.get('name')}")
    choice = weights_choice(name or DEFAULT_MODEL, weights)
    requested = name or _model_of(choice)
    if choice in list_models() and not _can_start_from(requested or choice, choice):
        raise ConfigError(f"the weights of {choice} do not fit {requested}; leave the model out, or give other weights")
    origin = starting_point(name or DEFAULT_MODEL, choice)
    card = read_card(origin) if isinstance(origin, Path) else None
    preset = get_preset(_model_name(requested, card, origin, with_masks=freeze_detector and name is None))
    is_pretrained = isinstance(origin, Path) and preset.uses_annotations and is_pretraining(read_state(origin))
    if origin == NOTHING:
        preset = trained_from_nothing(preset)
    elif card is not None:
        card_preset = preset_from_dict(card.config)
        if is_pretrained:
            card_preset = fine_tuning(card_preset)
            preset = replace(preset, dense=card_preset.dense, recipe=card_preset.recipe)
        without_masks = preset.name == card_preset.without_masks or preset.can_start_from(card_preset)
        masks = card_preset.masks if card_preset.has_masks and not without_masks else preset.masks
        preset = replace(preset.like_trained(card_preset), masks=masks)
        if freeze_detector:
            if card_preset.has_masks:
                preset = replace(preset, data=replace(preset.data, masks=card_preset.data.masks))
            preset = replace(preset, criterion=card_preset.criterion)
    if isinstance(origin, Path) and not is_pretrained:  # a trained detector needs fewer epochs than the published ones
        recipe = replace(preset.recipe, warmup_steps=None, ema_decay=None, fit_to_data=True)
        preset = replace(preset, recipe=recipe)
    if freeze_detector:
        preset = with_frozen_detector(preset)
    try:
        preset = replaced(preset, record)
    except SettingError as error:  # the settings are those of a file
        raise ConfigError(f"{config}: {str(error).removeprefix('config: ')}") from None
    preset = replace(preset, freeze_detector=preset.freeze_detector or freeze_detector)
    given = _given(record)
    return Setup(preset, data, choice, given, is_pretrained), origin


def _given(settings: Mapping[str, Any]) -> frozenset[str]:
    """The part of `Setup.given` that follows from settings of the user."""
    has_size = not {"image_size", "max_size"}.isdisjoint(settings.get("data", {}))
    return frozenset(settings.get("recipe", {})) | ({"image_size"} if has_size else set())


def _model_of(choice: str) -> str | None:
    """The model that is trained from what `--weights` names. None if only the file of the weights can name it."""
    if choice == PUBLISHED:
        return DEFAULT_MODEL
    return fine_tuned_name(choice) if choice in list_models() else None


def _can_start_from(name: str, other: str) -> bool:
    """Whether a model can start from the weights of another.

    A model with a mask head can start from the weights of its detector, and a detector from those of its variant with a
    mask head. Both can start from the weights of the detector's pre-training. A tracker can start from the weights of
    the detector on which it builds.
    """
    if name_without_masks(name) in (name_without_masks(other), fine_tuned_name(other)):
        return True
    return get_preset(name).can_start_from(get_preset(other))


def _model_name(name: str | None, card: ModelCard | None, origin: str | Path, *, with_masks: bool) -> str:
    """The requested model, else that which is trained from the weights. With `with_masks`, its variant with masks."""
    card_name = str(card.config.get("name")) if card else None
    if name and card_name and _can_start_from(name, card_name):
        chosen = name
    else:
        chosen = _same_name(name, card_name, f"{origin}: holds {card_name}") or DEFAULT_MODEL
        chosen = chosen if name else fine_tuned_name(chosen)
    # A setting can add a mask head to a model whose name does not have one.
    has_masks = card is not None and card_name == chosen and preset_from_dict(card.config).has_masks
    return name_with_masks(chosen) if with_masks and not has_masks else chosen


def fit_to_data(setup: Setup, num_images: int) -> Setup:
    """Set epochs, batch size and learning rate from the number of training images, if the recipe has `fit_to_data`.

    A run that starts from a detector of the catalogue has the image size of its weights if it keeps a class, because
    predictions are worse at other sizes. Otherwise, it has that of the preset, which is faster for the small models.
    The number of epochs falls with the square root of the number of images. A run that starts from a detector has 50
    epochs on 160 images and 2 on 100,000. Other runs have 4 times as many. The batch size is halved for fewer than 100
    images and doubled for 20,000 or more. The learning rate changes with the square root of the batch size. Fields that
    the user has set do not change.
    """
    preset, recipe = setup.preset, setup.preset.recipe
    if not recipe.fit_to_data:
        return setup
    in_catalogue = setup.starts_from_detector and not (is_path(setup.weights) or is_remote(setup.weights))
    if in_catalogue and not setup.predicts_classes and "image_size" not in setup.given:
        preset = replace(preset, data=preset.data.sized_like(get_preset(preset.name).data))
    fitted: dict[str, Any] = {}
    if "epochs" not in setup.given and not preset.freeze_detector:
        epochs = 50 * math.sqrt(160 / num_images) * (1 if setup.starts_from_detector else 4)
        fitted["epochs"] = round(min(max(epochs, 1), 300))
    if "batch_size" not in setup.given:
        factor = 0.5 if num_images < 100 else 2 if num_images >= 20_000 else 1
        fitted["batch_size"] = max(2, round(recipe.batch_size * factor), recipe.accumulate)
        if "learning_rate" not in setup.given:
            rate = math.sqrt(fitted["batch_size"] / recipe.batch_size)
            fitted["learning_rate"] = recipe.learning_rate * rate
            fitted["backbone_learning_rate"] = recipe.backbone_learning_rate * rate
    return replace(setup, preset=replace(preset, recipe=replace(recipe, **fitted)))


def fit_to_memory(setup: Setup, images_at_once: int) -> Setup:
    """Divide each step into micro-batches of at most `images_at_once` images, unless the user has set their number."""
    recipe = setup.preset.recipe
    if "accumulate" in setup.given or recipe.batch_size <= images_at_once * recipe.accumulate:
        return setup
    recipe = replace(recipe, accumulate=math.ceil(recipe.batch_size / images_at_once))
    return replace(setup, preset=replace(setup.preset, recipe=recipe))


def check_settings(preset: Preset, splits: Mapping[str, DetectionData]) -> list[str]:
    """Refuse settings that prevent learning. Returns a warning for everything that limits the result.

    Raises:
        SettingError: the learning rate is 0, or the images are smaller than a cell of the features.
    """
    recipe = preset.recipe
    if recipe.learning_rate == 0:
        raise SettingError(
            "0 changes no weight; leave it out for the default of the model", setting="recipe.learning_rate"
        )
    preset.data.require_trainable_size()
    counts = [sum(not obj.crowd for obj in image.objects) for image in splits["train"].images]
    num_queries, exceeding = preset.model.num_queries, sum(count > preset.model.num_queries for count in counts)
    warnings = []
    if exceeding:
        warnings.append(
            f"warning: {count_noun(exceeding, 'training image')} with more than {num_queries} objects, the number of "
            f"queries; the other objects cannot be detected; give --num-queries {queries_for(max(counts))}"
        )
    shared = {image.path for image in splits["train"].images} & {image.path for image in splits["val"].images}
    if shared:
        warnings.append(
            f"warning: validation images that are training images too: {len(shared)}, such as {min(shared)}; "
            "the metrics do not show how well the model detects objects in new images"
        )
    advice = preset.advice(splits["train"])
    if advice is not None:
        warnings.append(f"warning: {preset.name}: {advice}")
    return warnings


def check_mask_settings(preset: Preset, origin: str | Path) -> None:
    """Raise ConfigError for a mask head without mask annotations, or for a frozen detector without trained weights."""
    if preset.has_masks and preset.data.masks == "none":
        raise ConfigError(f"{preset.name}: has a mask head, but data.masks is none; set data.masks to auto")
    if preset.freeze_detector and not isinstance(origin, Path):
        raise ConfigError("a frozen detector needs trained weights; set weights to a run folder, a file or published")


def _same_name(requested: str | None, other: str | None, where: str) -> str | None:
    """The name, which may be given once or twice. Raises ConfigError if two names differ."""
    if requested and other and requested != other:
        raise ConfigError(f"{where}, not {requested}; leave the model out, or give another file")
    return requested or other


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a YAML file of settings.

    Returns:
        The settings of the preset, and the entries of "run" (data, weights, fingerprint). Either may be empty.

    Raises:
        ConfigError: the file is missing, or is not a YAML file of settings.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give the folder of a run or a file of settings{near_path(path)}"
        ) from None
    except IsADirectoryError:
        inside = path / CONFIG_FILE
        hint = f"give {inside}" if inside.is_file() else "give a YAML file of settings"
        raise ConfigError(f"{path}: is a folder; {hint}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a text file; give a YAML file of settings") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not valid YAML ({reason}); fix the file or give another one") from None
    if not isinstance(content, dict) or not isinstance(content.get("run", {}), dict):
        raise ConfigError(f"{path}: holds no settings; expected keys such as name, model, recipe")
    about = content.pop("run", {})
    return content, about


def require_run(folder: Path) -> None:
    """Raise ConfigError unless `folder` is a run folder. The message names the runs in it, or the nearest folder."""
    if (folder / CONFIG_FILE).is_file():
        return
    if not folder.exists():
        raise ConfigError(f"{folder}: no such folder{near_path(folder)}")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give the folder of `opendetr train --out`")
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if runs:
        raise ConfigError(f"{folder}: contains several runs; choose one of {', '.join(map(str, runs))}")
    raise ConfigError(f"{folder}: not a run folder, it has no {CONFIG_FILE}; give the folder of `opendetr train --out`")


def write_config(folder: Path, setup: Setup, fingerprint: str) -> None:
    """Write the `config.yaml` of a run atomically. `read_config` reads it."""
    # A run can be resumed from another working folder, so its paths are absolute.
    weights = str(Path(setup.weights).resolve()) if is_path(setup.weights) else setup.weights
    about: dict[str, Any] = {"data": str(setup.data.resolve()), "weights": weights, "fingerprint": fingerprint}
    about["predicts_classes"] = setup.predicts_classes
    if setup.is_pretrained:
        about["pretrained"] = True
    text = yaml.safe_dump(to_dict(setup.preset) | {"run": about}, sort_keys=False, width=120)
    path = folder / CONFIG_FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text, sync=True)


def _nested(changes: Mapping[str, Any] | Iterable[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Merge mappings and strings like "recipe.seed=1" into one nested mapping. Later changes override earlier ones.

    A name in a mapping can be a full one, such as "recipe.seed".
    """
    merged: dict[str, Any] = {}
    for change in (changes,) if isinstance(changes, Mapping) else changes:
        _merge(merged, parse_assignment(change) if isinstance(change, str) else change)
    if "name" in merged:
        raise ConfigError("config: 'name' is the name of the model and cannot be changed; choose another model")
    return merged


def with_options(
    changes: Mapping[str, Any] | Iterable[str | Mapping[str, Any]], **options: Mapping[str, Any]
) -> list[str | Mapping[str, Any]]:
    """Append the options that are not None to the changes. `options` are grouped by branch of the settings."""
    given = {
        branch: {name: value for name, value in values.items() if value is not None}
        for branch, values in options.items()
    }
    return [*((changes,) if isinstance(changes, str | Mapping) else changes), given]


def as_list(names: str | Sequence[str]) -> list[str]:
    """The names as a list. A string is a single name."""
    return [names] if isinstance(names, str) else list(names)


def _merge(into: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        key, dot, rest = str(name).partition(".")
        part = {rest: value} if dot else value
        if not isinstance(part, Mapping):
            into[key] = part
        elif isinstance(into.setdefault(key, {}), dict):  # a value such as "recipe=2" stays, to be refused
            _merge(into[key], part)


def _run_length(epochs: int | None, max_steps: int | None, time: str | float | None) -> dict[str, Any]:
    """The changes of the recipe that set the length of the run. Empty if no length is given."""
    if sum(length is not None for length in (epochs, max_steps, time)) > 1:
        raise SettingError("give the length of the run in epochs, in steps or as a time, not more than one of them")
    if epochs is not None:
        return {"epochs": epochs, "max_steps": None, "time": None}
    if max_steps is not None:
        return {"max_steps": max_steps, "time": None}
    if time is None:
        return {}
    try:
        return {"max_steps": None, "time": parse_duration(time) if isinstance(time, str) else time}
    except ValueError as error:
        raise SettingError(str(error), setting="recipe.time") from None


def apply_changes(
    setup: Setup,
    changes: Mapping[str, Any] | Iterable[str | Mapping[str, Any]],
    *,
    epochs: int | None,
    max_steps: int | None,
    time: str | float | None,
    batch_size: int | None,
    learning_rate: float | None,
    image_size: int | None,
    num_queries: int | None,
    seed: int | None,
) -> Setup:
    """Apply the changes of the user to `setup`: first `changes`, then the arguments that are not None.

    Raises:
        ConfigError: a key is unknown, a value is invalid, or more than one length of the run is given.
    """
    recipe = _run_length(epochs, max_steps, time)
    nested = _nested(changes)
    preset = replaced(setup.preset, nested)
    if batch_size is not None:
        recipe["batch_size"] = batch_size
    if seed is not None:
        recipe["seed"] = seed
    if learning_rate is not None:
        before = preset.recipe
        ratio = before.backbone_learning_rate / before.learning_rate if before.learning_rate else 1.0
        recipe |= {"learning_rate": learning_rate, "backbone_learning_rate": learning_rate * ratio}
    data = {}
    if image_size is not None:
        try:
            resized = preset.data.resized(image_size)
        except ValueError as error:
            raise SettingError(str(error).partition(": ")[2], setting="data.image_size") from None
        data = {"image_size": resized.image_size, "max_size": resized.max_size}
    model = {} if num_queries is None else {"num_queries": num_queries}
    given = setup.given | _given(nested) | _given({"recipe": recipe, "data": data})
    return replace(setup, preset=replaced(preset, {"recipe": recipe, "data": data, "model": model}), given=given)
