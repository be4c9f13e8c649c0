"""The events of a training run, and the base class of callbacks that receive them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from opendetr.recipe import Recipe
from opendetr.structures import Batch
from opendetr.training.schedule import Evaluations, Plan

Outcome = Literal["finished", "early", "interrupted", "failed"]


class Callback:
    """Receives the events of a training run. A subclass overrides methods. It must not change the run."""

    def on_start(self, event: RunStarted) -> None:
        """Called before the first step of a new or resumed run."""

    def on_plan(self, event: PlanFixed) -> None:
        """Called when the length of a timed run is known or has changed."""

    def on_batch(self, event: BatchLoaded) -> None:
        """Called before each optimizer step, with the batch of this process. Do not keep the batch: it is large."""

    def on_step(self, event: StepTaken) -> None:
        """Called after each optimizer step."""

    def on_epoch(self, event: EpochEnded) -> None:
        """Called after each pass over the data."""

    def on_evaluation(self, event: Evaluated) -> None:
        """Called after each evaluation."""

    def on_report(self, event: ReportDue) -> None:
        """Called after the first and after the last evaluation, and after others if enough time has passed.

        For what takes longer than the other work after an evaluation. A timed run plans the time of the last call.
        """

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        """Called after each complete checkpoint."""

    def on_nonfinite(self, event: NonFiniteFound) -> None:
        """Called when a loss or a gradient is not finite, before the run stops."""

    def on_end(self, event: RunEnded) -> None:
        """Called at the end of the run, also after an error."""


@dataclass(frozen=True)
class RunStarted:
    """The start of a run.

    Attributes:
        folder: the run folder.
        step: number of steps already taken; above 0 in a resumed run.
        steps_per_epoch: steps per pass over the data.
        total_steps: steps of the whole run; None while a timed run is not planned yet.
        device: the device of the run, and the number of processes if there are several.
        evaluated: number of steps before the latest evaluation; 0 without one.
        metrics: metrics of that evaluation.
        notes: messages for the user, one line each.
    """

    folder: Path
    step: int
    steps_per_epoch: int
    total_steps: int | None
    device: str
    evaluated: int
    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_start(self)


@dataclass(frozen=True)
class PlanFixed:
    """The plan of a run: at its start, or, for a timed run, when it is first made or changes noticeably.

    Attributes:
        step: number of steps taken.
        plan: the length of the run and the settings that depend on it.
        evaluations: number and size of the evaluations.
        num_images: number of validation images.
        recipe: the settings of the run.
        step_seconds: recent mean duration of a step, including the wait for its batch; None if the length of the run is
            not a time.
    """

    step: int
    plan: Plan
    evaluations: Evaluations
    num_images: int
    recipe: Recipe
    step_seconds: float | None

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_plan(self)


@dataclass(frozen=True)
class BatchLoaded:
    """The batch of the next optimizer step.

    Attributes:
        step: number of steps taken before.
        batch: the images of this process and their targets, after the augmentation.
    """

    step: int
    batch: Batch

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_batch(self)


@dataclass(frozen=True)
class StepTaken:
    """An optimizer step.

    Attributes:
        step: number of steps taken, including this one.
        epoch: number of complete passes over the data before this step.
        total_steps: steps of the whole run; None while a timed run is not planned yet.
        loss: the weighted sum of the losses over the whole batch, which training minimises.
        losses: unweighted losses by name, one value per decoder layer, the final layer last.
        learning_rate: of all parts except the backbone.
        gradient_norm: over all parameters, before clipping; not finite if fp16 overflowed and the step was skipped.
        num_images: number of images in the batch, of all processes.
        seconds: duration of the step, including the wait for its batch.
        data_seconds: duration of the wait for the batch.
    """

    step: int
    epoch: int
    total_steps: int | None
    loss: float
    losses: Mapping[str, tuple[float, ...]]
    learning_rate: float
    gradient_norm: float
    num_images: int
    seconds: float
    data_seconds: float

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_step(self)


@dataclass(frozen=True)
class EpochEnded:
    """The end of a pass over the data.

    Attributes:
        epoch: number of passes over the data, including this one.
        step: number of steps taken.
    """

    epoch: int
    step: int

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_epoch(self)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation.

    Attributes:
        step: number of steps taken.
        epoch: number of passes over the data; a fraction within an epoch.
        metrics: the metrics by name.
        best: whether this is the best evaluation so far.
        images: number of validation images that were used; None for all.
        seconds: duration of the evaluation.
        task: the task with the deployed weights, in evaluation mode.
    """

    step: int
    epoch: float
    metrics: Mapping[str, Any]
    best: bool
    images: int | None
    seconds: float
    task: nn.Module

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_evaluation(self)


@dataclass(frozen=True)
class ReportDue:
    """Time for a report on the best evaluation so far.

    Attributes:
        step: number of steps taken.
    """

    step: int

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_report(self)


@dataclass(frozen=True)
class CheckpointSaved:
    """A saved checkpoint.

    Attributes:
        step: number of steps taken.
        folder: folder of the checkpoint.
        seconds: duration of saving it.
    """

    step: int
    folder: Path
    seconds: float

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_checkpoint(self)


@dataclass(frozen=True)
class NonFiniteFound:
    """A loss or a gradient that is not finite.

    Attributes:
        step: number of steps taken before this one.
        loss: the weighted sum of the losses.
        gradient_norm: over all parameters.
        names: names of the images in the batch, of all processes.
    """

    step: int
    loss: float
    gradient_norm: float
    names: tuple[str, ...]

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_nonfinite(self)


@dataclass(frozen=True)
class RunEnded:
    """The end of a run.

    Attributes:
        step: number of steps taken.
        outcome: "finished", "early" (`recipe.patience` evaluations without a new best result), "interrupted" (by a
            signal, after saving) or "failed" (by an error).
        seconds: training time, including the time before the run was resumed.
    """

    step: int
    outcome: Outcome
    seconds: float

    def notify(self, callback: Callback) -> None:
        """Call the callback's method for this event."""
        callback.on_end(self)


Event = (
    RunStarted
    | PlanFixed
    | BatchLoaded
    | StepTaken
    | EpochEnded
    | Evaluated
    | ReportDue
    | CheckpointSaved
    | NonFiniteFound
    | RunEnded
)
