"""A training run from start to end: `train` starts one, `resume` continues one.

A run folder contains `config.yaml` (every setting; `--config` reads it), `metrics.jsonl`, `metrics.csv`, `curves.png`,
`images/` and the checkpoints `last` and `best`. `opendetr.load` opens the `model.safetensors` of a checkpoint.

Several processes, started by a launcher such as torchrun, train as one. All of them execute these functions. Only the
main process writes files and prints.
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
from opendetr.config import ConfigError, SettingError, suggestions, to_dict
from opendetr.data import (
    DataError,
    DetectionData,
    ImageRecord,
    map_hashes,
    require_folder,
    require_scorable,
    train_loader,
)
from opendetr.data.formats import open_data
from opendetr.distributed import from_main, is_main, join_processes, rank, together, world_size
from opendetr.inference import Predictor, compare
from opendetr.presets import Preset, build_model, build_task, preset_from_dict
from opendetr.recipe import Recipe
from opendetr.tasks import Task
from opendetr.training.callbacks import Curves, MetricsFile, MetricsTable, Progress, TensorBoard, ValidationImages
from opendetr.training.checkpoint import find_checkpoint
from opendetr.training.events import Observer
from opendetr.training.settings import (
    CONFIG_FILE,
    Setup,
    adjusted,
    read_config,
    require_lessons,
    require_run,
    set_up,
    write_config,
)
from opendetr.training.starting_weights import NOTHING, load_start, starting_point
from opendetr.training.trainer import RunResult, Trainer
from opendetr.weights import ModelCard, save_weights

_NUM_IMAGES_DRAWN = 4

Say = Callable[[str], object]


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: the run folder; `opendetr.load(run.folder)` opens its best weights.
        result: how it ended, and its metrics.
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
    """Train a detector on a dataset.

    Ctrl-C and SIGTERM save a checkpoint and end the run.

    Args:
        data: a COCO, Pascal VOC or YOLO folder, or a CSV table. Classes and splits are read from it.
        model: a name of the catalogue. Default: the model of `config` or of the weights, else the default model.
        weights: the initial weights. "published": the model's own, with classes matched by name; "imagenet": a
            pretrained backbone; "none": random weights, and the backbone is trained too; or a run folder or a weights
            file. Default: "published" if the model has published weights, else "imagenet" if its backbone has
            pretrained weights, else "none".
        out: the run folder. It must not exist or must be empty. Default: the first unused one of runs/MODEL,
            runs/MODEL-2, ...
        config: a YAML file of settings, for instance the config.yaml of another run.
        changes: settings that differ from these: nested mappings, or strings like "model.num_queries=50".
        epochs: length of the run in passes over the training images.
        max_steps: length of the run in optimizer steps, instead of `epochs`.
        time: length of the run in seconds or as a string ("30m"), instead of `epochs` and `max_steps`.
        batch_size: images per step, of all processes together.
        learning_rate: of all parts except the backbone. The backbone's rate is scaled by the same factor.
        image_size: short side of the images, in pixels.
        num_queries: number of queries, the largest number of objects in an image. Learned queries of the weights are
            kept, and additional ones are split from them.
        freeze_detector: train only the mask head around the trained detector that `weights` names, by default for
            25 epochs as in the paper. The default model is then that detector with a mask head.
        seed: of the initialisation, the order of the data, the augmentation and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        say: called with each line of output. Default: print to standard error.

    Raises:
        DataError, ConfigError, WeightsError, DeviceError: the arguments cannot be used. No file has been written.
        CheckpointError: the run folder cannot be written.
        NonFiniteError: a loss, or the output in an evaluation, was not finite. The last checkpoint is older.
        ProcessError: another process of the run failed or ended.

    Example:
        >>> run = train("my-data", time="30m")
        >>> detector = opendetr.load(run.folder)
    """
    own_device = join_processes(device)
    say = _in_main_process(say)
    with together():
        require_folder(Path(data))
        if out is not None:
            _require_empty(Path(out))
        setup, origin = set_up(Path(data), model, weights, config, freeze_detector=freeze_detector)
        preset = adjusted(
            setup.preset,
            changes,
            epochs=epochs,
            max_steps=max_steps,
            time=time,
            batch_size=batch_size,
            learning_rate=learning_rate,
            image_size=image_size,
            num_queries=num_queries,
            seed=seed,
        )
        setup = replace(setup, preset=preset)
        require_lessons(preset, origin)
        splits = _open_splits(setup, say)
        task = _initial_task(preset, origin, splits["train"].categories, say)
    folder = from_main(_unused_folder(preset.name) if out is None else Path(out))
    trainer = _trainer(setup, task, splits, folder, own_device)
    if is_main():
        write_config(folder, setup, _fingerprint(splits))
    return Run(folder, trainer.train())


def resume(folder: str | Path, *, device: str = "auto", say: Say | None = None) -> Run:
    """Continue a run from its last checkpoint.

    On the same machine the result equals that of an uninterrupted run, bit for bit.

    Args:
        folder: the run folder.
        device: as in `train`. On another device than before, the result differs by rounding.
        say: as in `train`.

    Raises:
        ConfigError, DataError: `folder` is not a run folder, or its data is missing or has changed.
        CheckpointError, NonFiniteError, ProcessError: as in `train`.
    """
    own_device = join_processes(device)
    say, folder = _in_main_process(say), Path(folder)
    with together():
        require_run(folder)
        record, about = read_config(folder / CONFIG_FILE)
        if not {"data", "weights", "fingerprint"} <= about.keys():
            raise ConfigError(
                f"{folder / CONFIG_FILE}: does not name the data and the weights that the run started with; "
                "start a new run, --config reads the settings of this file"
            )
        setup = Setup(preset_from_dict(record), Path(about["data"]), str(about["weights"]))
        preset = setup.preset
        splits = _open_splits(setup, say)
        if _fingerprint(splits) != about["fingerprint"]:
            raise DataError(f"{setup.data}: the data has changed since the run started; start a new run")
        categories = splits["train"].categories
        has_checkpoint = find_checkpoint(folder / "last") is not None
        if has_checkpoint:
            task = _random_task(preset, categories)
        else:
            say("the run has no checkpoint yet: it starts again")
            task = _initial_task(preset, starting_point(preset.name, setup.weights), categories, say)
    trainer = _trainer(setup, task, splits, folder, own_device)
    return Run(folder, trainer.train(resume=has_checkpoint))


def _in_main_process(say: Say | None) -> Say:
    """The function that receives lines of output: `say` or printing to standard error; none in other processes."""
    if not is_main():
        return lambda _line: None
    return say or _print_to_stderr


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------- data


def _open_splits(setup: Setup, say: Say) -> dict[str, DetectionData]:
    """Open the splits "train" and "val" of the data, and report one line about each."""
    config = setup.preset.data
    splits = open_data(
        setup.data,
        val_fraction=config.val_fraction,
        train_split=config.train_split,
        val_split=config.val_split,
        strict=config.strict,
        masks=config.masks,
    )
    for role in ("train", "val"):
        split = splits[role]
        name = "" if split.split == role else f" ({split.split})"
        say(f"{role}{name}: {split.summary()}")
    if config.masks != "none":
        require_scorable(splits["val"])
    return splits


def _fingerprint(splits: Mapping[str, DetectionData]) -> str:
    """A hash of the annotations that a run uses: classes, file names and boxes; with masks also outlines and maps."""
    digest = hashlib.sha256()
    for role in ("train", "val"):
        split = splits[role]
        digest.update(repr((role, split.categories.to_dict())).encode())
        for image in split.images:
            objects = [(thing.category_id, thing.box, thing.crowd) for thing in image.objects]
            digest.update(repr((image.id, split.file_name(image), objects)).encode())
        if split.masks != "none":
            for image, map_hash in zip(split.images, map_hashes(split.images), strict=True):
                outlines = [(thing.segmentation, thing.segment) for thing in image.objects]
                digest.update(repr((outlines, map_hash)).encode())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- model


def _random_task(preset: Preset, categories: Categories) -> Task:
    """Build the task and its model with random weights of the recipe's seed. The global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.recipe.seed)
        return build_task(preset, build_model(preset, len(categories)), len(categories))


def _initial_task(preset: Preset, origin: str | Path, categories: Categories, say: Say) -> Task:
    """Build the task, load the initial weights into its model, and report one line about them."""
    task = _random_task(preset, categories)
    if origin == NOTHING:
        say("weights: none, so the whole backbone is trained, with batch norm and the full learning rate")
    say(load_start(task.model, origin, preset, categories))
    return task


# ----------------------------------------------------------------------------------------------------------------- run


def _unused_folder(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2, ... that does not exist."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _require_empty(folder: Path) -> None:
    """Raise ConfigError if `folder` cannot become a run folder."""
    if folder.is_dir() and (folder / CONFIG_FILE).exists():
        raise ConfigError(f"{folder}: holds a run already; go on with --resume {folder}, or choose another folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; choose another one for the run")


def _trainer(
    setup: Setup,
    task: Task,
    splits: Mapping[str, DetectionData],
    folder: Path,
    device: torch.device,
) -> Trainer:
    """Build the trainer. It writes nothing before it starts."""
    preset, categories, val = setup.preset, splits["train"].categories, splits["val"]
    # Evaluations are rare, so a cache of images would not make them faster.
    uncached = replace(preset, data=replace(preset.data, cache="none"))
    card = ModelCard(to_dict(preset), categories, {"data": setup.data.name, "weights": Path(setup.weights).name})
    chosen = _images_to_draw(val.images)

    def predictor(trained: nn.Module) -> Predictor:
        return Predictor(trained.model, uncached, categories, device=str(device))  # type: ignore[arg-type]

    def evaluate(trained: nn.Module) -> dict[str, Any]:
        metrics = predictor(trained).evaluate(val, batch_size=preset.recipe.batch_size).named_metrics
        return {name: value for name, value in metrics.items() if value is not None}

    def save(path: Path, trained: nn.Module) -> None:
        save_weights(path, trained.model, card)  # type: ignore[arg-type]

    def draw(trained: nn.Module) -> Iterator[tuple[str, Image.Image]]:
        for record, image in compare(predictor(trained), val, chosen):
            yield f"{record.id}-{record.path.stem}", image

    recipe = replace(preset.recipe, best_by=best_by(preset, val))
    with together():
        progress = Progress(metric=recipe.best_by, headlines=preset.headlines(val))
        observers = [progress, MetricsFile(), MetricsTable(), Curves(), ValidationImages(draw), *_tensorboard(recipe)]
        loader = train_loader(
            splits["train"],
            preset.data,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
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


def _tensorboard(recipe: Recipe) -> list[Observer]:
    """The observer that writes TensorBoard files, if the recipe asks for it."""
    if not recipe.tensorboard:
        return []
    if not importlib.util.find_spec("tensorboard"):
        raise ConfigError("recipe.tensorboard: TensorBoard is not installed; `pip install opendetr[log]`")
    return [TensorBoard()]


def best_by(preset: Preset, val: DetectionData) -> str:
    """The metric that selects the best checkpoint. "auto" is the main metric of the model and the validation data.

    Raises:
        ConfigError: evaluation on the validation data does not compute this metric.
    """
    name, names = preset.recipe.best_by, preset.metrics(val)
    if name == "auto":
        return names[0]
    if name not in names:
        near = suggestions(name, names)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise SettingError(f"recipe.best_by: no metric of the validation data is called {name!r}; {hint}")
    return name


def _images_to_draw(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    """A few images that contain objects, evenly spread over the data."""
    candidates = [image for image in images if image.objects]
    step = max(1, len(candidates) // _NUM_IMAGES_DRAWN)
    return candidates[::step][:_NUM_IMAGES_DRAWN]
