"""A training run from start to end: `train` starts one, `resume` continues one.

A run folder contains `config.yaml` (every setting; `--config` reads it), `labels.png` (statistics of the dataset),
`metrics.jsonl`, `metrics.csv`, `curves.png`, `images/` (the first training batch and validation images), `report.html`
(the evaluation of the best weights) and the checkpoints `last` and `best`. `opendetr.load` opens the
`model.safetensors` of a checkpoint.

Several processes, started by a launcher such as torchrun, train as one. All of them execute these functions. Only the
main process writes files and prints.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, cast

import torch
from PIL import Image
from torch import nn

from opendetr.categories import Categories
from opendetr.config import ConfigError, SettingError, suggesting, suggestions, to_dict
from opendetr.data import (
    DataError,
    DetectionData,
    ImageRecord,
    TrainLoader,
    count_noun,
    map_hashes,
    require_folder,
    require_scorable,
    spread,
    train_loader,
)
from opendetr.distributed import from_main, is_main, join_processes, rank, together, world_size
from opendetr.evaluation import DETECTION_METRICS, describe_metric
from opendetr.inference import Predictor, compare
from opendetr.models import Detector
from opendetr.presets import Preset, build_model, build_task, get_preset, list_models, preset_from_dict
from opendetr.recipe import DEFAULT_MODEL, DEFAULT_PRETRAINING_MODEL
from opendetr.tasks import Task
from opendetr.training.automatic_model import AUTO, automatic_model
from opendetr.training.callbacks import Curves, MetricsFile, MetricsTable, Progress, ValidationImages
from opendetr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from opendetr.training.data_check import check_annotations
from opendetr.training.data_images import DataImages
from opendetr.training.diagnosis import FAILED_BELOW, diagnose_run
from opendetr.training.events import Callback
from opendetr.training.loggers import loggers
from opendetr.training.report import Report
from opendetr.training.run_state import RunState
from opendetr.training.settings import (
    ARGUMENTS,
    CONFIG_FILE,
    Setup,
    apply_changes,
    as_list,
    check_mask_settings,
    check_settings,
    fit_to_data,
    fit_to_memory,
    read_config,
    require_run,
    set_up,
    with_options,
    write_config,
)
from opendetr.training.starting_weights import NOTHING, PUBLISHED, is_path, load_start, predicts_classes, starting_point
from opendetr.training.thresholds import CurrentThresholds
from opendetr.training.trainer import RunResult, Trainer
from opendetr.weights import ModelCard, save_weights

_NUM_IMAGES_DRAWN = 4
_FEW_STEPS, _FEW_STEPS_FROM_DETECTOR = 200, 50  # runs of fewer steps learn next to nothing

# Whether `train` was called by `pretrain`, with a model that is trained on images without annotations.
_pretraining = ContextVar("_pretraining", default=False)
# When the time of a new run began, as a value of `time.perf_counter`; None for the call of `train`.
_beginning = ContextVar[float | None]("_beginning", default=None)

Say = Callable[[str], object]
_Arguments = ParamSpec("_Arguments")


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: the run folder; `opendetr.load(run.folder)` opens its best weights.
        data: the dataset folder.
        preset: the configuration of the model and its training.
        result: how it ended, and its metrics.
        failed: whether the run has learned nothing: it has ended, and its main metric stayed below 0.01. The main
            metric depends on the model and the data, such as AP. Another one can select the best weights.
    """

    folder: Path
    data: Path
    preset: Preset
    result: RunResult
    failed: bool = False


@contextmanager
def counting_from(began: float) -> Iterator[None]:
    """A context in which the time of a new run counts from `began`, a value of `time.perf_counter`.

    The command line counts from its start: to import torch takes seconds, or a minute on a slow machine.
    """
    token = _beginning.set(began)
    try:
        yield
    finally:
        _beginning.reset(token)


def _names_arguments(function: Callable[_Arguments, Run]) -> Callable[_Arguments, Run]:
    """Make errors about settings name the arguments that gave their values."""

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Run:
        try:
            return function(*args, **kwargs)
        except SettingError as error:
            given = {name for name, value in kwargs.items() if value not in (None, (), [])}
            raise error.naming({key: name for key, name in ARGUMENTS.items() if name in given}) from None

    return call


@suggesting
@_names_arguments
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
    accumulate: int | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    num_queries: int | None = None,
    augment: str | None = None,
    batch_pixels: int | None = None,
    val_fraction: float | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    workers: int | None = None,
    strict: bool = False,
    allow: str | Sequence[str] = (),
    precision: str | None = None,
    gradient_checkpointing: bool = False,
    freeze: str | Sequence[str] = (),
    freeze_detector: bool = False,
    ema: float | None = None,
    best_by: str | None = None,
    patience: int | None = None,
    log: str | Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    say: Say | None = None,
) -> Run:
    """Train a detector on a dataset.

    The arguments are the options of `opendetr train`. None and empty values keep the setting of `config`, or of the
    model. Ctrl-C and SIGTERM save a checkpoint and end the run.

    Args:
        data: a COCO, Pascal VOC or YOLO folder, a CSV table, or MOTChallenge videos. Classes and splits are read
            from it.
        model: a name of the catalogue. Default, or "auto": the model of `config` or of the weights; else, on a CUDA GPU
            with 8 GB or more, the best published model that fits into its memory, and otherwise the default model.
        weights: the initial weights. "published": the model's own, with classes matched by name; "imagenet": a
            pretrained backbone; "none": random weights, and the whole backbone is trained; or a run folder, a weights
            file, an address, or a name of the catalogue. Default: "published" if the model has published weights, else
            "imagenet" if its backbone has pretrained weights, else "none".
        out: the run folder. It must not exist or must be empty. Default: the first unused one of runs/MODEL,
            runs/MODEL-2, ...
        config: a YAML file of settings, for instance the config.yaml of another run.
        changes: further settings, as nested mappings or strings like "model.num_queries=50". The other arguments take
            precedence over them.
        epochs: length of the run in passes over the training images.
        max_steps: length of the run in optimizer steps, instead of `epochs`.
        time: length of the run in seconds or as a string ("30m"), instead of `epochs` and `max_steps`.
        batch_size: images per step, of all processes together.
        accumulate: number of micro-batches into which a step is divided, to save memory.
        lr: learning rate of all parts except the backbone. The backbone's rate is scaled by the same factor.
        image_size: short side of the images, in pixels.
        num_queries: number of queries, the maximum number of objects in an image. Learned queries of the weights are
            kept. Additional queries are noisy copies of them.
        augment: augmentation of the training images: "detr", "colour", "mosaic", "copy-paste" or "strong".
        batch_pixels: maximum number of pixels in a batch, padding included.
        val_fraction: fraction used for validation if the dataset has no validation split.
        train_split: the split to train on.
        val_split: the split to evaluate on.
        workers: number of processes that load images.
        strict: refuse faulty images and boxes instead of skipping them.
        allow: kinds of faults that stop training because the annotations probably do not mean what is read, and that
            shall not stop it, such as "normalised_boxes". The message of the error names the kind.
        precision: "auto", "fp32", "bf16" or "fp16".
        gradient_checkpointing: use less memory and more time; the results are the same.
        freeze: parts of the model that are not trained, such as "backbone".
        freeze_detector: train only a mask head around the trained detector that `weights` names, by default for
            25 epochs as in the paper. The default model is then this detector with a mask head.
        ema: decay of the exponential moving average of the weights, such as 0.999. The average is evaluated and saved.
        best_by: the metric that selects the best checkpoint, such as "AP50".
        patience: number of evaluations without a new best result after which the run ends.
        log: tools that log the run: "tensorboard", "wandb", "mlflow".
        seed: of the initialisation, the order of the data, the augmentation and dropout.
        device: "auto", "cpu", "cuda" or "mps".
        callbacks: receive the events of the run, in the main process only; see `Callback`.
        say: called with each line of output. Default: print to standard error.

    Raises:
        DataError, ConfigError, WeightsError, DeviceError: the arguments cannot be used. No file has been written.
        CheckpointError: the run folder cannot be written.
        NonFiniteError: a loss, or the output in an evaluation, is not finite. The last checkpoint is from an earlier
            step.
        ProcessError: another process of the run failed or ended.

    Example:
        >>> run = train("my-data", time="30m")
        >>> detector = opendetr.load(run.folder)
    """
    began = _beginning.get() or clock.perf_counter()
    own_device = join_processes(device)
    say = _in_main_process(say)
    data_settings = {
        "augment": augment,
        "batch_pixels": batch_pixels,
        "val_fraction": val_fraction,
        "train_split": train_split,
        "val_split": val_split,
        "num_workers": workers,
        "strict": strict or None,
        "allow": as_list(allow) or None,
    }
    recipe_settings = {
        "accumulate": accumulate,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing or None,
        "freeze": as_list(freeze) or None,
        "ema_decay": ema,
        "best_by": best_by,
        "patience": patience,
        "log": as_list(log) or None,
    }
    changes = with_options(changes, data=data_settings, recipe=recipe_settings)
    with together():
        require_folder(Path(data), "images" if _pretraining.get() else "images and annotations")
        if out is not None:
            _require_empty(Path(out))
        automatic = None
        if model in (None, AUTO):
            model = None
            if weights in (None, PUBLISHED) and config is None and not freeze_detector:
                automatic = automatic_model(own_device)
                model = None if automatic.name == DEFAULT_MODEL else automatic.name
                say(automatic.reason)
        setup, origin = set_up(Path(data), model, weights, config, freeze_detector=freeze_detector)
        if not (setup.preset.uses_annotations or _pretraining.get()):
            name = setup.preset.name
            raise SettingError(
                f"{name} is trained on images without annotations: opendetr pretrain IMAGES --model {name}"
            )
        setup = apply_changes(
            setup,
            changes,
            epochs=epochs,
            max_steps=max_steps,
            time=time,
            batch_size=batch_size,
            learning_rate=lr,
            image_size=image_size,
            num_queries=num_queries,
            seed=seed,
        )
        check_mask_settings(setup.preset, origin)
        splits = _open_splits(setup, say)
        categories = splits["train"].categories
        setup = replace(setup, predicts_classes=predicts_classes(origin, setup.preset, categories))
        setup = fit_to_data(setup, len(splits["train"]))
        if automatic is not None and automatic.images_at_once is not None:
            setup = fit_to_memory(setup, automatic.images_at_once * world_size())
        preset = setup.preset
        findings = check_annotations(preset, setup.data, splits) if preset.uses_annotations else []
        for line in (*findings, *check_settings(preset, splits)):
            say(line)
        task = _initial_task(preset, origin, categories, say)
    folder = from_main(_unused_folder(preset.name) if out is None else Path(out))
    trainer, loader = _trainer(setup, task, splits, folder, own_device, callbacks, say)
    trainer.state.seconds = clock.perf_counter() - began  # the time of a timed run includes this preparation
    if is_main():
        write_config(folder, setup, _fingerprint(splits))
    return _finish(setup, folder, trainer, loader, trainer.train(), splits["val"], say)


def pretrain(data: str | Path, *, model: str | None = None, **options: Any) -> Run:
    """Pre-train a detector on images without annotations.

    The model locates patches that are cut from the images. `train(..., weights=run.folder)` then trains a detector from
    its weights.

    Args:
        data: a folder of images, searched recursively; see `open_images`. Annotations are not read.
        model: a pre-training model of the catalogue. Default: the model of `config`, else "up-detr-tiny".
        options: the options of `train`, except those of masks and of annotated images: `augment`, `freeze_detector`.

    Raises:
        ConfigError: the model is trained on annotated images, or the arguments cannot be used.
        DataError, WeightsError, DeviceError, CheckpointError, NonFiniteError, ProcessError: as in `train`.

    Example:
        >>> run = pretrain("photos", time="2h")
        >>> run = train("my-data", weights=run.folder)
    """
    refused = next((name for name in ("augment", "freeze_detector") if options.get(name)), None)
    if refused is not None:
        raise SettingError(f"{refused}: applies to annotated images; leave it out")
    if model is None and options.get("config") is None:
        model = DEFAULT_PRETRAINING_MODEL
    name = model or read_config(Path(options["config"]))[0].get("name")
    if name is None or get_preset(str(name)).uses_annotations:
        known = " or ".join(name for name in list_models() if not get_preset(name).uses_annotations)
        raise SettingError(f"{name}: is trained on annotated images, by `opendetr train`; choose {known}")
    token = _pretraining.set(True)
    try:
        return train(data, model=model, **options)
    finally:
        _pretraining.reset(token)


@suggesting
def resume(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
    say: Say | None = None,
) -> Run:
    """Continue a run from its last checkpoint.

    On the same machine the result equals that of an uninterrupted run, bit for bit.

    Args:
        folder: the run folder, which may have been moved.
        data: the dataset folder, if it has been moved. The content must be the same as before.
        device: as in `train`. On another device than before, the result differs by rounding.
        callbacks: as in `train`. Give those of the interrupted run again.
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
                "start a new run with --config and this file"
            )
        setup = Setup(
            preset_from_dict(record),
            Path(about["data"] if data is None else data),
            str(about["weights"]),
            is_pretrained=bool(about.get("pretrained")),
            predicts_classes=bool(about.get("predicts_classes")),
        )
        preset = setup.preset
        _say_if_ended(folder, setup, say)
        _require_data(folder, setup, is_given=data is not None)
        splits = _open_splits(setup, say)
        if _fingerprint(splits) != about["fingerprint"]:
            raise DataError(
                f"{setup.data}: the data has changed since the run started; start a new run from its weights: "
                f"opendetr {_command(setup)} {setup.data} --weights {folder}"
            )
        categories = splits["train"].categories
        has_checkpoint = find_checkpoint(folder / "last") is not None
        if has_checkpoint:
            task = _random_task(preset, categories)
        else:
            say("the run has no checkpoint yet: it starts again")
            task = _initial_task(preset, starting_point(preset.name, setup.weights), categories, say)
    if data is not None and is_main():
        write_config(folder, setup, about["fingerprint"])
    trainer, loader = _trainer(setup, task, splits, folder, own_device, callbacks, say)
    return _finish(setup, folder, trainer, loader, trainer.train(resume=has_checkpoint), splits["val"], say)


def has_ended(folder: str | Path) -> bool:
    """Whether `folder` is a run that has taken all its steps and made its last evaluation."""
    if not (Path(folder) / CONFIG_FILE).is_file():
        return False
    record, _ = read_config(Path(folder) / CONFIG_FILE)
    state = _state_of(Path(folder))
    return state is not None and _is_over(state, preset_from_dict(record))


def _state_of(folder: Path) -> RunState | None:
    """The state in the last checkpoint of a run; None if it cannot be read."""
    try:
        return RunState.from_facts(load_checkpoint(folder / "last").facts)
    except CheckpointError:
        return None


def _is_over(state: RunState, preset: Preset) -> bool:
    return state.is_finished(preset.recipe.patience) and not state.is_evaluation_due


def _require_data(folder: Path, setup: Setup, *, is_given: bool) -> None:
    """Raise DataError if the dataset of a run is not where it was, with the command that names its new place."""
    if not is_given and not setup.data.exists():
        raise DataError(
            f"{setup.data}: no such folder, the dataset of the run; if it has been moved, continue with "
            f"`opendetr {_command(setup)} NEW_FOLDER --resume {folder}`"
        )


def _say_if_ended(folder: Path, setup: Setup, say: Say) -> None:
    """Say that a run has nothing left to do, and how to train longer, before its data is read."""
    state = _state_of(folder)
    if state is not None and _is_over(state, setup.preset):  # otherwise the trainer reports an unreadable checkpoint
        say(
            f"the run had already ended after {count_noun(state.step, 'step')}; to train longer, start from its "
            f"weights: opendetr {_command(setup)} {setup.data} --weights {folder}"
        )


def _command(setup: Setup) -> str:
    """The command that starts and resumes such a run."""
    return "train" if setup.preset.uses_annotations else "pretrain"


def _in_main_process(say: Say | None) -> Say:
    """The function that receives lines of output: `say`, or printing to standard error. Other processes ignore them."""
    if not is_main():
        return lambda _line: None
    return say or _print_to_stderr


def _print_to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------- data


def _open_splits(setup: Setup, say: Say) -> dict[str, DetectionData]:
    """Open the splits "train" and "val" of the data, and report one line about each."""
    config = setup.preset.data
    splits = config.open_splits(setup.data)
    for role in ("train", "val"):
        split = splits[role]
        name = "" if split.split == role else f" ({split.split})"
        say(f"{role}{name}: {split.summary()}")
    if config.masks != "none":
        require_scorable(splits["val"])
    return splits


def _fingerprint(splits: Mapping[str, DetectionData]) -> str:
    """A hash of the annotations that a run uses: classes, file names, boxes, captions, tracks, outlines and maps."""
    digest = hashlib.sha256()
    for role in ("train", "val"):
        split = splits[role]
        digest.update(repr((role, split.categories.to_dict())).encode())
        for image in split.images:
            objects = [(obj.category_id, obj.box, obj.crowd) for obj in image.objects]
            digest.update(repr((image.id, _portable_name(split, image), objects)).encode())
            extras = [sorted(image.extras.items()), *(sorted(obj.extras.items()) for obj in image.objects)]
            if any(extras):
                digest.update(repr(extras).encode())
        if split.masks != "none":
            for image, map_hash in zip(split.images, map_hashes(split.images), strict=True):
                outlines = [(obj.segmentation, obj.segment) for obj in image.objects]
                digest.update(repr((outlines, map_hash)).encode())
    return digest.hexdigest()


def _portable_name(split: DetectionData, image: ImageRecord) -> str:
    """The name of an image in its dataset; of an image outside the folder, that of the file: either may be moved."""
    name = split.file_name(image)
    return Path(name).name if Path(name).is_absolute() else name


# --------------------------------------------------------------------------------------------------------------- model


def _random_task(preset: Preset, categories: Categories) -> Task:
    """Build the task and its model with random weights of the recipe's seed. The global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(preset.recipe.seed)
        count = preset.num_classes(categories)
        return build_task(preset, build_model(preset, count), count)


def _initial_task(preset: Preset, origin: str | Path, categories: Categories, say: Say) -> Task:
    """Build the task, load the initial weights into its model, and report one line about them."""
    task = _random_task(preset, categories)
    if origin == NOTHING:
        say("weights: none, so the whole backbone is trained, with batch norm and the full learning rate")
    say(load_start(task.model, origin, preset, categories))
    return task


# ----------------------------------------------------------------------------------------------------------------- run


def _name(setup: Setup) -> str:
    """The initial weights of a run without the folder they are in."""
    return Path(setup.weights).resolve().name if is_path(setup.weights) else setup.weights


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
        raise ConfigError(f"{folder}: holds a run already; continue with --resume {folder}, or choose another folder")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not an empty folder; choose another one for the run")


def _trainer(
    setup: Setup,
    task: Task,
    splits: Mapping[str, DetectionData],
    folder: Path,
    device: torch.device,
    user_callbacks: Sequence[Callback],
    say: Say,
) -> tuple[Trainer, TrainLoader]:
    """Build the trainer and its loader. The trainer writes nothing before it starts."""
    preset, categories, val = setup.preset, splits["train"].categories, splits["val"]
    # Evaluations are rare, so a cache of images would not make them faster.
    uncached = replace(preset, data=replace(preset.data, cache="none"))
    card = ModelCard(to_dict(preset), categories, {"data": setup.data.resolve().name, "weights": _name(setup)})
    drawn, thresholds = _images_to_draw(val.images), CurrentThresholds()
    report = Report(preset.name, splits, CONFIG_FILE, say)
    logged: set[str] = set()  # an unreadable image is logged in the first evaluation only

    def predictor(trained: nn.Module) -> Predictor:
        best, fitted = thresholds.current, thresholds.preset or uncached
        return Predictor(_model_of(trained), fitted, categories, device=str(device), thresholds=best)

    def evaluate(trained: nn.Module, num_images: int | None = None) -> dict[str, Any]:
        loader.gather_skipped()  # reports skipped images during the run
        with together():
            fitted = uncached.fitted(_model_of(trained), splits["train"], num_images)
        thresholds.preset = from_main(fitted)
        data = val if num_images is None else preset.data.evaluation_subset(val, num_images)
        evaluator = preset.evaluator(categories, data)
        seconds, unreadable = predictor(trained).run(
            evaluator,
            data,
            batch_size=preset.recipe.batch_size,
            progress=progress.show_evaluation,
            logged=logged,
        )
        thresholds.current = evaluator.score_thresholds()
        scores = evaluator.evaluation(seconds, unreadable)
        report.latest = scores, data
        return {name: value for name, value in scores.named_metrics.items() if value is not None}

    def save(path: Path, trained: nn.Module) -> None:
        config = to_dict(preset if thresholds.preset is None else replace(thresholds.preset, data=preset.data))
        described = replace(card, config=config, thresholds=thresholds.current)
        save_weights(path, _model_of(trained), described)

    def draw(trained: nn.Module) -> Iterator[tuple[str, Image.Image]]:
        for record, image in compare(predictor(trained), val, drawn):
            yield f"{record.id}-{record.path.stem}", image

    recipe = replace(preset.recipe, best_by=best_by(preset, val))
    with together():
        headlines = preset.headlines(val)
        few_steps = _FEW_STEPS_FROM_DETECTOR if setup.starts_from_detector else _FEW_STEPS
        progress = Progress(metric=recipe.best_by, headline_metrics=headlines, few_steps=few_steps)
        drawings = (Curves(tuple(dict.fromkeys((recipe.best_by, *headlines)))), DataImages(splits))
        callbacks: list[Callback] = [thresholds, progress, MetricsFile(), MetricsTable(), *drawings]
        if preset.draws_predictions:
            callbacks.append(ValidationImages(draw))
        callbacks.append(report)
        callbacks += [*loggers(recipe.log), *user_callbacks]
        loader = train_loader(
            splits["train"],
            preset.data,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            share=(rank(), world_size()),
            device=device,
        )
    with together():
        trainer = Trainer(
            task,
            loader,
            recipe,
            folder,
            evaluate=evaluate if preset.metrics(val) else None,
            num_images=len(val),
            evaluate_start=setup.predicts_classes and not preset.freeze_detector,
            curriculum=preset.data,
            save_model=save,
            callbacks=callbacks,
            device=str(device),
        )
    return trainer, loader


def _model_of(trained: nn.Module) -> Detector:
    """The model of a task."""
    return cast(Task, trained).model


def _finish(
    setup: Setup,
    folder: Path,
    trainer: Trainer,
    loader: TrainLoader,
    result: RunResult,
    val: DetectionData,
    say: Say,
) -> Run:
    """Report skipped images, and the probable causes if the run has learned nothing. Returns the run.

    For an interrupted run, say how to continue it.
    """
    run = Run(folder, setup.data, setup.preset, result)
    if result.interrupted:  # no more work: the process that started this one kills it after a while
        steps, command = count_noun(result.step, "step"), f"opendetr {_command(setup)} --resume {folder}"
        say(f"error: interrupted after {steps}, and saved; continue with `{command}`")
        return run
    loader.gather_skipped()
    main = next(iter(setup.preset.metrics(val)), None)
    if main is None or any((metrics.get(main) or 0.0) >= FAILED_BELOW for metrics in (result.best, result.metrics)):
        return run
    if not is_main():
        return replace(run, failed=True)
    lines = diagnose_run(folder, device=str(trainer.device))
    for line in lines:
        say(line)
    return replace(run, failed=bool(lines))  # no lines: an evaluation between the best and the last one was better


def best_by(preset: Preset, val: DetectionData) -> str:
    """The metric that selects the best checkpoint. "auto" is the main metric of the model and the validation data.

    Raises:
        ConfigError: evaluation on the validation data does not compute this metric.
    """
    name, names = preset.recipe.best_by, preset.metrics(val)
    if not names:  # a model that is not evaluated
        return name
    if name == "auto":
        return names[0]
    if name not in names:
        near = suggestions(name, names)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        text = f"no metric of the validation data is called {name!r}; {hint}"
        if "AP" in names and name.removeprefix("mask_") in DETECTION_METRICS:
            meaning = describe_metric(name)
            text = f"{name} ({meaning}) cannot be computed from this data with this model; choose {names[0]} or another"
        raise SettingError(text, setting="recipe.best_by")
    return name


def _images_to_draw(images: Sequence[ImageRecord]) -> list[ImageRecord]:
    """A few images with objects, evenly spread over the data."""
    return spread([image for image in images if image.objects], _NUM_IMAGES_DRAWN)
