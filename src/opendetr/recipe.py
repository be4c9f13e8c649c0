"""The settings of a training run: optimizer, schedule, length and seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

DEFAULT_MODEL = "deformable-detr-tiny"  # used for training and prediction if no model is named
DEFAULT_PRETRAINING_MODEL = "up-detr-tiny"  # likewise, for pre-training
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, schedule, length and seed of a training run; the defaults are DETR's.

    Attributes:
        learning_rate: learning rate of all parameters outside the backbone.
        backbone_learning_rate: learning rate of the backbone and of learned position encodings.
        text_learning_rate: learning rate of a text encoder, which has a schedule of its own: a linear warm-up over the
            first 1 % of the steps, then a linear decay to 0.
        sampling_rate_factor: learning rate of the sampling points of deformable attention, as a fraction of
            `learning_rate`.
        optimizer: "adamw", or "sgd" with momentum, which convolutional detectors use.
        momentum: momentum of SGD.
        weight_decay: weight decay; that of AdamW is decoupled from the gradient.
        decay_norms_and_biases: apply weight decay to norms and biases as well as to matrices, as published.
        clip_norm: maximum norm of the gradient over all parameters; 0 does not clip.
        batch_size: images per optimizer step.
        accumulate: number of micro-batches that the batch of a step is split into, to save memory. The losses are
            normalised over the whole batch, so only memory and time change.
        epochs: length of the run in passes over the data, unless `max_steps` or `time` is given.
        max_steps: length of the run in steps.
        time: length of the run in seconds. The number of steps is planned after the speed has been measured, and
            corrected if the speed changes.
        schedule: "step" multiplies the learning rate by 0.1 once; "cosine" lowers it along half a cosine.
        step_at: fraction of the run at which the "step" schedule lowers the learning rate.
        floor: final learning rate of the "cosine" schedule, as a fraction of the full one.
        warmup_steps: number of steps over which the learning rate first rises linearly; None for a tenth of the run, at
            most 200.
        precision: "bf16" runs the model under autocast; "auto" does so if the device supports bfloat16 in hardware;
            "fp16", for CUDA GPUs without bfloat16, scales the loss and skips steps in which a gradient overflows.
        gradient_checkpointing: recompute the activations of repeated blocks in the backward pass instead of storing
            them. The results are the same, with less memory and more time.
        freeze: parts of the model that are not trained, such as "backbone" or "encoder.layers.0".
        ema_decay: decay of the exponential moving average of the weights, which is then evaluated and deployed; 0 for
            no average, None for an average over about a twentieth of the run.
        num_evaluations: number of evaluations, spread evenly over the run; the last one is at the end. None for as many
            as take a tenth of the run, at most ten. If these were fewer than three, all but the last use only some of
            the validation images.
        best_by: the metric that selects the best checkpoint: "AP", "AP50", ..., or "AP/" and the name of a class.
            "auto" is PQ if panoptic maps are evaluated, mask_AP if masks are, otherwise AP.
        patience: stop the run after this number of evaluations in a row without a new best; 0 never stops it.
        save_every: seconds between checkpoints. Every evaluation also writes one.
        log: where losses and metrics are logged in addition to the run folder: "tensorboard", "wandb", "mlflow".
        fit_to_data: set epochs, batch size and learning rate from the number of training images, except those that are
            given; see `training.settings.fit_to_data`.
        seed: seed of the order of the data, the augmentation and dropout.

    Raises:
        ValueError: a field is out of its range.
    """

    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    text_learning_rate: float = 5e-5
    sampling_rate_factor: float = 1.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms_and_biases: bool = True
    clip_norm: float = 0.1
    batch_size: int = 2
    accumulate: int = 1
    epochs: int = 300
    max_steps: int | None = None
    time: float | None = None
    schedule: Literal["step", "cosine"] = "step"
    step_at: float = 2 / 3
    floor: float = 0.0
    warmup_steps: int | None = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = 0.0
    num_evaluations: int | None = None
    best_by: str = "AP"
    patience: int = 0
    save_every: float = 300.0
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    fit_to_data: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "epochs"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("num_evaluations", self.num_evaluations is None or self.num_evaluations >= 1, "at least 1")
        rates = ("learning_rate", "backbone_learning_rate", "weight_decay", "clip_norm")
        for name in (*rates, "patience", "seed"):
            self._expect(name, getattr(self, name) >= 0, "at least 0")
            self._expect(name, getattr(self, name) < math.inf, "a finite number")
        self._expect("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "at least 0")
        for name in ("step_at", "floor", "sampling_rate_factor"):
            self._expect(name, 0 <= getattr(self, name) <= 1, "a fraction from 0 to 1")
        self._expect("ema_decay", self.ema_decay is None or 0 <= self.ema_decay < 1, "0 for none, or a decay below 1")
        self._expect("save_every", self.save_every >= 0, "at least 0 seconds")
        self._expect("time", self.time is None or self.time > 0, "seconds above 0")
        self._expect("optimizer", self.optimizer in ("adamw", "sgd"), "adamw or sgd")
        self._expect("momentum", 0 <= self.momentum < 1, "a fraction from 0 to below 1")
        self._expect("schedule", self.schedule in ("step", "cosine"), "step or cosine")
        self._expect("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1")
        self._expect("time", self.time is None or self.max_steps is None, "no time together with max_steps")
        self._expect("precision", self.precision in ("auto", "fp32", "bf16", "fp16"), "auto, fp32, bf16 or fp16")
        self._expect("log", set(self.log) <= {"tensorboard", "wandb", "mlflow"}, "tensorboard, wandb or mlflow")
        self._expect("accumulate", self.accumulate <= self.batch_size, f"at most the batch size, {self.batch_size}")

    def _expect(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ValueError(f"recipe.{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class ParameterRate:
    """The learning rate of some parameters of a module, if it is not `Recipe.learning_rate`.

    A module declares its rates in the attribute `parameter_rates`, a tuple. The first one that applies to a parameter
    counts; those of an outer module come first.

    Attributes:
        names: names of submodules or parameters at any depth, such as "backbone". The rate applies to all parameters in
            them.
        rate: the learning rate before the schedule, computed from the recipe.
        schedule: the factor of the learning rate in a step. Its arguments are the number of steps before this one, and
            that of the whole run, or None while a timed run is not planned yet. By default the schedule of the recipe.
    """

    names: frozenset[str]
    rate: Callable[[Recipe], float]
    schedule: Callable[[int, int | None], float] | None = None


@dataclass(frozen=True)
class LinearSchedule:
    """A schedule of a `ParameterRate`: linear warm-up from 0, then linear decay to 0 at the end of the run.

    Until a timed run is planned, the factor is 0.

    Attributes:
        warmup: fraction of the run with the warm-up.
    """

    warmup: float = 0.01

    def __call__(self, step: int, total_steps: int | None) -> float:
        """The factor of the learning rate; see `ParameterRate.schedule`."""
        if total_steps is None:
            return 0.0
        warmup_steps = round(self.warmup * total_steps)
        if step < warmup_steps:
            return step / warmup_steps
        return max(0.0, (total_steps - step) / max(total_steps - warmup_steps, 1))


def parse_duration(text: str) -> float:
    """Parse a duration: "45s", "30m", "1.5h", "2d", or a sequence such as "1h30m"; returns seconds.

    Raises ValueError for anything else, for a number without a unit, and for a duration of 0.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
        raise ValueError(f"{text!r} has no unit; write {text}s for seconds, {text}m for minutes or {text}h for hours")
    pieces = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text.lower())
    match = re.fullmatch(r"(\d+(\.\d+)?\s*[smhd]\s*)+", text.lower())
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in pieces)
    if not match or seconds <= 0:
        raise ValueError(f"{text!r} is not a duration; write it like 45s, 30m, 1.5h or 1h30m")
    return seconds
