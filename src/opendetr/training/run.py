"""A training run from beginning to end: a dataset folder and a few choices in, a run folder out.

A run folder holds `config.yaml` (every setting; `--config` reads it back), `metrics.jsonl`, `metrics.csv`,
`curves.png`, `images/` and the checkpoints `last` and `best`; `opendetr.load` opens their `model.safetensors`.

Where a launcher such as torchrun has started several processes they train as one: all of them run what is written here,
and the main one writes and talks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import nn
from torchvision.models import get_model_weights

from opendetr.categories import Categories
from opendetr.config import ConfigError, parse_assignment, replaced, to_dict
from opendetr.data.formats.recognise import open_data
from opendetr.data.loader import train_loader
from opendetr.data.masks import map_hashes, require_scorable
from opendetr.data.paths import require_folder
from opendetr.data.records import DataError, DetectionData, ImageRecord
from opendetr.distributed import from_main, is_main, join_processes, rank, together, world_size
from opendetr.inference.comparison import compare
from opendetr.inference.predictor import Predictor
from opendetr.models.detector import Detector
from opendetr.presets import (
    DEFAULT_MODEL,
    Preset,
    build_model,
    build_task,
    get_preset,
    name_with_masks,
    name_without_masks,
    preset_from_dict,
    published_weights,
    trained_from_nothing,
    weights_origin,
    with_frozen_detector,
)
from opendetr.recipe import parse_duration
from opendetr.tasks import Task
from opendetr.training.callbacks import Curves, MetricsFile, MetricsTable, Progress, TensorBoard, ValidationImages
from opendetr.training.checkpoint import find_checkpoint, writing
from opendetr.training.events import Observer
from opendetr.training.trainer import RunResult, Trainer
from opendetr.weights import (
    ModelCard,
    WeightsError,
    download,
    fitting_part,
    in_our_layout,
    is_remote,
    load_weights,
    local_file,
    read_card,
    read_state,
    require_classes,
    save_weights,
    transfer,
    usual_categories,
)

CONFIG_FILE = "config.yaml"
_NOTHING, _IMAGENET, _PUBLISHED = "none", "imagenet", "published"
_CHOICES = "choose other weights: none, imagenet, published, or a run folder or file of weights"
_NUM_SHOWN = 4

Say = Callable[[str], object]


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: the run folder; `opendetr.load(run.folder)` opens its best weights.
        result: how it ended, with its scores.
    """

    folder: Path
    result: RunResult


@dataclass(frozen=True)
class _Setup:
    """What a run is made from; `config.yaml` holds it.

    Attributes:
        preset: every setting.
        data: the dataset folder.
        weights: "none", "imagenet", "published" or a path: what the run starts from.
    """

    preset: Preset
    data: Path
    weights: str


def train(
    data: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    changes: Mapping[str, Any] | Iterable[str | Mapping[str, Any]] = (),
    epochs: int | None = None,
    max_steps: int | None = None,
    time: str | float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    image_size: int | None = None,
    num_queries: int | None = None,
    freeze_detector: bool = False,
    seed: int | None = None,
    device: str = "auto",
    say: Say | None = None,
) -> Run:
    """Train a detector on a dataset folder, to the end or until Ctrl-C or SIGTERM, which save first.

    Args:
        data: the folder, COCO, Pascal VOC or YOLO, or a CSV table; classes and splits are found in it.
        model: a name of the catalogue; that of `config` or of the weights, else the default one, when omitted.
        weights: what to start from. "published": the model's own, fitted to the classes of the data by their names;
            "imagenet": a pretrained backbone; "none": nothing, which trains the backbone too; or a run folder or a
            file of weights. When omitted: published ones where they exist, else imagenet, else none.
        out: the run folder, which must not exist or be empty; the first free of runs/MODEL, runs/MODEL-2, ... when
            omitted.
        config: a YAML file of settings, for instance another run's config.yaml.
        changes: settings that differ: nested mappings, or texts like "model.num_queries=50".
        epochs: length in passes over the data.
        max_steps: length in optimiser steps, instead of `epochs`.
        time: length in seconds or as text ("30m"), instead of either.
        batch_size: images a step, of all processes together.
        learning_rate: outside the backbone; the backbone's rate keeps its proportion to it.
        image_size: short side of the images, in pixels.
        num_queries: the most objects that an image can have. Learned queries of the weights are kept, and new ones are
            split from them.
        freeze_detector: train the mask head alone, for the paper's 25 epochs unless another length is given, around the
            trained detector that `weights` names. When the model is omitted it is that detector's with a mask head.
        seed: of the initialisation, the data's order, the augmentation and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        say: called with each line that the user should read; standard error when omitted.

    Raises:
        DataError, ConfigError, WeightsError, DeviceError: something does not fit; nothing has been written then.
        CheckpointError: the run folder cannot be written.
        NonFiniteError: a loss was not finite; the last checkpoint is from before it.
        ProcessError: another process of the run failed, or is gone.

    Example:
        >>> run = train("my-data", time="30m")
        >>> detector = opendetr.load(run.folder)
    """
    place = join_processes(device)
    say = _voice(say)
    with together():
        require_folder(Path(data))
        if out is not None:
            _require_empty(Path(out))
        setup, origin = _set_up(Path(data), model, weights, config, freeze_detector=freeze_detector)
        lengths = _length(epochs, max_steps, time)
        preset = replaced(setup.preset, _nested(changes))
        preset = _adjusted(preset, lengths, batch_size, learning_rate, image_size, num_queries, seed)
        setup = replace(setup, preset=preset)
        _require_lessons(preset, origin)
        if origin == _NOTHING:
            say("weights: none, so the backbone is trained whole: batch norm, nothing frozen, the full learning rate")
        parts = _open(setup, say)
        task = _new_task(preset, parts["train"].categories)
        say(_start(task.model, origin, preset, parts["train"].categories))
    folder = from_main(_free_folder(preset.name) if out is None else Path(out))
    trainer = _trainer(setup, task, parts, folder, place)
    if is_main():
        _write_config(folder, setup, _fingerprint(parts))
    return Run(folder, trainer.train())


def resume(folder: str | Path, *, device: str = "auto", say: Say | None = None) -> Run:
    """Go on with a run where its last checkpoint is, as if it had never stopped.

    Args:
        folder: the run folder.
        device: as in `train`; on another one than before the rest is not the same to the last bit.
        say: as in `train`.

    Raises:
        ConfigError, DataError: this is no run folder, or its data is no longer there or has changed.
        CheckpointError, NonFiniteError: as in `train`.
    """
    place = join_processes(device)
    say, folder = _voice(say), Path(folder)
    with together():
        record, about = _read_config(folder / CONFIG_FILE)
        if not {"data", "weights", "fingerprint"} <= about.keys():
            raise ConfigError(f"{folder / CONFIG_FILE}: does not say which data and weights the run began with")
        setup = _Setup(preset_from_dict(record), Path(about["data"]), str(about["weights"]))
        parts = _open(setup, say)
        if _fingerprint(parts) != about["fingerprint"]:
            raise DataError(f"{setup.data}: the data has changed since the run began; start a new run")
        task = _new_task(setup.preset, parts["train"].categories)
        has_checkpoint = find_checkpoint(folder / "last") is not None
        if not has_checkpoint:
            say("no checkpoint had been saved yet: the run begins again")
            say(_start(task.model, _origin(setup.preset.name, setup.weights), setup.preset, parts["train"].categories))
    trainer = _trainer(setup, task, parts, folder, place)
    return Run(folder, trainer.train(resume=has_checkpoint))


def _voice(say: Say | None) -> Say:
    """What says lines to the user; of several processes the main one speaks."""
    return (say or _to_stderr) if is_main() else _to_nobody


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _to_nobody(line: str) -> None:
    pass


# ------------------------------------------------------------------------------------------------------------ settings


def _set_up(
    data: Path,
    model: str | None,
    weights: str | Path | None,
    config: str | Path | None,
    *,
    freeze_detector: bool,
) -> tuple[_Setup, Any]:
    """The settings before the user's changes, and where the weights come from (see `_origin`)."""
    record, about = _read_config(Path(config)) if config else ({}, {})
    weights = weights if weights is not None else about.get("weights")
    name = _one_of(model, record.get("name"), f"{config}: is about {record.get('name')}")
    choice = _choice(name or DEFAULT_MODEL, weights)
    origin = _origin(name or DEFAULT_MODEL, choice)
    card = read_card(origin) if isinstance(origin, Path) else None
    asked = name or (DEFAULT_MODEL if choice == _PUBLISHED else None)
    preset = get_preset(_model_name(asked, card, origin, with_masks=freeze_detector and name is None))
    if origin == _NOTHING:
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
    if freeze_detector:
        preset = with_frozen_detector(preset)
    preset = replaced(preset, record)
    preset = replace(preset, freeze_detector=preset.freeze_detector or freeze_detector)
    return _Setup(preset, data.resolve(), choice), origin


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


def _require_lessons(preset: Preset, origin: str | Path) -> None:
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


def _choice(name: str, weights: str | Path | None) -> str:
    """One of the three words, an address, or an absolute path."""
    if weights is None:
        other = _NOTHING if get_preset(name).model.backbone.half_width else _IMAGENET  # half of a width has none
        has_weights = weights_origin(name) or weights_origin(name_without_masks(name))
        return _PUBLISHED if has_weights else other
    known = str(weights) in (_NOTHING, _IMAGENET, _PUBLISHED) or is_remote(weights)
    return str(weights) if known else str(Path(weights).resolve())


def _origin(name: str, choice: str) -> str | Path:
    """Where the weights come from: "none", "imagenet" or a file, downloaded if need be."""
    if choice in (_NOTHING, _IMAGENET):
        return choice
    if choice != _PUBLISHED:
        return local_file(choice)
    # Those of the detector are enough to start a model with a mask head from.
    path = _or_choose(lambda: published_weights(name) or published_weights(name_without_masks(name)))
    if path is None:
        raise WeightsError(f"{name}: no weights of it are published; {_CHOICES}")
    return path


def _or_choose(fetch: Callable[[], Path | None]) -> Path | None:
    """What `fetch` gives; its error names the other choices, too."""
    try:
        return fetch()
    except WeightsError as error:
        raise WeightsError(f"{error}; or {_CHOICES}") from None


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
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


def _write_config(folder: Path, setup: _Setup, fingerprint: str) -> None:
    about = {"data": str(setup.data), "weights": setup.weights, "fingerprint": fingerprint}
    text = yaml.safe_dump(to_dict(setup.preset) | {"run": about}, sort_keys=False, width=120)
    path = folder / CONFIG_FILE
    fresh = path.with_name(f"{CONFIG_FILE}.new")
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


def _nested(changes: Mapping[str, Any] | Iterable[str | Mapping[str, Any]]) -> dict[str, Any]:
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


def _length(epochs: int | None, max_steps: int | None, time: str | float | None) -> dict[str, Any]:
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


def _adjusted(
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


# ---------------------------------------------------------------------------------------------------------------- data


def _open(setup: _Setup, say: Say) -> dict[str, DetectionData]:
    """The splits of the data, described in a line each."""
    config = setup.preset.data
    parts = open_data(
        setup.data,
        val_fraction=config.val_fraction,
        train_split=config.train_split,
        val_split=config.val_split,
        strict=config.strict,
        masks=config.masks,
    )
    for role in ("train", "val"):
        name = "" if parts[role].split == role else f" ({parts[role].split})"
        say(f"{role}{name}: {parts[role].summary()}")
    if config.masks != "none":
        require_scorable(parts["val"])
    return parts


def _fingerprint(parts: Mapping[str, DetectionData]) -> str:
    """A hash of what a run sees of the data: classes, files, boxes, and outlines and maps where masks are learned."""
    digest = hashlib.sha256()
    for role in ("train", "val"):
        part = parts[role]
        digest.update(repr((role, part.categories.to_dict())).encode())
        for image in part.images:
            objects = [(thing.category_id, thing.box, thing.crowd) for thing in image.objects]
            digest.update(repr((image.id, part.file_name(image), objects)).encode())
        if part.masks != "none":
            for image, drawn in zip(part.images, map_hashes(part.images), strict=True):
                outlines = [(thing.segmentation, thing.segment) for thing in image.objects]
                digest.update(repr((outlines, drawn)).encode())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- model


def _new_task(preset: Preset, categories: Categories) -> Task:
    """The task with its model, initialised by the seed; the global generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.recipe.seed)
        return build_task(preset, build_model(preset, len(categories)), len(categories))


def _start(model: Detector, origin: str | Path, preset: Preset, categories: Categories) -> str:
    """Load the weights that a run starts from; returns a line about them."""
    count = f"{preset.name}, {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters"
    if origin == _NOTHING:
        return f"{count}, all of them random"
    if isinstance(origin, Path):
        return f"{count}, from {origin}; {_transferred(model, origin, preset, categories)}"
    backbone = preset.model.backbone
    if backbone.half_width or backbone.norm == "group":
        what = "of half width" if backbone.half_width else "with group norm"
        raise WeightsError(f"{preset.name}: there are no ImageNet weights for a backbone {what}; {_CHOICES}")
    url = get_model_weights(f"resnet{backbone.depth}")["IMAGENET1K_V1"].url
    path = _or_choose(lambda: download(url))
    assert path is not None
    state = {name: value for name, value in read_state(path).items() if not name.startswith("fc.")}
    load_weights(model.backbone.body, state)
    return f"{count}, the backbone's from {path.name}"


def _transferred(model: Detector, path: Path, preset: Preset, categories: Categories) -> str:
    """Load a detector's weights, its classes fitted by name; returns what became of them."""
    card = read_card(path)
    state = read_state(path)
    known = card.categories if card else usual_categories(state)
    part = in_our_layout(model, fitting_part(model, state))
    require_classes(path, model, part, len(known), num_others=model.num_logits - len(categories))
    report = transfer(model, state, known, categories)
    if report.new and preset.freeze_detector:
        isthing = dict(zip(categories.names, categories.isthing, strict=True))
        mend = (
            "train it on this data first"
            if any(isthing[name] for name in report.new)
            else "set data.masks to instances, or train the detector with data.masks set to panoptic first"
        )
        raise ConfigError(f"{path}: a frozen detector cannot learn {', '.join(report.new[:5])}; {mend}")
    return str(report)


# ----------------------------------------------------------------------------------------------------------------- run


def _free_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that is not there."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _require_empty(folder: Path) -> None:
    """Raise ConfigError for a folder that cannot become a run folder."""
    if folder.is_dir() and (folder / CONFIG_FILE).exists():
        raise ConfigError(f"{folder}: holds a run already; go on with --resume {folder}, or choose another folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; choose another one for the run")


def _trainer(
    setup: _Setup,
    task: Task,
    parts: Mapping[str, DetectionData],
    folder: Path,
    device: torch.device,
) -> Trainer:
    """Everything put together. Nothing is written before the trainer starts."""
    preset, categories, val = setup.preset, parts["train"].categories, parts["val"]
    # Evaluations are rare: what a cache would keep is read again just as fast.
    seen = replace(preset, data=replace(preset.data, cache="none"))
    card = ModelCard(to_dict(preset), categories, {"data": setup.data.name, "weights": Path(setup.weights).name})

    def predictor(trained: nn.Module) -> Predictor:
        return Predictor(trained.model, seen, categories, device=str(device))  # type: ignore[arg-type]

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        metrics = predictor(trained).evaluate(val, batch_size=preset.recipe.batch_size).named_metrics
        return {name: value for name, value in metrics.items() if value is not None}

    def save(path: Path, trained: nn.Module) -> None:
        save_weights(path, trained.model, card)  # type: ignore[arg-type]

    def pictures(trained: nn.Module) -> Iterator[tuple[str, Image.Image]]:
        for record, image in compare(predictor(trained), val, chosen):
            yield f"{record.id}-{record.path.stem}", image

    chosen = _to_show(val.images)
    recipe = replace(preset.recipe, best_by=_best_by(preset, val))
    headlines = preset.headlines(val)
    observers: list[Observer] = [
        Progress(metric=recipe.best_by, headlines=headlines),
        MetricsFile(),
        MetricsTable(),
        Curves(),
        ValidationImages(pictures),
    ]
    if preset.recipe.tensorboard:
        observers.append(TensorBoard())
    with together():
        if preset.recipe.tensorboard and not importlib.util.find_spec("tensorboard"):
            raise ConfigError("recipe.tensorboard: TensorBoard is not installed; `pip install opendetr[log]`")
        loader = train_loader(
            parts["train"],
            preset.data,
            batch_size=preset.recipe.batch_size,
            seed=preset.recipe.seed,
            share=(rank(), world_size()),
            device=device,
        )
    with together():
        return Trainer(
            task,
            loader,
            recipe,
            folder,
            evaluate=evaluate,
            save_model=save,
            observers=observers,
            device=str(device),
        )


def _best_by(preset: Preset, val: DetectionData) -> str:
    """The metric by which the best checkpoint is chosen; "auto" is the main one of the model and the data.

    Raises:
        ConfigError: the validation data cannot give it.
    """
    name, names = preset.recipe.best_by, preset.metrics(val)
    if name == "auto":
        return names[0]
    if name not in names:
        raise ConfigError(
            f"recipe.best_by: no metric of the validation data is called {name!r}; there are {', '.join(names)}"
        )
    return name


def _to_show(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    """A few images with objects, spread over the data."""
    candidates = [image for image in images if image.objects]
    step = max(1, len(candidates) // _NUM_SHOWN)
    return candidates[::step][:_NUM_SHOWN]
