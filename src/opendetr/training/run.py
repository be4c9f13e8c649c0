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
from PIL import Image
from torch import nn

from opendetr.categories import Categories
from opendetr.config import ConfigError, replaced, to_dict
from opendetr.data.formats.recognise import open_data
from opendetr.data.loader import TrainLoader, train_loader
from opendetr.data.masks import map_hashes, require_scorable
from opendetr.data.paths import require_folder
from opendetr.data.records import DataError, DetectionData, ImageRecord
from opendetr.distributed import from_main, is_main, join_processes, rank, together, world_size
from opendetr.inference.comparison import compare
from opendetr.inference.predictor import Predictor
from opendetr.presets import Preset, build_model, build_task, preset_from_dict
from opendetr.tasks import Task
from opendetr.training.callbacks import Curves, MetricsFile, MetricsTable, Progress, TensorBoard, ValidationImages
from opendetr.training.checkpoint import find_checkpoint
from opendetr.training.events import Observer
from opendetr.training.settings import (
    CONFIG_FILE,
    Setup,
    adjusted,
    nested,
    read_config,
    require_lessons,
    run_length,
    set_up,
    write_config,
)
from opendetr.training.starting_weights import NOTHING, load_start, starting_point
from opendetr.training.trainer import RunResult, Trainer
from opendetr.weights import ModelCard, save_weights

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
        setup, origin = set_up(Path(data), model, weights, config, freeze_detector=freeze_detector)
        lengths = run_length(epochs, max_steps, time)
        preset = replaced(setup.preset, nested(changes))
        preset = adjusted(preset, lengths, batch_size, learning_rate, image_size, num_queries, seed)
        setup = replace(setup, preset=preset)
        require_lessons(preset, origin)
        if origin == NOTHING:
            say("weights: none, so the backbone is trained whole: batch norm, nothing frozen, the full learning rate")
        parts = _open(setup, say)
        task = _new_task(preset, parts["train"].categories)
        say(load_start(task.model, origin, preset, parts["train"].categories))
    folder = from_main(_free_folder(preset.name) if out is None else Path(out))
    trainer, loader = _trainer(setup, task, parts, folder, place)
    if is_main():
        write_config(folder, setup, _fingerprint(parts))
    result = trainer.train()
    loader.gather_skipped()
    return Run(folder, result)


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
        record, about = read_config(folder / CONFIG_FILE)
        if not {"data", "weights", "fingerprint"} <= about.keys():
            raise ConfigError(f"{folder / CONFIG_FILE}: does not say which data and weights the run began with")
        setup = Setup(preset_from_dict(record), Path(about["data"]), str(about["weights"]))
        parts = _open(setup, say)
        if _fingerprint(parts) != about["fingerprint"]:
            raise DataError(f"{setup.data}: the data has changed since the run began; start a new run")
        task = _new_task(setup.preset, parts["train"].categories)
        has_checkpoint = find_checkpoint(folder / "last") is not None
        if not has_checkpoint:
            say("no checkpoint had been saved yet: the run begins again")
            say(
                load_start(
                    task.model,
                    starting_point(setup.preset.name, setup.weights),
                    setup.preset,
                    parts["train"].categories,
                )
            )
    trainer, loader = _trainer(setup, task, parts, folder, place)
    result = trainer.train(resume=has_checkpoint)
    loader.gather_skipped()
    return Run(folder, result)


def _voice(say: Say | None) -> Say:
    """What says lines to the user; of several processes the main one speaks."""
    return (say or _to_stderr) if is_main() else _to_nobody


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def _to_nobody(line: str) -> None:
    pass


# ---------------------------------------------------------------------------------------------------------------- data


def _open(setup: Setup, say: Say) -> dict[str, DetectionData]:
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
    setup: Setup,
    task: Task,
    parts: Mapping[str, DetectionData],
    folder: Path,
    device: torch.device,
) -> tuple[Trainer, TrainLoader]:
    """Everything put together, and the loader of the trainer. Nothing is written before the trainer starts."""
    preset, categories, val = setup.preset, parts["train"].categories, parts["val"]
    # Evaluations are rare: what a cache would keep is read again just as fast.
    seen = replace(preset, data=replace(preset.data, cache="none"))
    card = ModelCard(to_dict(preset), categories, {"data": setup.data.name, "weights": Path(setup.weights).name})

    def predictor(trained: nn.Module) -> Predictor:
        return Predictor(trained.model, seen, categories, device=str(device))  # type: ignore[arg-type]

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        loader.gather_skipped()  # so that the user sees it during the run
        metrics = predictor(trained).evaluate(val, batch_size=preset.recipe.batch_size).named_metrics
        return {name: value for name, value in metrics.items() if value is not None}

    def save(path: Path, trained: nn.Module) -> None:
        save_weights(path, trained.model, card)  # type: ignore[arg-type]

    def pictures(trained: nn.Module) -> Iterator[tuple[str, Image.Image]]:
        for record, image in compare(predictor(trained), val, chosen):
            yield f"{record.id}-{record.path.stem}", image

    chosen = _to_show(val.images)
    recipe = replace(preset.recipe, best_by=best_by(preset, val))
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
        trainer = Trainer(
            task,
            loader,
            recipe,
            folder,
            evaluate=evaluate,
            save_model=save,
            observers=observers,
            device=str(device),
        )
    return trainer, loader


def best_by(preset: Preset, val: DetectionData) -> str:
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
