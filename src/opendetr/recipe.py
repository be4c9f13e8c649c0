"""The settings of a training run: optimiser, schedule, length and seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimiser, schedule, length and seed of a training run; the defaults are DETR's.

    Attributes:
        learning_rate: AdamW's rate for everything outside the backbone.
        backbone_learning_rate: the rate of the backbone and of learned positions.
        sampling_rate_factor: the rate of what decides where deformable attention looks, as a share of `learning_rate`.
        weight_decay: AdamW's decoupled weight decay.
        decay_norms_and_biases: decay vectors (norms, biases) as well as matrices, as published.
        clip_norm: the gradient of a step is scaled down to this total norm; 0 leaves it as it is.
        batch_size: images of an optimiser step.
        accumulate: micro-batches that a step's batch is split into, computed one after another to save memory. The
            losses are normalised over the whole batch, so this changes nothing but memory and time.
        epochs: length of the run in passes over the data, unless `max_steps` or `time` is given.
        max_steps: length of the run in steps.
        time: length of the run in seconds. The speed is measured first, then the number of steps is planned; it is
            corrected after an evaluation when the speed has changed.
        schedule: "step" multiplies the rate by 0.1 once, "cosine" lowers it along half a cosine.
        step_at: share of the run after which the step comes.
        floor: share of the full rate at which the cosine ends.
        warmup_steps: steps over which the rate first rises linearly; None for a tenth of the run, 200 at most.
        precision: "bf16" runs the model under autocast, "auto" does where the device computes bfloat16 itself; "fp16",
            for CUDA GPUs without it, scales the loss and skips the steps in which a gradient overflows.
        gradient_checkpointing: compute the insides of repeated blocks twice instead of keeping them: the same numbers
            in less memory and more time.
        freeze: parts of the model that stay as they are, such as "backbone" or "encoder.layers.0".
        ema_decay: decay of the moving average of the weights, which is then what is evaluated and deployed; 0 for none,
            None for an average over about the last twentieth of the run.
        num_evaluations: evaluations, spread evenly over the run; the last one is at its end. None for at most ten, as
            many as take a tenth of the run; where that would be fewer than three, all but the last use a part of the
            images.
        best_by: the score of which the best checkpoint has most: "AP", "AP50", ..., or "AP/" and the name of a class;
            "auto" is PQ where maps are scored, mask_AP where masks are, else AP.
        patience: the run ends when so many evaluations in a row were not the best so far; 0 for never.
        save_every: seconds between checkpoints; every evaluation makes one too.
        tensorboard: write what TensorBoard reads into the run folder, too.
        fit_to_data: epochs, batch size and learning rate follow from the number of training images, unless they are
            given; see `training.settings.fit_to_data`.
        seed: of the data's order, the augmentation and dropout.

    Raises:
        ValueError: a field is out of its range.
    """

    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    sampling_rate_factor: float = 1.0
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
    tensorboard: bool = False
    fit_to_data: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "epochs"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("num_evaluations", self.num_evaluations is None or self.num_evaluations >= 1, "at least 1")
        rates = ("learning_rate", "backbone_learning_rate", "weight_decay", "clip_norm")
        for name in (*rates, "patience", "seed"):
            self._expect(name, getattr(self, name) >= 0, "at least 0")
        self._expect("warmup_steps", self.warmup_steps is None or self.warmup_steps >= 0, "at least 0")
        for name in ("step_at", "floor", "sampling_rate_factor"):
            self._expect(name, 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        self._expect("ema_decay", self.ema_decay is None or 0 <= self.ema_decay < 1, "0 for none, or a decay below 1")
        self._expect("save_every", self.save_every >= 0, "at least 0 seconds")
        self._expect("time", self.time is None or self.time > 0, "seconds above 0")
        self._expect("schedule", self.schedule in ("step", "cosine"), "step or cosine")
        self._expect("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1")
        self._expect("time", self.time is None or self.max_steps is None, "none beside max_steps")
        self._expect("precision", self.precision in ("auto", "fp32", "bf16", "fp16"), "auto, fp32, bf16 or fp16")
        self._expect("accumulate", self.accumulate <= self.batch_size, f"at most the {self.batch_size} of batch_size")

    def _expect(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ValueError(f"recipe.{name}: expected {expected}, got {getattr(self, name)!r}")


def parse_duration(text: str) -> float:
    """Seconds of "90", "45s", "30m", "1.5h", "2d" or a sequence such as "1h30m". Raises ValueError on anything else."""
    pieces = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    whole = re.fullmatch(r"\d+(\.\d+)?|(\d+(\.\d+)?\s*[smhd]\s*)+", text.strip().lower())
    seconds = sum(float(number) * _SECONDS[unit or "s"] for number, unit in pieces)
    if not whole or seconds <= 0:
        raise ValueError(f"{text!r} is no length of time; write it like 45s, 30m, 1.5h or 1h30m")
    return seconds
