"""What a training run tells about itself, and the observer that listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from opendetr.recipe import Recipe
from opendetr.training.schedule import Evaluations, Plan

Outcome = Literal["finished", "early", "interrupted", "failed"]


class Observer:
    """Listens to a training run; a subclass overrides what it wants to hear. It must leave the run as it is."""

    def on_start(self, event: RunStarted) -> None:
        """The run, new or resumed, is about to take its first step."""

    def on_plan(self, event: PlanFixed) -> None:
        """The length of a timed run is known, or has changed."""

    def on_step(self, event: StepTaken) -> None:
        """An optimiser step has been taken."""

    def on_epoch(self, event: EpochEnded) -> None:
        """The data has been passed once more."""

    def on_evaluation(self, event: Evaluated) -> None:
        """The deployed weights have been evaluated."""

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        """A checkpoint lies whole on disk."""

    def on_nonfinite(self, event: NonFiniteFound) -> None:
        """A loss or a gradient was not finite; the run stops."""

    def on_end(self, event: RunEnded) -> None:
        """The run is over, whatever the reason."""


@dataclass(frozen=True)
class RunStarted:
    """The start of a run.

    Attributes:
        folder: the run folder.
        step: steps already taken; above 0 in a resumed run.
        steps_per_epoch: steps of a pass over the data.
        total_steps: steps of the whole run; None while a timed run does not know it.
        device: where it computes.
        evaluated: number of steps after which the latest evaluation was made, 0 before the first.
        metrics: of that evaluation.
        notes: what the user should know, a line each.
    """

    folder: Path
    step: int
    steps_per_epoch: int
    total_steps: int | None
    device: str
    evaluated: int
    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_start(self)


@dataclass(frozen=True)
class PlanFixed:
    """The length of a timed run, known for the first time or corrected.

    Attributes:
        step: steps taken so far.
        plan: the run's length from now on.
        evaluations: how often the run is evaluated.
        num_images: validation images in all.
        recipe: settings of the run.
        step_seconds: measured of late, loading the data included; None for a run whose length is not a time.
    """

    step: int
    plan: Plan
    evaluations: Evaluations
    num_images: int
    recipe: Recipe
    step_seconds: float | None

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_plan(self)


@dataclass(frozen=True)
class StepTaken:
    """One optimiser step.

    Attributes:
        step: steps taken, this one included.
        epoch: passes over the data before this one.
        total_steps: steps of the whole run; None while a timed run does not know it.
        loss: the weighted sum that training lowers, over the whole batch.
        losses: unweighted losses by name, a value for each decoder layer, the last one the final layer's.
        learning_rate: outside the backbone.
        gradient_norm: over all parameters, before clipping; not finite where fp16 overflowed and the step was skipped.
        num_images: in the step's batch.
        seconds: from waiting for the batch to the end of the step.
        data_seconds: the part of it that was spent waiting for the batch.
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

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_step(self)


@dataclass(frozen=True)
class EpochEnded:
    """The end of a pass over the data.

    Attributes:
        epoch: passes over the data, this one included.
        step: steps taken.
    """

    epoch: int
    step: int

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_epoch(self)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation.

    Attributes:
        step: steps taken.
        epoch: passes over the data, a started one as its share.
        metrics: what the evaluation returned.
        best: whether this is the best one so far.
        images: validation images that were used; None for all.
        seconds: that it took.
        task: the task with the deployed weights, in evaluation mode.
    """

    step: int
    epoch: float
    metrics: Mapping[str, Any]
    best: bool
    images: int | None
    seconds: float
    task: nn.Module

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_evaluation(self)


@dataclass(frozen=True)
class CheckpointSaved:
    """A saved checkpoint.

    Attributes:
        step: steps taken.
        folder: of the checkpoint.
        seconds: that saving took.
    """

    step: int
    folder: Path
    seconds: float

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_checkpoint(self)


@dataclass(frozen=True)
class NonFiniteFound:
    """A loss or a gradient that is not finite.

    Attributes:
        step: steps taken before the bad one.
        loss: the weighted sum.
        gradient_norm: over all parameters.
        names: the images of the batch.
    """

    step: int
    loss: float
    gradient_norm: float
    names: tuple[str, ...]

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_nonfinite(self)


@dataclass(frozen=True)
class RunEnded:
    """The end of a run.

    Attributes:
        step: steps taken.
        outcome: "finished", "early" (nothing got better any more), "interrupted" (saved first) or "failed" (an error is
            on its way).
        seconds: of training altogether, earlier sessions included.
    """

    step: int
    outcome: Outcome
    seconds: float

    def tell(self, observer: Observer) -> None:
        """Call the observer's method for this event."""
        observer.on_end(self)


Event = RunStarted | PlanFixed | StepTaken | EpochEnded | Evaluated | CheckpointSaved | NonFiniteFound | RunEnded
